"""Scores of classes and of numbers: SST-2, MNLI, SNLI-VE (accuracy), CoLA (Matthews), STS-B (Pearson, Spearman).

Where a correlation is 0 / 0 it is 0.0 here, because a constant prediction tells nothing: scikit-learn's Matthews is the same,
scipy's Pearson and Spearman, which GLUE's evaluation uses, are NaN.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from unimo_ds.metrics.paired import check_paired

Numbers = Sequence[float] | npt.NDArray[np.floating | np.integer]
Vector = npt.NDArray[np.float64]


def accuracy(predictions: Numbers, labels: Numbers) -> float:
    """Share of predictions that are the label."""
    return float(np.mean(np.equal(*_vectors(predictions, labels))))


def matthews_correlation(predictions: Numbers, labels: Numbers) -> float:
    """Matthews correlation of two classes, 0 and 1: the Pearson correlation of their indicators (Matthews, 1975)."""
    if others := {*np.unique(predictions).tolist(), *np.unique(labels).tolist()} - {0, 1}:
        raise ValueError(f"Matthews correlation is for the classes 0 and 1, and there are {sorted(others)}")
    return pearson_correlation(predictions, labels)


def pearson_correlation(predictions: Numbers, targets: Numbers) -> float:
    """Cosine of the deviations from the mean; 0.0 where predictions or targets are all the same."""
    first, second = _vectors(predictions, targets)
    cosine = float(_unit_deviations(first) @ _unit_deviations(second))
    return min(1.0, max(-1.0, cosine))


def spearman_correlation(predictions: Numbers, targets: Numbers) -> float:
    """Pearson correlation of the ranks, where ties share the mean of theirs; 0.0 where all are tied."""
    return pearson_correlation(*map(_average_ranks, _vectors(predictions, targets)))


def _vectors(predictions: Numbers, targets: Numbers) -> tuple[Vector, Vector]:
    check_paired(predictions, targets)
    first, second = np.asarray(predictions, np.float64), np.asarray(targets, np.float64)
    for name, values in (("predictions", first), ("targets", second)):
        if values.ndim != 1:
            raise ValueError(f"{name} have the shape {values.shape}: one number for each item is expected")
        if unusable := np.count_nonzero(~np.isfinite(values)):
            raise ValueError(f"{unusable} of {len(values)} {name} are no finite numbers")
    return first, second


def _average_ranks(values: Vector) -> Vector:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Vector = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return ranks


def _unit_deviations(values: Vector) -> Vector:
    """Deviations from the mean, scaled to length 1; zeros where all values are the same."""
    if np.all(values == values[0]):  # the rounded mean of equal numbers may differ from them
        return np.zeros_like(values)
    deviations = values - values.mean()
    deviations /= np.abs(deviations).max()  # so that no square is too small to represent
    return np.asarray(deviations / np.linalg.norm(deviations))
