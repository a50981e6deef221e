"""Two detectors' regions of one image, compared: boxes matched one to one, then what the matched ones say.

Shape suffixes: R regions of the store, P regions of the reference, M matched pairs, F feature width.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unimo_ds.regions import Regions, best_objects

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Pairs = tuple[Ints, Ints]

_SAME_OVERLAP = 3  # decimals: boxes that overlap alike so far are told apart by their features


@dataclass(frozen=True)
class Labels:
    """Classes, or attributes, of the matched pairs, and how far their probabilities are `off` on average."""

    ours_M: Ints
    theirs_M: Ints
    off: float

    @property
    def agreement(self) -> float | None:
        """Share of equal ones; None where nothing can be compared."""
        return float((self.ours_M == self.theirs_M).mean()) if len(self.ours_M) else None


@dataclass(frozen=True)
class Comparison:
    """One image.

    Attributes:
        key, golden_key: its name in the store and in the reference.
        ours, theirs: numbers of boxes.
        pairs: indices of the matched boxes on both sides.
        shift_4: mean of (here less reference) of x1, y1, width, height of the matched boxes, in pixels of the store's image.
        cosines_M: of the matched boxes' features; empty where their widths differ.
        lengths_M: length of our feature by theirs.
        classes, attributes: of the matched boxes; None where one side has none.
        same_size: whether both give the image the same size.
    """

    key: str
    golden_key: str
    ours: int
    theirs: int
    pairs: Pairs
    shift_4: Floats
    cosines_M: Floats
    lengths_M: Floats
    classes: Labels | None
    attributes: Labels | None
    same_size: bool

    @property
    def matched(self) -> int:
        return len(self.pairs[0])

    @property
    def share(self) -> float:
        """Of all boxes of both sides, how many are matched; 1 where neither has any."""
        return 2 * self.matched / (self.ours + self.theirs) if self.ours + self.theirs else 1.0

    @property
    def reordered(self) -> bool:
        """Whether matched boxes come in another order."""
        ours, theirs = self.pairs
        return bool((np.diff(theirs[np.argsort(ours)]) < 0).any())


def overlaps(ours_R4: npt.NDArray[np.floating], theirs_P4: npt.NDArray[np.floating]) -> Floats:
    """IoU of every pair, [R, P]; boxes without area overlap with equal ones only."""
    ours, theirs = ours_R4.astype(np.float64)[:, None], theirs_P4.astype(np.float64)[None]
    sides = np.minimum(ours[..., 2:], theirs[..., 2:]) - np.maximum(ours[..., :2], theirs[..., :2])
    shared: Floats = np.clip(sides, 0, None).prod(axis=-1)
    areas = [np.clip(boxes[..., 2:] - boxes[..., :2], 0, None).prod(axis=-1) for boxes in (ours, theirs)]
    union = areas[0] + areas[1] - shared
    found: Floats = (ours == theirs).all(axis=-1).astype(np.float64)
    np.divide(shared, union, out=found, where=union > 0)
    return found


def match(overlaps_RP: Floats, least: float, likeness_RP: Floats | None = None) -> Pairs:
    """Matches boxes one to one, those that overlap most first, at `least` so much.

    Args:
        likeness_RP: of two equally good matches decides which is taken: one box may be there twice, as two objects.
    """
    rows, columns = np.nonzero(overlaps_RP >= least)
    likeness = np.zeros(len(rows)) if likeness_RP is None else likeness_RP[rows, columns]
    order = np.lexsort((-likeness, -overlaps_RP[rows, columns].round(_SAME_OVERLAP)))
    free_R, free_P = np.ones(overlaps_RP.shape[0], bool), np.ones(overlaps_RP.shape[1], bool)
    kept = []
    for place in order:
        if free_R[rows[place]] and free_P[columns[place]]:
            free_R[rows[place]] = free_P[columns[place]] = False
            kept.append(place)
    return rows[kept].astype(np.int64), columns[kept].astype(np.int64)


def cosines(ours_RF: npt.NDArray[np.floating], theirs_PF: npt.NDArray[np.floating]) -> Floats:
    """Cosine of every pair, [R, P]; a zero vector's is 1 with another zero vector and 0 with any else."""
    ours, theirs = ours_RF.astype(np.float64), theirs_PF.astype(np.float64)
    ours_R1, theirs_P1 = (np.linalg.norm(side, axis=1, keepdims=True) for side in (ours, theirs))
    found = (ours / np.where(ours_R1, ours_R1, 1)) @ (theirs / np.where(theirs_P1, theirs_P1, 1)).T
    both_zero = (ours_R1 == 0) & (theirs_P1 == 0).T
    return np.asarray(np.where(both_zero, 1.0, found))


def theirs_on_our_image(ours: Regions, theirs: Regions) -> Floats:
    """The reference's boxes in pixels of our image: scaled where it says that the image has another size."""
    scale = np.array([ours.width / max(theirs.width, 1), ours.height / max(theirs.height, 1)] * 2)
    boxes_P4: Floats = theirs.boxes_R4.astype(np.float64) * scale
    return boxes_P4


def compare(key: str, golden_key: str, ours: Regions, theirs: Regions, least_overlap: float) -> Comparison:
    """Compares two records of one image."""
    boxes_P4 = theirs_on_our_image(ours, theirs)
    comparable = ours.features_RF.shape[1] == theirs.features_RF.shape[1]
    likeness_RP = cosines(ours.features_RF, theirs.features_RF) if comparable else None
    pairs = match(overlaps(ours.boxes_R4, boxes_P4), least_overlap, likeness_RP)
    lengths_M = np.zeros(0)
    if comparable:
        ours_M, theirs_M = (
            np.linalg.norm(side.features_RF[rows].astype(np.float64), axis=1)
            for side, rows in zip((ours, theirs), pairs, strict=True)
        )
        lengths_M = np.divide(ours_M, theirs_M, out=np.ones(len(ours_M)), where=theirs_M > 0)
    difference_M4 = _as_sides(ours.boxes_R4[pairs[0]]) - _as_sides(boxes_P4[pairs[1]])
    return Comparison(
        key,
        golden_key,
        len(ours),
        len(theirs),
        pairs,
        difference_M4.mean(axis=0) if len(difference_M4) else np.zeros(4),
        likeness_RP[pairs] if likeness_RP is not None else np.zeros(0),
        lengths_M,
        _classes(ours, theirs, pairs),
        _attributes(ours, theirs, pairs),
        (ours.width, ours.height) == (theirs.width, theirs.height),
    )


def _as_sides(boxes_M4: npt.NDArray[np.floating]) -> Floats:
    """x1, y1, width, height."""
    boxes = boxes_M4.astype(np.float64)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def _classes(ours: Regions, theirs: Regions, pairs: Pairs) -> Labels | None:
    """The most probable class besides the background of each pair."""
    if not (ours.class_ids_RK.shape[1] and theirs.class_ids_RK.shape[1]):
        return None
    (ours_R, ours_scores_R), (theirs_P, theirs_scores_P) = best_objects(ours), best_objects(theirs)
    off_M = np.abs(ours_scores_R[pairs[0]] - theirs_scores_P[pairs[1]])
    return Labels(ours_R[pairs[0]], theirs_P[pairs[1]], float(off_M.mean()) if len(off_M) else 0.0)


def _attributes(ours: Regions, theirs: Regions, pairs: Pairs) -> Labels | None:
    """None where one side names no attribute at all: then it has none."""
    if not (ours.attribute_ids_R.any() and theirs.attribute_ids_R.any()):
        return None
    probabilities = [
        side.attribute_probabilities_R[rows].astype(np.float64) for side, rows in zip((ours, theirs), pairs, strict=True)
    ]
    off = float(np.abs(probabilities[0] - probabilities[1]).mean()) if len(pairs[0]) else 0.0
    return Labels(ours.attribute_ids_R[pairs[0]].astype(np.int64), theirs.attribute_ids_R[pairs[1]].astype(np.int64), off)
