"""Finds an image of a reference in a store, though the two may name it differently."""

from collections import Counter
from collections.abc import Callable
from pathlib import PurePosixPath

from unimo_ds.data.store import RegionStore

EXACT = "the same key"
_AMBIGUOUS = ""  # no key is empty


def _without_suffix(key: str) -> str:
    return str(PurePosixPath(key).with_suffix("")) if PurePosixPath(key).name else key


def _stem(key: str) -> str:
    return PurePosixPath(key).stem


def _number(key: str) -> str:
    """`COCO_val2014_000000000042.jpg` -> `42`; empty where the name does not end with a number."""
    stem = _stem(key)
    digits = stem[len(stem.rstrip("0123456789")) :]
    return str(int(digits)) if digits.isascii() and digits else ""


_RULES: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("the key without its extension", _without_suffix),
    ("the file name without folder and extension", _stem),
    ("the number at the end of the file name", _number),
)


class KeyFinder:
    """Looks up keys of a reference in a store: as they are, or by the first rule that leads to one image only.

    Attributes:
        used: how many images were found by each rule.
    """

    def __init__(self, store: RegionStore) -> None:
        self._store = store
        self._indices: list[dict[str, str]] | None = None
        self.used: Counter[str] = Counter()

    def find(self, key: str) -> str | None:
        """The store's key for an image of the reference."""
        if key in self._store:
            self.used[EXACT] += 1
            return key
        if self._indices is None:  # costs a pass over all keys, and is needed only where keys differ
            self._indices = self._index()
        for (name, rule), index in zip(_RULES, self._indices, strict=True):
            found = index.get(rule(key), _AMBIGUOUS)
            if found != _AMBIGUOUS:
                self.used[name] += 1
                return found
        return None

    def _index(self) -> list[dict[str, str]]:
        indices: list[dict[str, str]] = [{} for _ in _RULES]
        for key in self._store.keys():
            for (_, rule), index in zip(_RULES, indices, strict=True):
                if name := rule(key):
                    index[name] = _AMBIGUOUS if name in index else key
        return indices
