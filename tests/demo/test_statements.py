"""Held-out statements: exactly one of each choice is true, and only the picture (with the texts, for categories) tells."""

import math
import re
from collections import Counter
from collections.abc import Callable

import pytest

from unimo_ds.demo import grammar, knowledge, statements
from unimo_ds.demo.scene import Scene, compose, generator
from unimo_ds.demo.truth import judge
from unimo_ds.rewrites import Rewrite, RewrittenCaption, dump_caption, parse_caption

SCENES = [compose(1, "val", index) for index in range(200)]
SCENE_OF = {f"val/val_{index:06}.jpg": scene for index, scene in enumerate(SCENES)}
HELD_OUT = [statement for scene in SCENES for statement in statements.held_out(scene)]
KNOWLEDGE = statements.knowledge(SCENES)
EVERY = HELD_OUT + KNOWLEDGE


def captions(split: str, scenes: int) -> list[str]:
    return [
        text
        for index in range(scenes)
        for text in grammar.captions(compose(1, split, index), generator(1, split, index, "captions"))
    ]


def test_the_true_one_is_true_and_the_others_are_false() -> None:
    for statement in EVERY:
        scene = SCENE_OF[statement.image]
        assert judge(statement.text, scene).true is True, statement
        for negative in statement.negatives:
            assert judge(negative.text, scene).true is False, negative


@pytest.mark.parametrize(("told", "false"), [(HELD_OUT, 4), (KNOWLEDGE, 3)], ids=["held_out", "knowledge"])
def test_one_or_two_statements_a_picture_with_different_false_ones(told: list[RewrittenCaption], false: int) -> None:
    assert set(Counter(statement.image for statement in told)) == set(SCENE_OF)
    assert max(Counter(statement.image for statement in told).values()) == 2
    for statement in told:
        texts = {statement.text, *(negative.text for negative in statement.negatives)}
        assert len(texts) == false + 1
        assert parse_caption(dump_caption(statement)) == statement


def test_the_changed_words_are_those_of_the_reason_and_the_rest_is_the_same() -> None:
    for statement in EVERY:
        for negative in statement.negatives:
            changed, (start, end) = words_of(negative), negative.changed or (0, 0)
            assert negative.text[start:end].lower().removeprefix("an ").removeprefix("a ") == changed[2]
            head, tail = negative.text[:start].lower(), negative.text[end:]
            original = statement.text.lower()
            assert original.startswith(head) and original.endswith(tail)
            assert original[len(head) : len(original) - len(tail)].removeprefix("an ").removeprefix("a ") == changed[1]


def words_of(negative: Rewrite) -> tuple[str, str, str]:
    """Sort, true word and false word of a reason."""
    match = re.fullmatch(r"(\w+): (.+) -> (.+)", negative.reason)
    assert match
    return match[1], match[2], match[3]


def test_false_ones_are_good_english() -> None:
    for statement in EVERY:
        for negative in statement.negatives:
            assert re.fullmatch(r"[A-Z][a-z]*[a-z ,:]*\.", negative.text), negative
            assert not re.search(r"\b(a [aeiou]|an [^aeiou])", negative.text, re.IGNORECASE), negative


def test_every_sort_of_change_occurs() -> None:
    sorts = Counter(words_of(negative)[0] for statement in HELD_OUT for negative in statement.negatives)
    assert set(sorts) == {"kind", "colour", "size", "relation", "setting"} and min(sorts.values()) > 0.05 * sum(sorts.values())


def test_categories_are_in_the_texts_and_in_no_caption() -> None:
    said = set(re.findall(r"\w+", " ".join(captions("train", 300) + captions("val", 200)).lower()))
    corpus = knowledge.corpus(1, 1200).lower()
    for statement in KNOWLEDGE:
        for category in {words_of(negative)[1] for negative in statement.negatives} | {
            words_of(negative)[2] for negative in statement.negatives
        }:
            assert not said & set(category.split()) - {"of"} and f" {category}" in corpus


def test_no_thing_of_the_picture_is_of_a_false_category() -> None:
    for statement in KNOWLEDGE:
        present = {knowledge.category_of(thing.kind) for thing in SCENE_OF[statement.image].things}
        assert not present & {words_of(negative)[2] for negative in statement.negatives}


def test_a_category_is_true_as_often_as_any_other() -> None:
    """So one who prefers certain categories, whichever they are, gets chance, 1 in 4."""
    true = Counter(words_of(statement.negatives[0])[1] for statement in KNOWLEDGE)
    false = Counter(words_of(negative)[2] for statement in KNOWLEDGE for negative in statement.negatives)
    assert set(true) == {facts.category for facts in knowledge.FACTS.values()}
    for category, count in true.items():
        assert 0.2 < count / (count + false[category]) < 0.3, category


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_model_of_the_captions_words_alone_does_not_find_the_true_one(length: int) -> None:
    score = language_model(captions("train", 600), length)
    right = [score(statement.text) > max(score(false.text) for false in statement.negatives) for statement in HELD_OUT]
    pairs = [score(statement.text) > score(false.text) for statement in HELD_OUT for false in statement.negatives]
    assert sum(right) / len(right) < 0.2 and 0.4 < sum(pairs) / len(pairs) < 0.6


def language_model(texts: list[str], length: int) -> Callable[[str], float]:
    """The log-probability of a sentence by n-grams with a little added to every count."""

    def windows(text: str) -> list[tuple[str, ...]]:
        words = ["<", *re.findall(r"\w+|[^\w\s]", text.lower()), ">"]
        return [tuple(words[at : at + length]) for at in range(len(words) - length + 1)]

    counts = Counter(window for text in texts for window in windows(text))
    starts = Counter[tuple[str, ...]]()
    for window, count in counts.items():
        starts[window[:-1]] += count
    return lambda text: sum(math.log((counts[window] + 0.1) / (starts[window[:-1]] + 30)) for window in windows(text))


def test_statements_depend_on_their_scene_alone() -> None:
    def of(scene: Scene) -> list[RewrittenCaption]:
        return statements.held_out(scene)

    assert of(compose(1, "val", 7)) == of(SCENES[7]) and of(SCENES[7]) != of(SCENES[8])
    assert statements.knowledge(SCENES[:20]) == KNOWLEDGE[: len(statements.knowledge(SCENES[:20]))]
