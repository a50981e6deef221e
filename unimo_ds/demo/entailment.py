"""Hypotheses about scenes that their pictures confirm, rule out, or leave open, as SNLI-VE has them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from unimo_ds.demo.grammar import NUMBER_WORDS, OPPOSITE, Speaker, as_sentence, with_article
from unimo_ds.demo.objects import COLOURS, KIND_BY_NAME, KINDS
from unimo_ds.demo.scene import Scene

Label = Literal["entailment", "neutral", "contradiction"]
LABELS: tuple[Label, ...] = ("entailment", "neutral", "contradiction")


@dataclass(frozen=True, slots=True)
class Hypothesis:
    text: str
    label: Label


_UNSEEN = (
    "{} belongs to a child",
    "{} is brand new",
    "{} was a gift",
    "{} is very expensive",
    "{} will be sold tomorrow",
    "{} was found by a stranger",
    "somebody is looking for {}",
    "{} is the oldest thing here",
    "{} was bought last week",
)
_TRIES = 20


def hypotheses(scene: Scene, rng: np.random.Generator) -> list[Hypothesis]:
    """Two true, two open and two false statements about a scene, at most; fewer where the scene offers no more."""
    speaker = Speaker(scene, rng)
    found: dict[str, Hypothesis] = {}
    for label in LABELS:
        wanted = len(found) + 2
        for _ in range(_TRIES):
            text = _STATERS[label][int(rng.integers(len(_STATERS[label])))](speaker)
            if text is not None and len(found) < wanted:
                found.setdefault(text, Hypothesis(as_sentence(text), label))
    return list(found.values())


def _relation(speaker: Speaker, truth: bool) -> str | None:
    """A relation between two things that are named without doubt, or its opposite."""
    edges = [edge for edge in speaker.edges if truth or edge[1] in OPPOSITE]
    if not edges:
        return None
    first, word, second = edges[int(speaker.rng.integers(len(edges)))]
    thing, target = speaker.the_thing(first), speaker.the_thing(second)
    if thing is None or target is None:
        return None
    return f"{thing} is {speaker.relation_words(word if truth else OPPOSITE[word])} {target}"


def _colour(speaker: Speaker, truth: bool) -> str | None:
    thing = speaker.scene.things[int(speaker.rng.integers(len(speaker.scene.things)))]
    if sum(other.kind == thing.kind for other in speaker.scene.things) > 1:
        return None
    colour = thing.colour if truth else speaker.pick([colour.name for colour in COLOURS if colour.name != thing.colour])
    return f"the {thing.kind} is {colour}"


def _presence(speaker: Speaker, truth: bool) -> str:
    things = speaker.scene.things
    model = things[int(speaker.rng.integers(len(things)))]
    present = {thing.kind for thing in things}
    kind = model.kind if truth else speaker.pick([kind.name for kind in KINDS if kind.name not in present])
    return f"there is {with_article(f'{model.colour} {kind}')} in the picture"


def _number(speaker: Speaker, truth: bool) -> str:
    count = len(speaker.scene.things)
    told = count if truth else int(speaker.rng.choice([number for number in (2, 3, 4) if number != count]))
    return f"there are {NUMBER_WORDS[told]} things in the picture"


def _kind_number(speaker: Speaker, truth: bool) -> str | None:
    kinds = [thing.kind for thing in speaker.scene.things]
    kind = speaker.pick(kinds)
    count = kinds.count(kind)
    told = count if truth else count + 1
    return f"there are {NUMBER_WORDS[told]} {KIND_BY_NAME[kind].plural}" if told > 1 and told < len(NUMBER_WORDS) else None


def _unseen(speaker: Speaker) -> str | None:
    thing = speaker.the_thing(int(speaker.rng.integers(len(speaker.scene.things))))
    return None if thing is None else speaker.pick(_UNSEEN).format(thing)


Stater = Callable[[Speaker], str | None]
_CHECKED: tuple[Callable[[Speaker, bool], str | None], ...] = (_relation, _colour, _presence, _number, _kind_number)


def _told(stater: Callable[[Speaker, bool], str | None], truth: bool) -> Stater:
    return lambda speaker: stater(speaker, truth)


_STATERS: dict[Label, tuple[Stater, ...]] = {
    "entailment": tuple(_told(stater, True) for stater in _CHECKED),
    "neutral": (_unseen,),
    "contradiction": tuple(_told(stater, False) for stater in _CHECKED),
}
