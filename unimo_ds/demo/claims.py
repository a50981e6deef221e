"""Reads an English sentence about the demo world into what it claims of a picture.

A shallow parser of its own, over a small lexicon: it knows the words of the captions, their synonyms and the constructions into
which rewriting and back-translation turn them, and shares no code with what makes captions or rewrites them. Where a sentence
can be attached in two ways (`a cup left of a ball above a lamp`: which of the two is above?) the claim keeps both readings.
What it does not understand it names; it never guesses.
"""

import re
from dataclasses import dataclass, replace

from unimo_ds.demo.claim_lexicon import EVERYWHERE, LONGEST, Quality, Side, Word, lexicon, places_of
from unimo_ds.demo.knowledge import FACTS


@dataclass(frozen=True, slots=True)
class Mention:
    """A noun phrase: `count` things (0: none at all) of one of `kinds` with all `qualities`; a `known` one (`the cup`) may be
    one that was mentioned before, any other is one more thing."""

    text: str
    kinds: frozenset[str]
    qualities: tuple[Quality, ...] = ()
    count: int = 1
    known: bool = False


@dataclass(frozen=True, slots=True)
class Bond:
    """A relation between one of the mentions `firsts` and one of `seconds` (places in `Claims.mentions`)."""

    firsts: tuple[int, ...]
    side: Side
    seconds: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Claims:
    """All that a sentence claims of one picture at once.

    Attributes:
        mentions: the things that must be there.
        bonds: how they lie to each other.
        places: what is said of the setting, each with the backgrounds of which it may be said.
        total: how many things there are in all, where that is said.
        unread: words that were not understood; if there are any, the other claims are not the whole sentence.
    """

    mentions: tuple[Mention, ...]
    bonds: tuple[Bond, ...]
    places: tuple[tuple[str, frozenset[str]], ...]
    total: int | None
    unread: tuple[str, ...]


# --- reading ---------------------------------------------------------------------------------------------------------


def read(sentence: str) -> Claims:
    """The claims of an English sentence about a picture of the demo world; it never fails, see `Claims.unread`."""
    return _Reader(_words(sentence)).read()


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    word: Word


def _words(sentence: str) -> list[_Token]:
    """The sentence as phrases of the lexicon, the longest first."""
    texts = re.findall(r"[^\s,.;:]+|[,.;:]", sentence.lower())
    tokens: list[_Token] = []
    while texts:
        lengths = range(min(LONGEST, len(texts)), 0, -1)
        length = next((length for length in lengths if tuple(texts[:length]) in lexicon()), 1)
        tokens.append(_Token(" ".join(texts[:length]), lexicon().get(tuple(texts[:length]), Word("unknown"))))
        del texts[:length]
    return tokens


_NOUNS = ("kind", "thing", "place")


class _Reader:
    """Goes once over the tokens. An item is what stands between two joins (`and`, `with`, a comma): a subject and what is said
    of it; `before` are the mentions of earlier items, to which `it` refers back."""

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens, self._at = tokens, 0
        self._mentions: list[Mention] = []
        self._bonds: list[Bond] = []
        self._places: list[tuple[str, frozenset[str]]] = []
        self._total: int | None = None
        self._unknown: list[str] = []
        self._unfitting: list[str] = []  # known words in a place where they make no sense
        self._before: list[int] = []
        self._item: list[int] = []
        self._pending: _Token | None = None  # a side that waits for its noun phrase
        self._opening: tuple[_Token, int] | None = None  # `In a cup, ...`: a side whose subject is still to come
        self._after: str | None = None  # the role of the noun whose phrase has just ended

    def read(self) -> Claims:
        while self._role() is not None:
            self._step()
        self._drop_pending()
        if self._opening is not None:
            self._unfitting.append(self._opening[0].text)
        denied = {place for place, mention in enumerate(self._mentions) if mention.count == 0}
        if any(denied & {*bond.firsts, *bond.seconds} for bond in self._bonds):
            self._unfitting.append("no")
        unread = tuple(dict.fromkeys(self._unknown or self._unfitting))  # an unknown word makes its neighbours unfitting
        return Claims(tuple(self._mentions), tuple(self._bonds), tuple(self._places), self._total, unread)

    def _step(self) -> None:
        match self._role():
            case "skip":
                self._next()
            case "join":
                self._drop_pending()
                self._before, self._item = self._before + self._item, []
                self._next()
            case "of" if self._after == "place":  # `a picture of`
                self._next()
            case "side":
                self._side()
            case "side of it":
                self._back_reference(self._next())
            case "it" if self._pending is not None:
                self._next()
                side, self._pending = self._pending, None
                self._back_reference(side)
            case "determiner" | "number" | "quality" | "kind" | "thing" | "place":
                self._noun_phrase()
                return
            case "unknown":
                self._unknown.append(self._next().text)
            case _:
                self._unfitting.append(self._next().text)
        self._after = None

    def _role(self, ahead: int = 0) -> str | None:
        place = self._at + ahead
        return self._tokens[place].word.role if place < len(self._tokens) else None

    def _next(self) -> _Token:
        self._at += 1
        return self._tokens[self._at - 1]

    def _drop_pending(self) -> None:
        """Names a side that found no noun phrase; `inside` may stand alone."""
        if self._pending is not None and self._pending.text == "inside":
            self._places.append(("inside", places_of("indoors")))
        elif self._pending is not None:
            self._unfitting.append(self._pending.text)
        self._pending = None

    def _side(self) -> None:
        if self._pending is not None and self._pending.text not in ("at", "in", "on"):  # `at the left of`, `on in front of`
            self._drop_pending()
        self._pending = self._next()

    def _back_reference(self, side: _Token) -> None:
        """`on it`, `to its left`: of the last mention to any before it."""
        *hosts, guest = [*self._before, *self._item] or [-1]
        if hosts and self._item:
            self._bonds.append(Bond((guest,), side.word.value, tuple(hosts)))
        else:
            self._unfitting.append(side.text)

    def _noun_phrase(self) -> None:
        start = self._at
        number, known = self._determiners()
        bare = self._at == start
        qualities = self._qualities()
        compound, self._after = bare and self._after is not None, None  # `a table lamp`
        if self._role() not in _NOUNS:
            self._without_noun(start, bare, qualities)
            return
        noun = self._next().word
        if compound and self._text_from(start) != "indoors":
            self._unfitting.append(self._text_from(start))
            return
        of = self._role() == "of"  # `a cup of small orange`; without it, `a background checked`
        if self._role(of) == "quality" and not self._noun_after_qualities(of):
            self._at += of
            qualities += self._qualities()
        text = self._text_from(start)
        self._after = noun.role
        match noun.role:
            case "place":
                self._place(text, noun.value, qualities)
            case "thing" if number and number > 1 and not qualities and self._pending is None:
                self._total = number
            case "thing":
                self._mention(Mention(text, frozenset(FACTS), qualities, noun.value if number is None else number, known))
            case _:
                kinds, count = noun.value
                self._mention(Mention(text, kinds, qualities, count if number is None else number, known))

    def _determiners(self) -> tuple[int | None, bool]:
        """The number that is said, and whether the thing is one that is known."""
        number, known = None, False
        while self._role() in ("determiner", "number"):
            token = self._next()
            number = token.word.value if token.word.role == "number" else number
            known = known or token.text in ("the", "this", "both", "its", "his")
        return number, known

    def _text_from(self, start: int) -> str:
        return " ".join(token.text for token in self._tokens[start : self._at])

    def _qualities(self) -> tuple[Quality, ...]:
        """The adjectives from here, also with commas or `and` between them."""
        found: list[Quality] = []
        while self._role() == "quality" or (found and self._role() == "join" and self._role(1) == "quality"):
            token = self._next()
            found += [token.word.value] if token.word.role == "quality" else []
        return tuple(found)

    def _noun_after_qualities(self, ahead: int) -> bool:
        while self._role(ahead) == "quality":
            ahead += 1
        return self._role(ahead) in _NOUNS

    def _without_noun(self, start: int, bare: bool, qualities: tuple[Quality, ...]) -> None:
        """`is red`, `in the dark`; anything else is not understood."""
        subjects = self._item or self._before
        if qualities and qualities[-1].word == "dark" and self._pending is not None:
            self._place("the dark", places_of("darkness"), ())
        elif qualities and bare and subjects and self._pending is None:
            subject = self._mentions[subjects[0]]
            self._mentions[subjects[0]] = replace(subject, qualities=subject.qualities + qualities)
        else:
            self._unfitting.append(self._text_from(start))

    def _place(self, text: str, backgrounds: frozenset[str], qualities: tuple[Quality, ...]) -> None:
        for quality in qualities:
            backgrounds &= quality.of_places
        if backgrounds != EVERYWHERE:
            self._places.append((text, backgrounds))
        self._pending = None

    def _mention(self, mention: Mention) -> None:
        place = len(self._mentions)
        self._mentions.append(mention)
        if self._pending is not None:
            firsts = tuple(self._item or self._before)
            if firsts:
                self._bonds.append(Bond(firsts, self._pending.word.value, (place,)))
            else:
                self._opening = (self._pending, place)
            self._pending = None
        elif self._opening is not None:
            self._bonds.append(Bond((place,), self._opening[0].word.value, (self._opening[1],)))
            self._opening = None
        self._item.append(place)
