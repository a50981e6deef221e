"""Recall and its level by chance."""

import numpy as np
import pytest

from unimo_ds.metrics.ranking import chance_of_recall, recall_at


def test_recall_counts_a_query_whose_right_candidate_is_among_the_best() -> None:
    similarity = np.array([[0.9, 0.1, 0.5], [0.2, 0.3, 0.8], [0.1, 0.7, 0.6]])
    right = np.eye(3, dtype=bool)
    assert [recall_at(similarity, right, k) for k in (1, 2, 3)] == [pytest.approx(1 / 3), 1.0, 1.0]


def test_any_right_candidate_will_do() -> None:
    assert recall_at(np.array([[0.1, 0.9, 0.5]]), np.array([[True, True, False]]), 1) == 1.0


def test_a_model_that_gives_one_score_to_all_earns_nothing() -> None:
    assert recall_at(np.zeros((4, 4)), np.eye(4, dtype=bool), 1) == 0.0


def test_a_score_that_is_no_number_earns_nothing() -> None:
    """A model that has diverged must not look perfect."""
    nothing = np.full((4, 4), np.nan)
    assert recall_at(nothing, np.eye(4, dtype=bool), 1) == 0.0
    one_row = np.eye(4)
    one_row[2] = np.nan
    assert recall_at(one_row, np.eye(4, dtype=bool), 1) == 0.75


@pytest.mark.parametrize("k", [1, 2, 5, 20])
def test_chance_is_what_random_scores_reach(k: int) -> None:
    rng = np.random.default_rng(0)
    right = np.zeros((40, 20), dtype=bool)
    for row in right:
        row[rng.choice(20, size=rng.integers(1, 4), replace=False)] = True
    measured = np.mean([recall_at(rng.random((40, 20)), right, k) for _ in range(400)])
    assert chance_of_recall(right, k) == pytest.approx(measured, abs=0.01)


@pytest.mark.parametrize("most", [1, 2, 3])
def test_recall_is_what_sorting_by_hand_gives(most: int) -> None:
    rng = np.random.default_rng(most)
    for _ in range(50):
        similarity, right = rng.random((6, 5)), rng.random((6, 5)) < 0.3
        right[~right.any(axis=1), 0] = True
        best = np.argsort(-similarity, axis=1)[:, :most]
        expected = np.mean([right[query, best[query]].any() for query in range(6)])
        assert recall_at(similarity, right, most) == pytest.approx(expected)


def test_a_tie_with_a_wrong_candidate_counts_against_and_one_with_a_right_one_does_not() -> None:
    similarity = np.array([[0.5, 0.5, 0.1]])
    assert recall_at(similarity, np.array([[True, False, False]]), 1) == 0.0
    assert recall_at(similarity, np.array([[True, False, False]]), 2) == 1.0
    assert recall_at(similarity, np.array([[True, True, False]]), 1) == 1.0


@pytest.mark.parametrize(
    ("right", "most", "chance"),
    [
        ([[1, 0, 0, 0]], 1, 0.25),
        ([[1, 0, 0, 0]], 3, 0.75),
        ([[1, 1, 0, 0]], 2, 1 - 2 / 4 * 1 / 3),
        ([[1, 0, 0, 0], [1, 1, 0, 0]], 1, (0.25 + 0.5) / 2),
        ([[1, 1, 1, 0]], 2, 1.0),
        ([[1, 0, 0, 0]], 9, 1.0),
    ],
)
def test_chance_by_hand(right: list[list[int]], most: int, chance: float) -> None:
    assert chance_of_recall(np.array(right, bool), most) == pytest.approx(chance)
