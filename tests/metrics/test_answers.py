"""VQA, SQuAD and CoQA against their official evaluations."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.metrics.official import official
from unimo_ds.metrics.answers import (
    coqa_scores,
    normalize_answer,
    normalize_vqa_answer,
    squad_scores,
    vqa_accuracy,
    vqa_soft_targets,
)

quick = settings(deadline=None, derandomize=True, max_examples=60)
words = st.sampled_from(
    ["yes", "Yes.", "no", "the dog", "dog", "two", "2", "1,000", "10:30", "don't", "dont", "", "a", "t-shirt", "é"]
)
KEPT = official("answers")


def test_vqa_answers_are_normalized_as_by_the_official_tools() -> None:
    assert {text: normalize_vqa_answer(text) for text in KEPT["vqa_normalized"]} == KEPT["vqa_normalized"]


@pytest.mark.parametrize(
    ("answer", "normalized"),
    [
        ("1,000", "1000"),
        ("10:30", "10:30"),
        ("3.5", "3.5"),
        ("5.", "5"),
        ("The Dog's", "dog's"),
        ("dont", "don't"),
        ("none", "0"),
        ("ten o'clock.", "10 o'clock"),
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("a, b", "b"),
    ],
)
def test_vqa_normalization_by_hand(answer: str, normalized: str) -> None:
    assert normalize_vqa_answer(answer) == normalized


@pytest.mark.parametrize("case", KEPT["vqa"], ids=lambda case: repr(case["prediction"]))
def test_vqa_accuracy_is_the_official_one(case: dict[str, Any]) -> None:
    assert vqa_accuracy([case["prediction"]], [case["answers"]]) == pytest.approx(case["accuracy"], abs=1e-9)


def test_vqa_accuracy_is_the_mean_over_questions() -> None:
    accuracy = vqa_accuracy([case["prediction"] for case in KEPT["vqa"]], [case["answers"] for case in KEPT["vqa"]])
    assert accuracy == pytest.approx(sum(case["accuracy"] for case in KEPT["vqa"]) / len(KEPT["vqa"]), abs=1e-9)


def test_where_all_annotators_agree_theirs_is_the_only_spelling() -> None:
    assert vqa_accuracy(["Yes."], [["yes"] * 10]) == 0
    assert vqa_accuracy(["Yes."], [["yes"] * 9 + ["no"]]) == 1


@pytest.mark.parametrize(("count", "target"), [(1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_soft_targets_of_ten_annotators(count: int, target: float) -> None:
    targets = vqa_soft_targets(["The cat."] * count + [f"other {number}" for number in range(10 - count)])
    assert targets["cat"] == pytest.approx(target, abs=1e-12)


@quick
@given(st.lists(words, min_size=10, max_size=10).filter(lambda answers: len(set(answers)) > 1))
def test_a_soft_target_is_what_its_answer_would_score(answers: list[str]) -> None:
    targets = vqa_soft_targets(answers)
    for answer in answers:
        assert vqa_accuracy([answer], [answers]) == pytest.approx(targets[normalize_vqa_answer(answer)])
    assert all(0 < target <= 1 for target in targets.values())


@pytest.mark.parametrize("case", KEPT["spans"], ids=lambda case: repr(case["prediction"]))
def test_squad_and_coqa_are_the_official_scores(case: dict[str, Any]) -> None:
    item = [case["prediction"]], [case["references"]]
    assert squad_scores(*item) == pytest.approx(case["squad_2"], abs=1e-9)
    assert coqa_scores(*item) == pytest.approx(case["coqa"], abs=1e-9)


def test_squad_1_differs_only_where_nothing_is_left_on_either_side() -> None:
    differ = [case for case in KEPT["spans"] if case["squad_1"] != pytest.approx(case["squad_2"], abs=1e-9)]
    assert {case["prediction"] for case in differ} == {"", "the", "!!!"}
    for case in differ:
        assert (case["squad_1"], case["squad_2"]) == ([1, 0], [1, 1])
        assert "" in map(normalize_answer, case["references"]) and normalize_answer(case["prediction"]) == ""


@quick
@given(st.lists(st.tuples(words, st.lists(words, min_size=1, max_size=4)), min_size=1, max_size=5), st.randoms())
def test_answer_scores_are_bounded_means_blind_to_order(items: list[tuple[str, list[str]]], random: Any) -> None:
    shuffled = [(prediction, random.sample(of, len(of))) for prediction, of in random.sample(items, len(items))]
    for score in (squad_scores, coqa_scores):
        exact_match, f1 = score(*zip(*items, strict=True))
        assert 0 <= exact_match <= f1 <= 1
        assert score(*zip(*shuffled, strict=True)) == pytest.approx((exact_match, f1))


@quick
@given(st.lists(words, min_size=1, max_size=5))
def test_a_perfect_answer_scores_one(answers: list[str]) -> None:
    assert squad_scores(answers, [["something else", answer] for answer in answers]) == (1, 1)
    assert coqa_scores(answers, [[answer, answer] for answer in answers]) == (1, 1)
    assert coqa_scores(answers, [[answer] for answer in answers]) == (1, 1)


@pytest.mark.parametrize("score", [vqa_accuracy, squad_scores, coqa_scores])
def test_answers_that_cannot_be_scored(score: Any) -> None:
    with pytest.raises(ValueError, match="1 predictions but 2 references"):
        score(["a"], [["a"], ["b"]])
    with pytest.raises(ValueError, match="nothing to score"):
        score([], [])
    with pytest.raises(ValueError, match="item 1: has no reference"):
        score(["a", "b"], [["a"], []])
    with pytest.raises(ValueError, match="item 0: a list of references is expected, not one text: 'yes'"):
        score(["yes"], ["yes"])


def test_no_answers_make_no_targets() -> None:
    with pytest.raises(ValueError, match="0 answers"):
        vqa_soft_targets([])
