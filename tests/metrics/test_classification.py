"""Accuracy and correlations against scikit-learn and scipy, and what they are where nothing varies."""

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.metrics.official import official
from unimo_ds.metrics.classification import accuracy, matthews_correlation, pearson_correlation, spearman_correlation

quick = settings(deadline=None, derandomize=True, max_examples=60)
pairs = st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=2, max_size=12).map(
    lambda of: np.array(of, "f8").T
)
KEPT = official("classification")


@pytest.mark.parametrize("case", KEPT["labels"], ids=lambda case: case["name"])
def test_labels_score_as_by_scikit_learn(case: dict[str, Any]) -> None:
    predictions, labels = np.array(case["predictions"]), np.array(case["labels"])
    assert accuracy(predictions, labels) == pytest.approx(case["accuracy"], abs=1e-9)
    assert matthews_correlation(predictions, labels) == pytest.approx(case["matthews"], abs=1e-9)


@pytest.mark.parametrize("case", KEPT["numbers"], ids=lambda case: case["name"])
def test_numbers_correlate_as_by_scipy_and_are_zero_where_that_is_not_defined(case: dict[str, Any]) -> None:
    for correlation, kept in ((pearson_correlation, case["pearson"]), (spearman_correlation, case["spearman"])):
        expected = 0.0 if kept is None else kept
        assert correlation(case["predictions"], case["targets"]) == pytest.approx(expected, abs=1e-9)


def test_one_kept_case_is_not_defined() -> None:
    assert [case["name"] for case in KEPT["numbers"] if case["pearson"] is None] == ["constant"]


@quick
@given(pairs)
def test_correlations_are_symmetric_bounded_and_blind_to_order(both: np.ndarray[Any, Any]) -> None:
    first, second = both
    for correlation in (pearson_correlation, spearman_correlation):
        score = correlation(first, second)
        assert -1 <= score <= 1
        assert correlation(second, first) == pytest.approx(score, abs=1e-12)
        assert correlation(first[::-1], second[::-1]) == pytest.approx(score, abs=1e-12)
        assert correlation(-first, second) == pytest.approx(-score, abs=1e-12)


@quick
@given(pairs)
def test_what_varies_correlates_wholly_with_itself(both: np.ndarray[Any, Any]) -> None:
    assume(len(set(both[0])) > 1)
    assert pearson_correlation(both[0], 3 * both[0] + 7) == pytest.approx(1)
    assert spearman_correlation(both[0], both[0] ** 3) == pytest.approx(1)


@pytest.mark.parametrize("score", [accuracy, matthews_correlation, pearson_correlation, spearman_correlation])
def test_inputs_that_cannot_be_scored(score: Any) -> None:
    with pytest.raises(ValueError, match="2 predictions but 3 references"):
        score([0, 1], [0, 1, 1])
    with pytest.raises(ValueError, match="0 predictions and 0 references: there is nothing to score"):
        score([], [])


@pytest.mark.parametrize("score", [accuracy, pearson_correlation, spearman_correlation])
def test_no_score_of_what_is_no_number_or_no_list_of_numbers(score: Any) -> None:
    with pytest.raises(ValueError, match="2 of 3 predictions are no finite numbers"):
        score([np.nan, 1, np.inf], [0, 1, 1])
    with pytest.raises(ValueError, match="1 of 3 targets are no finite numbers"):
        score([0, 1, 1], [np.nan, 1, 0])
    with pytest.raises(ValueError, match=r"predictions have the shape \(3, 1\)"):
        score(np.zeros((3, 1)), np.zeros(3))


def test_matthews_is_for_two_classes() -> None:
    with pytest.raises(ValueError, match=r"for the classes 0 and 1, and there are \[2\]"):
        matthews_correlation([0, 1, 2], [0, 1, 1])
