"""RoBERTa's byte-level BPE with its special ids, and a small one trained on the user's own text.

The original UNIMO's vocabulary has RoBERTa's ids (unimo-spec, 1.1): [CLS] = `<s>` 0, [PAD] = `<pad>` 1, [SEP] = `</s>` 2,
`<unk>` 3, [MASK] = `<mask>` last. A folder with `vocab.json` and `merges.txt`, as Hugging Face writes it, is a tokenizer.
"""

import hashlib
import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unimo_ds.errors import DataError

CLS, PAD, SEP, UNK = 0, 1, 2, 3
_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
_MASK_TOKEN = "<mask>"
_FILES = ("vocab.json", "merges.txt")
_PUBLISHED = "cf7dfe2edb16694dbd457167f91398c9c6afd78930b22c4167ee40e86b878c5d"  # RoBERTa's pieces of text, ids 4 to 50260
_SPACES = "ĠĊĉč"  # space, line feed, tab and carriage return in the byte-level alphabet; Python counts them as letters


class Tokenizer:
    """Text to ids and back; special ids are added by the data room, never here.

    Args:
        folder: holds `vocab.json` and `merges.txt`.

    Raises:
        DataError: a file is missing or damaged, or the special tokens do not have RoBERTa's ids.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        missing = [name for name in _FILES if not (self.folder / name).exists()]
        if missing:
            raise DataError(
                f"{self.folder}: no {' and no '.join(missing)}: not a tokenizer folder. Copy vocab.json and merges.txt of "
                f"roberta-base there, or train one: `unimo-ds train-tokenizer TEXT... --out {self.folder}`."
            )
        vocabulary = self._vocabulary = _read_vocabulary(self.folder / "vocab.json")
        self.size = len(vocabulary)
        expected = {token: index for index, token in enumerate(_SPECIAL)} | {_MASK_TOKEN: self.size - 1}
        wrong = {token: vocabulary.get(token) for token, index in expected.items() if vocabulary.get(token) != index}
        if wrong:
            raise DataError(f"{self.folder}/vocab.json: special tokens have ids {wrong}, expected {expected}")
        self.mask = self.size - 1

    @cached_property
    def _fast(self) -> Any:
        from transformers import RobertaTokenizerFast  # seconds of import: only where text is really tokenised

        return RobertaTokenizerFast.from_pretrained(str(self.folder), add_prefix_space=False)

    @cached_property
    def _backend(self) -> Any:
        """The Rust tokenizer itself: fifteen times as fast on many short texts as the wrapper, which makes masks for each."""
        backend = self._fast.backend_tokenizer
        backend.encode_special_tokens = True  # as the characters that they are
        return backend

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text, without special tokens: a `<s>` that stands in a text is three characters, not [CLS]."""
        return [encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`, special tokens left out."""
        return self.exact_text(ids).strip()

    def exact_text(self, ids: Iterable[int]) -> str:
        """Text of `ids` with the spaces around it: what was encoded, and encodes to the same ids again."""
        text: str = self._backend.decode(list(ids), skip_special_tokens=True)
        return text

    def token(self, index: int) -> str:
        """The piece of text that one id stands for, special tokens by name."""
        text: str = self._fast.convert_tokens_to_string([self._fast.convert_ids_to_tokens(int(index))])
        return text

    @cached_property
    def starts_word_V(self) -> npt.NDArray[np.bool_]:
        """For each id, whether it begins a unit of masking: a word (with its space) or a punctuation mark."""
        starts = np.ones(self.size, dtype=bool)
        for token, index in self._vocabulary.items():
            starts[index] = token[0] in _SPACES or not token[0].isalnum()
        return starts

    @cached_property
    def begins_with_space_V(self) -> npt.NDArray[np.bool_]:
        """For each id, whether its text begins with a space, as all words but a text's first do."""
        begins = np.zeros(self.size, dtype=bool)
        for token, index in self._vocabulary.items():
            begins[index] = token[0] in _SPACES
        return begins

    @cached_property
    def is_published(self) -> bool:
        """Whether it has RoBERTa's vocabulary, which is the original UNIMO's: then ids of the release's files mean the same."""
        pieces = sorted(self._vocabulary, key=self._vocabulary.__getitem__)[len(_SPECIAL) : 50261]
        return hashlib.sha256("\n".join(pieces).encode()).hexdigest() == _PUBLISHED

    @cached_property
    def from_gpt2_V(self) -> npt.NDArray[np.int64]:
        """For each id as GPT-2 counts, the id here.

        GPT-2 counts the 256 bytes first and then the merges in their order; RoBERTa has the same pieces by frequency.
        """
        from tokenizers.pre_tokenizers import ByteLevel

        lines = (self.folder / "merges.txt").read_text(encoding="utf-8").split("\n")
        merges = ["".join(line.split(" ")) for line in lines if line and not line.startswith("#version")]
        return np.array([self._vocabulary[piece] for piece in [*sorted(ByteLevel.alphabet()), *merges]])

    @cached_property
    def fingerprint(self) -> str:
        """Hash of both files: prepared corpora and checkpoints remember it."""
        digest = hashlib.sha256()
        for name in _FILES:
            digest.update((self.folder / name).read_bytes())
        return digest.hexdigest()


def _read_vocabulary(path: Path) -> dict[str, int]:
    try:
        vocabulary = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # errors of JSON and of Unicode
        raise DataError(f"{path}: is not valid JSON ({error}); copy it again") from error
    if not isinstance(vocabulary, dict):
        raise DataError(f"{path}: holds {type(vocabulary).__name__}, expected an object of tokens and their ids")
    return vocabulary


def train_tokenizer(texts: Iterable[str], vocabulary_size: int, folder: Path) -> None:
    """Trains a byte-level BPE of RoBERTa's form on `texts` and writes it to `folder`; deterministic.

    Args:
        texts: the corpus.
        vocabulary_size: the upper bound, special tokens included.
        folder: gets `vocab.json` and `merges.txt`.
    """
    from tokenizers import ByteLevelBPETokenizer

    trainer = ByteLevelBPETokenizer(add_prefix_space=False)
    trainer.train_from_iterator(
        texts, vocab_size=vocabulary_size - 1, min_frequency=2, special_tokens=_SPECIAL, show_progress=False
    )
    folder.mkdir(parents=True, exist_ok=True)
    trainer.save_model(str(folder))
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    vocabulary[_MASK_TOKEN] = len(vocabulary)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
