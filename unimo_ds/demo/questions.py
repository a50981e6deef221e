"""Questions about scenes and their answers, as VQA asks them, each with ten annotators of whom some disagree."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from unimo_ds.demo.grammar import OPPOSITE, SIZE_WORDS, Edge, Speaker, with_article
from unimo_ds.demo.knowledge import FACTS, category_of
from unimo_ds.demo.objects import COLOURS, KIND_BY_NAME, KINDS
from unimo_ds.demo.scene import Relation, Scene, Thing

ANNOTATORS = 10

_COLOUR_NAMES = tuple(colour.name for colour in COLOURS)
_KIND_NAMES = tuple(kind.name for kind in KINDS)
_ANSWER_GROUPS: tuple[tuple[str, ...], ...] = (_COLOUR_NAMES, _KIND_NAMES, tuple(SIZE_WORDS), ("yes", "no"))
_ANSWER_GROUPS += (tuple(str(number) for number in range(5)),)


@dataclass(frozen=True, slots=True)
class Question:
    """`kind` is VQA's question_type, the words it begins with; `answers` holds one answer an annotator."""

    text: str
    kind: str
    answer_type: Literal["yes/no", "number", "other"]
    answer: str
    answers: tuple[str, ...] = ()


Asker = Callable[[Speaker], Question | None]


def questions(scene: Scene, rng: np.random.Generator, count: int = 6) -> list[Question]:
    """Up to `count` different questions about a scene, whose answers its picture shows."""
    return _ask(Speaker(scene, rng), _ASKERS, count)


def knowledge_questions(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Questions that name a thing by its category, which captions never do and the texts always do."""
    return _ask(Speaker(scene, rng), _KNOWLEDGE_ASKERS, len(_KNOWLEDGE_ASKERS))


def _ask(speaker: Speaker, askers: Sequence[Asker], count: int) -> list[Question]:
    found: dict[str, Question] = {}
    for turn in speaker.rng.permutation(len(askers)):
        question = askers[int(turn)](speaker)
        if question is not None and len(found) < count:
            found.setdefault(question.text, _with_annotators(question, speaker))
    return list(found.values())


def _with_annotators(question: Question, speaker: Speaker) -> Question:
    """Adds the ten answers; at every eighth question one to three annotators say something else."""
    dissenters = int(speaker.rng.integers(1, 4)) if speaker.chance(0.125) else 0
    group = next(group for group in _ANSWER_GROUPS if question.answer in group)
    answers = [question.answer] * ANNOTATORS
    for place in speaker.rng.choice(ANNOTATORS, dissenters, replace=False):
        answers[int(place)] = speaker.pick([word for word in group if word != question.answer])
    return Question(question.text, question.kind, question.answer_type, question.answer, tuple(answers))


def _yes_no(text: str, kind: str, truth: bool) -> Question:
    return Question(text, kind, "yes/no", "yes" if truth else "no")


def _some_place(speaker: Speaker) -> int:
    return int(speaker.rng.integers(len(speaker.scene.things)))


def _side(word: Relation, thing: Thing, other: Thing) -> bool:
    """Whether `thing` lies on that side of `other` in the loosest sense: how their middles compare."""
    (x, y), (other_x, other_y) = _middle(thing), _middle(other)
    sides: dict[Relation, bool] = {"left": x < other_x, "right": x > other_x, "above": y < other_y, "below": y > other_y}
    return sides.get(word, False)


def _middle(thing: Thing) -> tuple[float, float]:
    x, y, width, height = thing.box
    return x + width / 2, y + height / 2


def _is_only_one(speaker: Speaker, edge: Edge) -> bool:
    """Whether nobody could name another thing than the edge's first when asked what stands in that relation."""
    first, word, second = edge
    things = speaker.scene.things
    others = [thing for place, thing in enumerate(things) if place not in (first, second)]
    return not any(_side(word, thing, things[second]) for thing in others)


# --- askers ----------------------------------------------------------------------------------------------------------


def _colour_of(speaker: Speaker) -> Question | None:
    thing = speaker.scene.things[_some_place(speaker)]
    if sum(other.kind == thing.kind for other in speaker.scene.things) > 1:
        return None
    return Question(f"What color is the {thing.kind}?", "what color is the", "other", thing.colour)


def _colour_by_relation(speaker: Speaker) -> Question | None:
    edge = _unambiguous_edge(speaker)
    if edge is None:
        return None
    first, word, second = edge
    target, thing = speaker.the_thing(second), speaker.scene.things[first]
    return Question(
        f"What color is the {thing.kind} {speaker.relation_words(word)} {target}?", "what color is the", "other", thing.colour
    )


def _what_is(speaker: Speaker) -> Question | None:
    edge = _unambiguous_edge(speaker)
    if edge is None:
        return None
    first, word, second = edge
    text = f"What is {speaker.relation_words(word)} {speaker.the_thing(second)}?"
    return Question(text, "what is", "other", speaker.scene.things[first].kind)


def _unambiguous_edge(speaker: Speaker) -> Edge | None:
    edges = [edge for edge in speaker.edges if speaker.the_thing(edge[2]) is not None and _is_only_one(speaker, edge)]
    return edges[int(speaker.rng.integers(len(edges)))] if edges else None


def _how_many(speaker: Speaker) -> Question:
    present = [thing.kind for thing in speaker.scene.things]
    kind = speaker.pick(_KIND_NAMES) if speaker.chance(0.2) else speaker.pick(present)
    text = f"How many {KIND_BY_NAME[kind].plural} are there?"
    return Question(text, "how many", "number", str(present.count(kind)))


def _how_many_things(speaker: Speaker) -> Question:
    return Question("How many things are there?", "how many", "number", str(len(speaker.scene.things)))


def _is_there(speaker: Speaker) -> Question:
    """Asks for a thing that is there, or for one that differs from it in its colour or its kind."""
    thing = speaker.scene.things[_some_place(speaker)]
    kind, colour = thing.kind, thing.colour
    if speaker.chance(0.5):
        kind, colour = (kind, speaker.pick(_COLOUR_NAMES)) if speaker.chance(0.6) else (speaker.pick(_KIND_NAMES), colour)
    truth = any((other.kind, other.colour) == (kind, colour) for other in speaker.scene.things)
    return _yes_no(f"Is there {with_article(f'{colour} {kind}')}?", "is there a", truth)


def _is_related(speaker: Speaker) -> Question | None:
    edges = [(first, word, second) for first, word, second in speaker.edges if word in OPPOSITE]
    if not edges:
        return None
    first, word, second = edges[int(speaker.rng.integers(len(edges)))]
    thing, target, truth = speaker.the_thing(first), speaker.the_thing(second), speaker.chance(0.5)
    if thing is None or target is None:
        return None
    return _yes_no(f"Is {thing} {speaker.relation_words(word if truth else OPPOSITE[word])} {target}?", "is the", truth)


def _which_size(speaker: Speaker) -> Question | None:
    place = _some_place(speaker)
    thing = speaker.the_thing(place)
    if thing is None:
        return None
    return Question(f"Is {thing} small or large?", "is the", "other", speaker.scene.things[place].size)


def _colour_of_category(speaker: Speaker) -> Question | None:
    thing = speaker.scene.things[_some_place(speaker)]
    category = category_of(thing.kind)
    if sum(category_of(other.kind) == category for other in speaker.scene.things) > 1:
        return None
    return Question(f"What color is the {category}?", "what color is the", "other", thing.colour)


def _is_there_category(speaker: Speaker) -> Question:
    present = [category_of(thing.kind) for thing in speaker.scene.things]
    every = sorted({facts.category for facts in FACTS.values()})
    category = speaker.pick(present if speaker.chance(0.5) else every)
    return _yes_no(f"Is there {with_article(category)}?", "is there a", category in present)


_ASKERS: tuple[Asker, ...] = (
    _colour_of,
    _colour_by_relation,
    _what_is,
    _how_many,
    _how_many_things,
    _is_there,
    _is_related,
    _which_size,
)
_KNOWLEDGE_ASKERS: tuple[Asker, ...] = (_colour_of_category, _is_there_category)
