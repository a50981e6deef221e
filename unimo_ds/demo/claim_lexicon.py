"""The words by which sentences about the demo world are read: those of its captions, their synonyms, and what translation makes
of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any, Literal

from unimo_ds.demo.drawing import BACKGROUNDS
from unimo_ds.demo.knowledge import FACTS
from unimo_ds.demo.objects import COLOURS, KINDS

Side = Literal["left", "right", "above", "below", "on", "inside", "front", "behind", "against", "near"]


@dataclass(frozen=True, slots=True)
class Quality:
    """What an adjective says: the colours and sizes of things, and the backgrounds, of which it may be said."""

    word: str
    of_things: frozenset[str] = frozenset()
    of_places: frozenset[str] = frozenset()


Role = Literal[
    "determiner", "number", "quality", "kind", "place", "thing", "side", "side of it", "it", "of", "join", "skip", "unknown"
]


@dataclass(frozen=True, slots=True)
class Word:
    """A word or phrase with what it does in a sentence.

    `value`: of a number its int; a quality its Quality; a kind (kinds, 1 or 2 for the plural); a thing 1 or 2; a place its
    backgrounds; a side and a `side of it` (`to its left`) their Side.
    """

    role: Role
    value: Any = None


_SIZES = {
    "small": "small little tiny minuscule miniature mini petite wee smallish",
    "large": "large big huge enormous giant gigantic great massive immense vast",
}
_OTHER_COLOURS = "pink brown grey gray golden silver beige turquoise"
"""Colours that no thing of the world has."""
_COLOURS = " ".join(colour.name for colour in COLOURS)
_WALLS = "checks stripes plain room"
"""Any of them may be called a wall or a room, and as their tint is random and pale, of any pale colour."""
EVERYWHERE = frozenset(background.name for background in BACKGROUNDS)

_LOOKS: dict[str, tuple[str, str]] = {
    # The colours or sizes of the things, and the backgrounds, of which the adjective may be said.
    "red": ("red", ""),
    "crimson": ("red", ""),
    "scarlet": ("red", ""),
    "orange": ("orange", _WALLS),
    "yellow": ("yellow", f"{_WALLS} beach"),
    "green": ("green", f"{_WALLS} meadow"),
    "blue": ("blue", f"{_WALLS} night"),
    "purple": ("purple", _WALLS),
    "violet": ("purple", _WALLS),
    "white": ("white", f"{_WALLS} snow"),
    "black": ("black", "night"),
    "dark": ("red green blue purple black", "night"),
    "bright": ("red orange yellow green blue purple white", f"{_WALLS} meadow beach snow"),
    "brilliant": ("red orange yellow green blue purple white", f"{_WALLS} meadow beach snow"),
    "plain": (_COLOURS, "plain room"),
    "simple": (_COLOURS, "plain room"),
    "checked": ("", "checks"),
    "checkered": ("", "checks"),
    "chequered": ("", "checks"),
    "striped": ("", "stripes"),
    "grassy": ("", "meadow"),
    "sandy": ("", "beach"),
    "snowy": ("", "snow"),
}
_SYNONYMS = {
    "cup": "mug",
    "house": "home cottage",
    "car": "automobile auto motorcar",
    "boat": "ship sailboat vessel",
    "cat": "kitten kitty",
    "lamp": "light",
    "umbrella": "parasol",
    "flower": "blossom bloom",
    "chair": "seat",
    "hat": "cap",
}
_PLACES: dict[str, str] = {
    "meadow": "meadow",
    "grass": "meadow",
    "lawn": "meadow",
    "field": "meadow snow night",  # of what kind it is, its adjective says
    "day": "meadow beach snow",
    "beach": "beach",
    "sand": "beach",
    "night": "night",
    "darkness": "night",
    "snow": "snow",
    "room": _WALLS,
    "indoors": _WALLS,
    "wall": _WALLS,
}
_PICTURES = "picture image photo photograph drawing painting sketch illustration scene view background backdrop"
_SIDES: dict[Side, str] = {
    "above": "above|over|higher than|higher that|higher up than",
    "below": "below|beneath|under|underneath|lower than|lower that",
    "on": "on|on top of|on the top of|atop|upon|onto",
    "inside": "in|inside|inside of|within|into",
    "front": "in front of",
    "behind": "behind",
    "against": "against",
    "near": "at|near|by|beside|next to|close to|alongside",
}
_PARTS: dict[str, Side] = {"left": "left", "right": "right", "top": "above", "bottom": "below", "front": "front"}
"""Nouns of `to the left of`."""
_NUMBERS = {str(number): number for number in range(10)} | {"a couple of": 2, "a pair of": 2, "both": 2}
_NUMBERS |= {"no": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
_SKIPPED = (
    "there is|there are|there's|here is|here are|this is|is|are|it is|we see|we can see|we view|you see|you can see|one sees|"
    "can see|can view|see|sees|we|shows|showing|can be seen|can be viewed|is seen|are seen|is shown|is showed|shown|is placed|"
    "are placed|placed|is located|located|is situated|situated|is displayed|sits|sitting|stands|standing|lies|lying|which|"
    "which is|that is|that are|very|."
)
_JOINS = ",|;|:|and|with|that has|which has|that have|has|have|having"
LONGEST = 5
"""Words of the longest phrase of the lexicon."""


def places_of(noun: str) -> frozenset[str]:
    """The backgrounds that may be called so."""
    return frozenset(_PLACES[noun].split())


@cache
def lexicon() -> dict[tuple[str, ...], Word]:
    """Every phrase that is known, as a tuple of words."""
    told = {word: Word("skip") for word in _SKIPPED.split("|")}
    told |= {word: Word("join") for word in _JOINS.split("|")}
    told |= {word: Word("determiner") for word in ("a", "an", "the", "some", "this", "another", "its", "his")}
    told |= {word: Word("it") for word in ("it", "them", "him")} | {"of": Word("of")}
    told |= {word: Word("number", number) for word, number in _NUMBERS.items()}
    told |= {word: Word("quality", quality) for word, quality in _qualities()}
    told |= {word: Word("kind", value) for word, value in _kinds()}
    told |= {word: Word("thing", 1) for word in ("thing", "object", "item")}
    told |= {word: Word("thing", 2) for word in ("things", "objects", "items")}
    told |= {word: Word("place", places_of(word)) for word in _PLACES}
    told |= {word: Word("place", EVERYWHERE) for word in _PICTURES.split()}
    told |= {phrase: Word("side of it", side) for phrase, side in _back_references()}
    told |= {phrase: Word("side", side) for phrase, side in _relations()}
    return {tuple(phrase.split()): word for phrase, word in told.items()}


def _qualities() -> Iterator[tuple[str, Quality]]:
    for size, words in _SIZES.items():
        yield from ((word, Quality(word, frozenset({size}), EVERYWHERE)) for word in words.split())
    yield from ((word, Quality(word, of_places=EVERYWHERE)) for word in _OTHER_COLOURS.split())
    for word, (of_things, of_places) in _LOOKS.items():
        yield word, Quality(word, frozenset(of_things.split()), frozenset(of_places.split()))


def _kinds() -> Iterator[tuple[str, tuple[frozenset[str], int]]]:
    """Kinds and their synonyms, and the words by which the texts call whole groups of kinds, `piece of furniture`."""
    for category in {facts.category for facts in FACTS.values()}:
        members = frozenset(kind for kind, facts in FACTS.items() if facts.category == category)
        yield from ((category, (members, 1)), (f"{category}s", (members, 2)))
    for kind in KINDS:
        one = frozenset({kind.name})
        for word in _SYNONYMS.get(kind.name, "").split():
            yield from ((word, (one, 1)), (f"{word}s", (one, 2)))
        yield from ((kind.plural, (one, 2)), (kind.name, (one, 1)))  # `fish` is also its plural
    yield "fishes", (frozenset({"fish"}), 2)


def _relations() -> Iterator[tuple[str, Side]]:
    for (word, side), part in product(_PARTS.items(), ("", " side", " hand side")):
        for start in ("", "the ", "to ", "to the ", "on the ", "at the ", "in the "):
            yield f"{start}{word}{part} of", side
    for side, phrases in _SIDES.items():
        yield from ((phrase, side) for phrase in phrases.split("|"))


def _back_references() -> Iterator[tuple[str, Side]]:
    owners = ("its", "his", "the")
    for (word, side), preposition, owner in product(_PARTS.items(), ("to", "on", "at", "in"), owners):
        yield from ((f"{preposition} {owner} {word}{part}", side) for part in ("", " side"))
