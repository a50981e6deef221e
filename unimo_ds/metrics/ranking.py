"""Recall of retrieval, and what random scores would reach."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

_MOST = (1, 5, 10)  # K of recall@K, as image-text retrieval is reported


def recall_at(similarity_QC: npt.NDArray[np.floating], right_QC: npt.NDArray[np.bool_], most: int) -> float:
    """Share of queries that have a right candidate among their `most` best ones.

    A tie with a wrong candidate counts against the query, and so does a score that is no number, so that a model which gives
    one score to all, or none, earns nothing.

    Args:
        similarity_QC: score of each candidate for each query.
        right_QC: which candidates are right; each query has at least one.
        most: K of recall@K.
    """
    best_right_Q = np.where(right_QC, similarity_QC, -np.inf).max(axis=1, keepdims=True)
    better_Q = (~(similarity_QC < best_right_Q) & ~right_QC).sum(axis=1)
    return float((better_Q < most).mean())


def chance_of_recall(right_QC: npt.NDArray[np.bool_], most: int) -> float:
    """Expected recall@K of random scores: one minus the chance that `most` draws without return are all wrong."""
    candidates = right_QC.shape[1]
    wrong_Q = candidates - right_QC.sum(axis=1)
    draws = np.arange(min(most, candidates))
    miss_Q = np.prod(np.clip(wrong_Q[:, None] - draws, 0, None) / (candidates - draws), axis=1)
    return float((1 - miss_Q).mean())


def recall_both_ways(similarity_XI: npt.NDArray[np.floating], right_XI: npt.NDArray[np.bool_]) -> dict[str, float]:
    """Recall at 1, 5 and 10 of images by texts (`t2i_r1` ..) and of texts by images (`i2t_r1` ..), of [texts, images]."""
    return _both_ways(
        lambda most: recall_at(similarity_XI, right_XI, most), lambda most: recall_at(similarity_XI.T, right_XI.T, most)
    )


def chance_both_ways(right_XI: npt.NDArray[np.bool_]) -> dict[str, float]:
    """The same of random scores."""
    return _both_ways(lambda most: chance_of_recall(right_XI, most), lambda most: chance_of_recall(right_XI.T, most))


def _both_ways(images_by_texts: Callable[[int], float], texts_by_images: Callable[[int], float]) -> dict[str, float]:
    ways = {"t2i": images_by_texts, "i2t": texts_by_images}
    return {f"{name}_r{most}": found(most) for name, found in ways.items() for most in _MOST}
