"""The nearest captions against a search of every pair."""

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from unimo_ds.augment.lexical import LexicalIndex


def captions(count: int) -> tuple[list[str], np.ndarray]:
    """Captions of few words, so that many are equally near; four of each image."""
    rng = np.random.default_rng(3)
    words = [f"word{number}" for number in range(30)]
    texts = [" ".join(rng.choice(words, rng.integers(1, 7), p=_zipf(30))) for _ in range(count)]
    return texts, np.arange(count, dtype=np.int32) // 4


def _zipf(count: int) -> np.ndarray:
    weights = 1 / np.arange(1, count + 1)
    return weights / weights.sum()


@pytest.mark.parametrize("columns", [7, 64, 1000])
def test_blocks_find_what_a_search_of_every_pair_finds(columns: int) -> None:
    texts, images_N = captions(200)
    index = LexicalIndex(texts, images_N, columns=columns)
    found_NK, scores_NK = (
        np.concatenate(parts) for parts in zip(index.nearest(0, 90, 20), index.nearest(90, 200, 20), strict=True)
    )
    vectors = TfidfVectorizer(dtype=np.float32).fit_transform(texts).toarray()
    cosines = vectors.astype(np.float64) @ vectors.T
    cosines[images_N[:, None] == images_N] = 0
    np.testing.assert_allclose(scores_NK, -np.sort(-cosines, axis=1)[:, :20], atol=1e-6)
    for row, (numbers, scores) in enumerate(zip(found_NK, scores_NK, strict=True)):
        kept = numbers[numbers >= 0]
        assert len(set(kept)) == len(kept) == min(20, np.count_nonzero(cosines[row]))
        np.testing.assert_allclose(cosines[row, kept], scores[: len(kept)], atol=1e-6)
        order = list(zip(-scores[: len(kept)], kept, strict=True))
        assert order == sorted(order)  # of equally near ones the first


def test_block_sizes_change_nothing() -> None:
    texts, images_N = captions(200)
    whole = LexicalIndex(texts, images_N).nearest(0, 200, 20)
    for columns in (1, 9, 150):
        for ours, theirs in zip(LexicalIndex(texts, images_N, columns=columns).nearest(0, 200, 20), whole, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_frequent_words_are_left_out_and_rare_ones_decide() -> None:
    texts = ["a dog here", "here cats", "here dog too", "here"]
    images_N = np.arange(4, dtype=np.int32)
    assert LexicalIndex(texts, images_N).nearest(0, 1, 3)[0].tolist() == [[2, 3, 1]]
    numbers_BK, scores_BK = LexicalIndex(texts, images_N, most_captions=2).nearest(0, 4, 3)
    assert numbers_BK[0].tolist() == [2, -1, -1] and numbers_BK[3].tolist() == [-1, -1, -1]
    assert scores_BK[3].tolist() == [0, 0, 0]


def test_captions_without_words_have_no_near_ones() -> None:
    assert (LexicalIndex(["!", "?"], np.arange(2, dtype=np.int32)).nearest(0, 2, 2)[0] == -1).all()
