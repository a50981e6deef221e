"""Recall and its chance level, geometry, and the tokenizer."""

import json
from pathlib import Path

import numpy as np
import pytest

from unimo_ds.errors import DataError
from unimo_ds.metrics import chance_of_recall, recall_at
from unimo_ds.progress import Progress, format_duration
from unimo_ds.regions import intersection_over_union, location_features
from unimo_ds.tokenizer import Tokenizer, train_tokenizer

TEXTS = ["A red cup stands on the table.", "Two dogs run; the cat sleeps.", "naïve café 😀 x", "the the the cup cup"] * 5


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


def test_location_features_of_a_known_box() -> None:
    found = location_features(np.array([[10, 20, 60, 80]], "f4"), width=100, height=200)
    np.testing.assert_allclose(found, [[0.1, 0.1, 0.6, 0.4, 0.15]], rtol=1e-6)


def test_overlap_of_known_boxes() -> None:
    boxes = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30], [3, 3, 3, 3]], "f4")
    found = intersection_over_union(boxes)
    assert found[0, 1] == pytest.approx(50 / 150) and found[0, 2] == 0 and found[0, 0] == 1
    assert np.isfinite(found).all(), "an empty box overlaps nothing"
    np.testing.assert_array_equal(found, found.T)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TEXTS, 400, out)
    return out


def test_special_ids_are_roberta_s(folder: Path) -> None:
    vocabulary = json.loads((folder / "vocab.json").read_text())
    assert [vocabulary[token] for token in ("<s>", "<pad>", "</s>", "<unk>")] == [0, 1, 2, 3]
    tokenizer = Tokenizer(folder)
    assert vocabulary["<mask>"] == tokenizer.mask == tokenizer.size - 1


@pytest.mark.parametrize("text", [*TEXTS[:4], "unseen wörds ☃", "a,b. c!"])
def test_decoding_gives_the_text_back(folder: Path, text: str) -> None:
    tokenizer = Tokenizer(folder)
    (ids,) = tokenizer.encode([text])
    assert tokenizer.decode(ids) == text and min(ids) >= 4


def test_words_and_punctuation_begin_units(folder: Path) -> None:
    tokenizer = Tokenizer(folder)
    (ids,) = tokenizer.encode(["the unseenable cup."])
    starts = tokenizer.starts_word_V[ids]
    pieces = [tokenizer.token(index) for index in ids]
    assert "".join(pieces) == "the unseenable cup."
    assert [piece for piece, first in zip(pieces, starts, strict=True) if first][-1] == "."
    assert starts.sum() <= 4 < len(ids), "the pieces of one word are one unit"
    assert [piece for piece, first in zip(pieces, starts, strict=True) if first and piece[0] == " "]


def test_training_is_deterministic(folder: Path, tmp_path: Path) -> None:
    train_tokenizer(TEXTS, 400, tmp_path)
    assert Tokenizer(tmp_path).fingerprint == Tokenizer(folder).fingerprint


def test_a_folder_that_is_no_tokenizer(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no vocab\.json and no merges\.txt: not a tokenizer folder"):
        Tokenizer(tmp_path)
    (tmp_path / "merges.txt").write_text("")
    (tmp_path / "vocab.json").write_text('{"a": 0, "<mask>": 1}')
    with pytest.raises(DataError, match="special tokens have ids"):
        Tokenizer(tmp_path)


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (75, "1:15"), (3725, "1:02:05")])
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_progress_says_count_rate_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("reading", 200, "images") as progress:
        progress._start -= 10
        progress.advance(50)
        assert "reading: 50/200 images, 5.0 images/s, 0:10 so far, 0:30 left" in progress.line()
        progress.advance(150)
    assert "200/200" in capsys.readouterr().err


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
