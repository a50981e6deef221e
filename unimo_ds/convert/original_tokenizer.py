"""The original UNIMO's dictionary as RoBERTa's `vocab.json` and `merges.txt` (unimo-spec, 1.1)."""

import json
from pathlib import Path

from unimo_ds.errors import DataError
from unimo_ds.tokenizer import Tokenizer

_ENCODER, _MERGES, _VOCABULARY = "unimo_en.encoder.json", "unimo_en.vocab.bpe", "unimo_en.vocab.txt"
_SPECIAL = {"[CLS]": "<s>", "[PAD]": "<pad>", "[SEP]": "</s>", "[UNK]": "<unk>", "[MASK]": "<mask>"}


def is_original(folder: Path) -> bool:
    """Whether a folder is the original's `model_files/dict`."""
    return (folder / _VOCABULARY).exists()


def write_tokenizer(source: Path, out: Path) -> Tokenizer:
    """Writes a tokenizer of the original's three files.

    `unimo_en.vocab.txt` has the ids of GPT-2 in the order of the model's own ids, `unimo_en.encoder.json` their pieces of text.

    Args:
        source: the original's `model_files/dict`.
        out: folder for `vocab.json` and `merges.txt`.

    Raises:
        DataError: a file is missing or damaged.
    """
    try:
        pieces = {str(number): piece for piece, number in json.loads((source / _ENCODER).read_text(encoding="utf-8")).items()}
        merges = (source / _MERGES).read_text(encoding="utf-8")
        lines = (source / _VOCABULARY).read_text(encoding="utf-8").split()
    except OSError as error:
        raise DataError(
            f"{error.filename}: cannot be read: {error.strerror}; the original's dictionary is {_ENCODER}, {_MERGES} and "
            f"{_VOCABULARY}, in the folder model_files/dict of its code"
        ) from error
    except (ValueError, AttributeError) as error:
        raise DataError(f"{source}: {_ENCODER} or {_MERGES} is damaged ({error}); copy it again") from error
    vocabulary: dict[str, int] = {}
    for index, line in enumerate(lines):
        piece = pieces.get(line) or _SPECIAL.get(line) or line
        if line.isdecimal() and line not in pieces:
            raise DataError(f"{source / _VOCABULARY}:{index + 1}: {line} is no number of {_ENCODER}; copy both again")
        if piece in vocabulary:
            raise DataError(f"{source / _VOCABULARY}:{index + 1}: {line} came before, in line {vocabulary[piece] + 1}; copy it again")
        vocabulary[piece] = index
    out.mkdir(parents=True, exist_ok=True)
    (out / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (out / "merges.txt").write_text(merges, encoding="utf-8")
    return Tokenizer(out)
