"""A reader of WordNet's database files (`index.*` and `data.*`; formats: wndb(5WN)) that needs no library.

The files are mapped into memory and searched by bisection, so opening costs nothing and processes share the pages.
"""

import mmap
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

PartOfSpeech = Literal["noun", "adj", "verb"]
Relatedness = Literal["synonym", "hypernym", "hyponym", "part", "similar"]

_POS: tuple[PartOfSpeech, ...] = ("noun", "adj", "verb")
_SENSES = 4  # WordNet orders senses by frequency; a caption means a frequent one, and rare ones relate nearly all to all
_CACHED = 1 << 16

_Pointers = tuple[tuple[str, int], ...]
"""Those of a synset to synsets of the same part of speech: (symbol, offset)."""


@dataclass(frozen=True, slots=True)
class _Word:
    """What WordNet knows of a word in its frequent senses, as offsets of synsets.

    Attributes:
        senses: its synsets.
        above: all their hypernyms.
        parts: what they have or are made of.
        similar, opposite: of adjectives.
        person: whether it means people first (a dog may be a person too, but not in a caption); `sexes`: which of the synsets
            of male and female people are above that sense.
        category: the number of the file of its most frequent sense: animals, artifacts, food, ... (lexnames(5WN)).
    """

    senses: frozenset[int]
    above: frozenset[int]
    parts: frozenset[int]
    similar: frozenset[int]
    opposite: frozenset[int]
    person: bool
    sexes: frozenset[int]
    category: int | None


class WordNet:
    """The nouns, adjectives and verbs of one database folder.

    Args:
        folder: holds `index.noun`, `data.noun` and so on.

    Raises:
        OSError: a file is missing.
    """

    def __init__(self, folder: Path) -> None:
        self._index = {pos: _mapped(folder / f"index.{pos}") for pos in _POS}
        self._data = {pos: _mapped(folder / f"data.{pos}") for pos in _POS}
        self._pointers = lru_cache(_CACHED)(self._read_pointers)
        self._above = lru_cache(_CACHED)(self._find_above)
        self._word = lru_cache(_CACHED)(self._read_word)
        # Their names lead to these synsets alone: "male" and "female" mean animals first.
        self._person, self._male, self._female = (
            next(iter(self._senses(lemma, "noun")), 0) for lemma in ("person", "male_person", "female_person")
        )

    @staticmethod
    def is_in(folder: Path) -> bool:
        """Whether a folder holds the files needed."""
        return all((folder / f"{kind}.{pos}").is_file() for kind in ("index", "data") for pos in _POS)

    def related(self, first: str, second: str, pos: PartOfSpeech) -> Relatedness | None:
        """What `first` is to `second` in any of their frequent senses; lemmas with spaces are looked up as collocations."""
        one, other = self._word(first, pos), self._word(second, pos)
        if not one.senses.isdisjoint(other.senses):
            return "synonym"
        if not other.above.isdisjoint(one.senses):
            return "hypernym"
        if not one.above.isdisjoint(other.senses):
            return "hyponym"
        if not (one.parts.isdisjoint(other.senses) and other.parts.isdisjoint(one.senses)):
            return "part"
        if not (one.similar.isdisjoint(other.senses) and other.similar.isdisjoint(one.senses)):
            return "similar"
        # An astronaut may be the woman of another caption, a man is not.
        if one.person and other.person and not (one.sexes and other.sexes and one.sexes.isdisjoint(other.sexes)):
            return "similar"
        return None

    def category(self, noun: str) -> int | None:
        """The kind of thing that a noun means first, as a number: an animal, food, something made, ..."""
        return self._word(noun, "noun").category

    def opposite(self, first: str, second: str) -> bool:
        """Whether WordNet names two adjectives as antonyms."""
        return not self._word(first, "adj").opposite.isdisjoint(self._word(second, "adj").senses)

    def _read_word(self, lemma: str, pos: PartOfSpeech) -> _Word:
        senses = self._senses(lemma, pos)
        to: dict[str, set[int]] = {symbol: set() for symbol in ("%p", "%s", "&", "!")}
        for sense in senses:
            for symbol, target in self._pointers(sense, pos):
                if symbol in to:
                    to[symbol].add(target)
        first = self._above(senses[0], pos) if senses else frozenset[int]()
        is_noun = pos == "noun"
        return _Word(
            frozenset(senses),
            frozenset[int]().union(*(self._above(sense, pos) for sense in senses)),
            frozenset(to["%p"] | to["%s"]) if is_noun else frozenset(),
            frozenset(to["&"]),
            frozenset(to["!"]),
            is_noun and self._person in first,
            first & {self._male, self._female},
            int(self._data[pos][senses[0] + 9 : senses[0] + 11]) if senses else None,
        )

    def _find_above(self, sense: int, pos: PartOfSpeech) -> frozenset[int]:
        """The offsets of all hypernyms of a synset, to the root."""
        found: set[int] = set()
        waiting = [sense]
        while waiting:
            for symbol, target in self._pointers(waiting.pop(), pos):
                if symbol == "@" and target not in found:
                    found.add(target)
                    waiting.append(target)
        return frozenset(found)

    def _senses(self, lemma: str, pos: PartOfSpeech) -> tuple[int, ...]:
        """The offsets of a lemma's frequent synsets, most frequent first.

        An index line is: lemma, pos, number of synsets, number of pointer symbols, these, ..., the offsets.
        """
        line = _find_line(self._index[pos], lemma.lower().replace(" ", "_").encode())
        if line is None:
            return ()
        fields = line.split()
        return tuple(map(int, fields[len(fields) - int(fields[2]) :]))[:_SENSES]

    def _read_pointers(self, offset: int, pos: PartOfSpeech) -> _Pointers:
        """The pointers of a synset.

        A data line is: offset, file, type, number of words (hexadecimal), word and id each, number of pointers, for each its
        symbol, offset, part of speech and words.
        """
        data = self._data[pos]
        fields = data[offset : data.find(b"|", offset)].decode("ascii", "replace").split()
        at = 4 + 2 * int(fields[3], 16)
        pointers = (fields[at + 1 + 4 * number : at + 5 + 4 * number] for number in range(int(fields[at])))
        letters = {"noun": "n", "adj": "as", "verb": "v"}[pos]
        return tuple((symbol, int(target)) for symbol, target, letter, _ in pointers if letter in letters)


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _find_line(index: mmap.mmap, key: bytes) -> str | None:
    """The line of a sorted file whose first field is `key`."""
    low, high = 0, len(index)
    while low < high:
        middle = (low + high) // 2
        start = index.rfind(b"\n", low, middle) + 1 or low
        end = index.find(b"\n", middle)
        end = len(index) if end < 0 else end
        line = index[start:end]
        found = line[: line.find(b" ")]
        if found == key:
            return line.decode("ascii", "replace")
        if found < key:
            low = end + 1
        else:
            high = start
    return None
