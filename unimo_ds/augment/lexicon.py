"""How two words are related: WordNet where it is installed, and small built-in lists of caption words everywhere."""

import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from unimo_ds.augment.word_lists import (
    ADJECTIVE_LOOKALIKES,
    ADJECTIVE_SYNONYMS,
    COLOURS,
    EXCLUSIVE_ADJECTIVES,
    FEMALE_NOUNS,
    MALE_NOUNS,
    NOUN_LOOKALIKES,
    NOUN_SYNONYMS,
    PERSON_NOUNS,
)
from unimo_ds.augment.wordnet import PartOfSpeech, Relatedness, WordNet

_CACHED = 1 << 17  # pairs of words, some 200 bytes each

GroupsOf = dict[str, frozenset[int]]


def _index(groups: Sequence[frozenset[str]]) -> GroupsOf:
    """The numbers of the groups that each word is in."""
    return {
        word: frozenset(number for number, group in enumerate(groups) if word in group) for word in frozenset().union(*groups)
    }


_SYNONYMS: dict[PartOfSpeech, GroupsOf] = {"noun": _index(NOUN_SYNONYMS), "adj": _index(ADJECTIVE_SYNONYMS), "verb": {}}
_LOOKALIKES: dict[PartOfSpeech, GroupsOf] = {"noun": _index(NOUN_LOOKALIKES), "adj": _index(ADJECTIVE_LOOKALIKES), "verb": {}}


class Lexicon:
    """Relatedness of words, by lemma. Answers are cached, so ask freely.

    Args:
        wordnet: an open database, or None for the built-in lists alone.
    """

    def __init__(self, wordnet: WordNet | None = None) -> None:
        self._wordnet = wordnet
        self._cached_related = lru_cache(_CACHED)(self._related)
        self._cached_exclusive = lru_cache(_CACHED)(self._exclusive)

    @classmethod
    def find(cls) -> "Lexicon":
        """The lexicon of this machine; without WordNet one that has only the built-in lists."""
        folder = next(filter(WordNet.is_in, _wordnet_folders()), None)
        return cls(WordNet(folder) if folder else None)

    @property
    def has_wordnet(self) -> bool:
        """Whether WordNet was found."""
        return self._wordnet is not None

    def related(self, first: str, second: str, pos: PartOfSpeech) -> Relatedness | None:
        """What `first` is to `second`, or None where nobody would choose the two for one and the same thing.

        `similar` is generous: `cup` and `mug`, `space suit` and `swim suit`, any two nouns of people whose sex does not differ.
        """
        return self._cached_related(first, second, pos)

    def exclusive(self, first: str, second: str) -> bool:
        """Whether no one thing has both attributes: two colours, sizes or patterns, or WordNet's direct antonyms."""
        return self._cached_exclusive(first, second)

    def same_category(self, first: str, second: str) -> bool:
        """Whether WordNet files two nouns together: both animals, both food, both made by people; without it no two are."""
        if self._wordnet is None:
            return False
        one, other = (self._wordnet.category(noun) or self._wordnet.category(_head(noun)) for noun in (first, second))
        return one is not None and one == other

    def _related(self, first: str, second: str, pos: PartOfSpeech) -> Relatedness | None:
        if first == second or _share(first, second, _SYNONYMS[pos]):
            return "synonym"
        found = self._wordnet.related(first, second, pos) if self._wordnet else None
        if found:
            return found
        if _share(first, second, _LOOKALIKES[pos]) or (pos == "noun" and _may_be_one_person(first, second)):
            return "similar"
        if pos == "noun" and (" " in first or " " in second):
            return self._related_compounds(first, second)
        return None

    def _related_compounds(self, first: str, second: str) -> Relatedness | None:
        """`space suit` is a suit, and similar to `swim suit`."""
        one, other = _head(first), _head(second)
        if one == other:
            return "hypernym" if first == one else "hyponym" if second == other else "similar"
        return "similar" if self.related(one, other, "noun") else None

    def _exclusive(self, first: str, second: str) -> bool:
        if self.related(first, second, "adj"):
            return False
        if first in COLOURS and second in COLOURS:
            return True
        if any(_differ(first, second, dimension) for dimension in EXCLUSIVE_ADJECTIVES):
            return True
        return self._wordnet is not None and self._wordnet.opposite(first, second)


def _head(noun: str) -> str:
    return noun.rsplit(" ", 1)[-1]


def _share(first: str, second: str, groups_of: GroupsOf) -> bool:
    ones, others = groups_of.get(first), groups_of.get(second)
    return ones is not None and others is not None and not ones.isdisjoint(others)


def _differ(first: str, second: str, dimension: Sequence[frozenset[str]]) -> bool:
    """Whether two attributes are different values of a dimension."""
    ones, others = ([place for place, value in enumerate(dimension) if word in value] for word in (first, second))
    return bool(ones and others) and not set(ones) & set(others)


def _may_be_one_person(first: str, second: str) -> bool:
    if not (first in PERSON_NOUNS and second in PERSON_NOUNS):
        return False
    return not ({first, second} & MALE_NOUNS and {first, second} & FEMALE_NOUNS)


def _wordnet_folders() -> Iterator[Path]:
    """Where WordNet's database may be, best first: $WNSEARCHDIR, $WNHOME, Debian's folder, nltk's data, a plain install."""
    if "WNSEARCHDIR" in os.environ:
        yield Path(os.environ["WNSEARCHDIR"])
    if "WNHOME" in os.environ:
        yield Path(os.environ["WNHOME"], "dict")
    yield Path("/usr/share/wordnet")
    roots = [Path(root) for root in os.environ.get("NLTK_DATA", "").split(os.pathsep) if root]
    roots += [Path.home() / "nltk_data", Path("/usr/share/nltk_data"), Path("/usr/local/share/nltk_data")]
    yield from (root / "corpora" / "wordnet" for root in roots)
    yield from (Path(f"/usr/local/{name}/dict") for name in ("WordNet-3.0", "WordNet-3.1", "wordnet-3.0", "wordnet-3.1"))
