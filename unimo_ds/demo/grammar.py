"""Says in English what a scene shows; everything said is true of it.

`Speaker` holds the words for one scene: noun phrases with the right article and number, relations, the setting. The
captions are made from a table of sentence forms, each of which may decline a scene that it does not suit.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import permutations

import numpy as np

from unimo_ds.demo.objects import KIND_BY_NAME
from unimo_ds.demo.scene import Relation, Scene, Thing, relation

Edge = tuple[int, Relation, int]

NUMBER_WORDS = ("no", "one", "two", "three", "four")
SIZE_WORDS: dict[str, tuple[str, ...]] = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
RELATION_WORDS: dict[Relation, tuple[str, ...]] = {
    "left": ("to the left of", "left of", "on the left of"),
    "right": ("to the right of", "right of", "on the right of"),
    "above": ("above", "over", "higher than"),
    "below": ("below", "beneath", "lower than"),
    "on": ("on", "on top of"),
    "inside": ("inside", "in"),
}
OPPOSITE: dict[Relation, Relation] = {"left": "right", "right": "left", "above": "below", "below": "above"}
SETTING_WORDS: dict[str, tuple[str, ...]] = {
    "meadow": ("in a meadow", "in a grassy field", "on a bright day"),
    "room": ("in a room", "indoors"),
    "beach": ("at the beach", "on a sandy beach"),
    "night": ("at night", "on a dark night", "in the dark"),
    "snow": ("in the snow", "on a snowy day"),
    "checks": ("in front of a checked wall", "against a checked background"),
    "stripes": ("in front of a striped wall", "against a striped background"),
    "plain": ("in front of a plain wall", "against a plain background"),
}

_BACK_REFERENCES: dict[Relation, tuple[str, ...]] = {
    "left": ("to its left", "on its left"),
    "right": ("to its right", "on its right"),
    "above": ("above it", "over it"),
    "below": ("below it", "beneath it"),
    "on": ("on it", "on top of it"),
    "inside": ("inside it", "in it"),
}
_FRAMES = ("{}", "a picture of {}", "a drawing of {}", "a scene with {}", "this image shows {}", "we see {}")
_CAPTION_TRIES = 60


def with_article(phrase: str) -> str:
    """`orange cup` -> `an orange cup`; the world's words have no silent h and no u that sounds like you."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def enumerate_phrases(phrases: Sequence[str]) -> str:
    """`a, b and c`."""
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def as_sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


class Speaker:
    """The words for one scene; draws its choices from `rng`."""

    def __init__(self, scene: Scene, rng: np.random.Generator) -> None:
        self.scene, self.rng = scene, rng
        places = range(len(scene.things))
        named = ((first, relation(scene.things, first, second), second) for first, second in permutations(places, 2))
        self.edges: list[Edge] = [(first, word, second) for first, word, second in named if word is not None]

    def pick(self, choices: Sequence[str]) -> str:
        return choices[int(self.rng.integers(len(choices)))]

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def a_thing(self, place: int) -> str:
        """`a small orange cup`, now and then without the size or the colour."""
        thing = self.scene.things[place]
        return with_article(self._noun_phrase(thing, self.chance(0.35), self.chance(0.88), plural=False))

    def the_thing(self, place: int) -> str | None:
        """`the cup`, `the orange cup`, or None where another thing would answer to that."""
        thing = self.scene.things[place]
        alike = [other for other in self.scene.things if other.kind == thing.kind]
        if len(alike) == 1:
            return f"the {thing.kind}"
        if sum(other.colour == thing.colour for other in alike) == 1:
            return f"the {thing.colour} {thing.kind}"
        return None

    def relation_words(self, word: Relation) -> str:
        return self.pick(RELATION_WORDS[word])

    def setting(self) -> str:
        return self.pick(SETTING_WORDS[self.scene.background])

    def perhaps_setting(self) -> str:
        """The setting with a space before it, or nothing."""
        return f" {self.setting()}" if self.chance(0.35) else ""

    def all_things(self) -> tuple[list[str], int]:
        """A phrase for each group of equal kind and colour, in random order, and the number of things in the first."""
        groups = Counter((thing.kind, thing.colour) for thing in self.scene.things)
        order = self.rng.permutation(len(groups))
        chosen = [list(groups)[int(turn)] for turn in order]
        return [self._group_phrase(kind, colour) for kind, colour in chosen], groups[chosen[0]]

    def _group_phrase(self, kind: str, colour: str) -> str:
        members = [place for place, thing in enumerate(self.scene.things) if (thing.kind, thing.colour) == (kind, colour)]
        if len(members) == 1:
            return self.a_thing(members[0])
        things = [self.scene.things[place] for place in members]
        same_size = len({thing.size for thing in things}) == 1
        phrase = self._noun_phrase(things[0], same_size and self.chance(0.5), True, plural=True)
        return f"{NUMBER_WORDS[len(members)]} {phrase}"

    def _noun_phrase(self, thing: Thing, with_size: bool, with_colour: bool, plural: bool) -> str:
        size = [self.pick(SIZE_WORDS[thing.size])] if with_size else []
        colour = [thing.colour] if with_colour else []
        return " ".join([*size, *colour, KIND_BY_NAME[thing.kind].plural if plural else thing.kind])


# --- the forms of a caption ------------------------------------------------------------------------------------------

Form = Callable[[Speaker], str | None]


def _edge(speaker: Speaker) -> Edge | None:
    """One relation of the scene; what is held by something is told more often than what stands beside it."""
    if not speaker.edges:
        return None
    weights = np.array([3.0 if word in ("on", "inside") else 1.0 for _, word, _ in speaker.edges])
    return speaker.edges[int(speaker.rng.choice(len(weights), p=weights / weights.sum()))]


def _rest(speaker: Speaker, told: Edge) -> str:
    """What is left to say after one relation: a second one about another thing, else the setting."""
    first, _, second = told
    after = [edge for edge in speaker.edges if edge[0] not in (first, second)]
    if not after or speaker.chance(0.4):
        return speaker.perhaps_setting()
    third, word, target = after[int(speaker.rng.integers(len(after)))]
    goal = speaker.the_thing(target) if target in (first, second) else speaker.a_thing(target)
    if goal is None:
        return speaker.perhaps_setting()
    return f"{speaker.pick((' and', ', and', ', with'))} {speaker.a_thing(third)} {speaker.relation_words(word)} {goal}"


def _relation_phrase(speaker: Speaker) -> str | None:
    edge = _edge(speaker)
    if edge is None:
        return None
    first, word, second = edge
    text = f"{speaker.a_thing(first)} {speaker.relation_words(word)} {speaker.a_thing(second)}"
    return text + _rest(speaker, edge)


def _relation_sentence(speaker: Speaker) -> str | None:
    edge = _edge(speaker)
    if edge is None:
        return None
    first, word, second = edge
    verb = speaker.pick(("is", "can be seen", "is shown", "is placed"))
    return f"{speaker.a_thing(first)} {verb} {speaker.relation_words(word)} {speaker.a_thing(second)}{_rest(speaker, edge)}"


def _setting_first(speaker: Speaker) -> str | None:
    edge = _edge(speaker)
    if edge is None:
        return None
    first, word, second = edge
    opening = f"{speaker.setting()}{speaker.pick((',', ', there is'))}"
    verb = "" if opening.endswith("there is") else " is"
    return f"{opening} {speaker.a_thing(first)}{verb} {speaker.relation_words(word)} {speaker.a_thing(second)}"


def _looking_back(speaker: Speaker) -> str | None:
    edge = _edge(speaker)
    if edge is None:
        return None
    first, word, second = edge
    guest = f"{speaker.a_thing(first)} {speaker.pick(_BACK_REFERENCES[word])}"
    return f"{speaker.a_thing(second)} {speaker.pick(('with', 'that has'))} {guest}{speaker.perhaps_setting()}"


def _there_are(speaker: Speaker) -> str:
    phrases, first_count = speaker.all_things()
    return f"there {'is' if first_count == 1 else 'are'} {enumerate_phrases(phrases)}{speaker.perhaps_setting()}"


def _list_with_setting(speaker: Speaker) -> str:
    phrases, _ = speaker.all_things()
    return f"{speaker.pick(_FRAMES).format(enumerate_phrases(phrases))}{speaker.perhaps_setting()}"


def _counted(speaker: Speaker) -> str:
    phrases, _ = speaker.all_things()
    number = NUMBER_WORDS[len(speaker.scene.things)]
    return f"{number} {speaker.pick(('things', 'objects'))} {speaker.setting()}: {enumerate_phrases(phrases)}"


_FORMS: tuple[tuple[Form, float], ...] = (
    (_relation_phrase, 0.3),
    (_relation_sentence, 0.18),
    (_setting_first, 0.1),
    (_looking_back, 0.12),
    (_there_are, 0.1),
    (_list_with_setting, 0.15),
    (_counted, 0.05),
)


def captions(scene: Scene, rng: np.random.Generator, count: int = 5) -> list[str]:
    """`count` different captions of a scene."""
    speaker = Speaker(scene, rng)
    found: dict[str, None] = {}
    for _ in range(_CAPTION_TRIES):
        form = _FORMS[int(rng.choice(len(_FORMS), p=[weight for _, weight in _FORMS]))][0]
        text = form(speaker)
        if text is not None:
            found.setdefault(as_sentence(text))
        if len(found) == count:
            break
    return list(found)
