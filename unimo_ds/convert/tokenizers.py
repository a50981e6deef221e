"""The tokenizers that published weights come with, as RoBERTa's `vocab.json` and `merges.txt`."""

import json
from pathlib import Path

from unimo_ds.errors import DataError
from unimo_ds.tokenizer import Tokenizer

# The dictionary of the original UNIMO (unimo-spec, 1.1).
_ENCODER, _MERGES, _VOCABULARY = "unimo_en.encoder.json", "unimo_en.vocab.bpe", "unimo_en.vocab.txt"
_SPECIAL = {"[CLS]": "<s>", "[PAD]": "<pad>", "[SEP]": "</s>", "[UNK]": "<unk>", "[MASK]": "<mask>"}
_FAST = "tokenizer.json"  # what newer folders of Hugging Face have in place of two files


def open_tokenizer(source: Path, made: Path) -> Tokenizer:
    """A tokenizer as it was published.

    Args:
        source: holds `vocab.json` and `merges.txt`, or else `tokenizer.json`; or is the original's `model_files/dict`.
        made: folder for the two files, where `source` has them in another form.

    Raises:
        DataError: there is none, or a file is damaged.
    """
    if (source / _VOCABULARY).exists():
        return _written(made, *_read_original(source))
    if not (source / "vocab.json").exists() and (source / _FAST).exists():
        return _written(made, *_read_fast(source / _FAST))
    return Tokenizer(source)


def _written(folder: Path, vocabulary: dict[str, int], merges: str) -> Tokenizer:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text(merges, encoding="utf-8")
    return Tokenizer(folder)


def _read_original(source: Path) -> tuple[dict[str, int], str]:
    """`vocab.txt` has the ids of GPT-2 in the order of the model's own ids, `encoder.json` their pieces of text."""
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
        raise DataError(
            f"{source}: one of {_ENCODER}, {_MERGES} and {_VOCABULARY} is damaged ({error}); copy it again"
        ) from error
    vocabulary: dict[str, int] = {}
    for index, line in enumerate(lines):
        where = f"{source / _VOCABULARY}:{index + 1}: {line}"
        if line.isdecimal() and line not in pieces:
            raise DataError(f"{where} is no number of {_ENCODER}; copy both again")
        piece = pieces.get(line) or _SPECIAL.get(line) or line
        if piece in vocabulary:
            raise DataError(f"{where} came before, in line {vocabulary[piece] + 1}; copy it again")
        vocabulary[piece] = index
    return vocabulary, merges


def _read_fast(path: Path) -> tuple[dict[str, int], str]:
    try:
        bpe = json.loads(path.read_text(encoding="utf-8"))["model"]
        # Older files have a merge as one string, newer ones as two.
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in bpe["merges"]]
        vocabulary = {str(piece): int(index) for piece, index in bpe["vocab"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: cannot be read as a byte-level BPE ({type(error).__name__}: {error}); copy it again"
        ) from error
    return vocabulary, "\n".join(["#version: 0.2", *merges, ""])
