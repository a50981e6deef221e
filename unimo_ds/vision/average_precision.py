"""Average precision as COCO defines it (101 recall points, greedy matching by score), and attribute accuracy.

Shape suffixes: n true objects and R detections of one image, D detections of one class in all images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unimo_ds.regions import Regions, best_objects
from unimo_ds.vision.coco import Objects

THRESHOLDS = np.linspace(0.5, 0.95, 10)
_RECALLS = np.linspace(0, 1, 101)
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Quality:
    """`ap50` and `ap` (mean over IoU .5 to .95) over the classes that occur; accuracy of the attribute of matched boxes."""

    ap50: float
    ap: float
    attribute_accuracy: float


def box_overlaps(boxes_R4: npt.NDArray[np.floating], others_n4: npt.NDArray[np.floating]) -> Floats:
    """IoU of each of `boxes` with each of `others`, float64 [R, n]."""
    low = np.maximum(boxes_R4[:, None, :2], others_n4[None, :, :2])
    high = np.minimum(boxes_R4[:, None, 2:], others_n4[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2, dtype=float)
    areas = [(b[:, 2:] - b[:, :2]).prod(axis=1, dtype=float) for b in (boxes_R4, others_n4)]
    union = areas[0][:, None] + areas[1][None] - shared
    overlaps_Rn: Floats = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return overlaps_Rn


def match(overlaps_Rn: Floats, threshold: float) -> npt.NDArray[np.int64]:
    """For each detection (best first) the free object that it overlaps most, at least by `threshold`; -1 for none."""
    free_n = np.ones(overlaps_Rn.shape[1], bool)
    matched_R = np.full(len(overlaps_Rn), -1)
    for row, overlaps_n in enumerate(overlaps_Rn):
        candidates_n = np.where(free_n, overlaps_n, -1.0)
        if len(candidates_n) and candidates_n.max() >= threshold:
            matched_R[row] = candidates_n.argmax()
            free_n[matched_R[row]] = False
    return matched_R


def average_precision(scores_D: Floats, is_right_D: npt.NDArray[np.bool_], objects: int) -> float:
    """Mean over 101 recalls of the best precision at that recall or beyond.

    Args:
        scores_D, is_right_D: of all detections of one class; `objects` is how many there are to be found, at least one.
    """
    order = np.argsort(-scores_D, kind="stable")
    right_D = np.cumsum(is_right_D[order])
    precision_D = right_D / np.arange(1, len(right_D) + 1)
    precision_D = np.maximum.accumulate(precision_D[::-1])[::-1]
    first = np.searchsorted(right_D / objects, _RECALLS, side="left")
    return float(np.append(precision_D, 0.0)[first].mean())


def measure_quality(found: Sequence[Regions], true: Sequence[Objects]) -> Quality:
    """Compares detections with annotations, image by image."""
    classes = sorted({int(label) for objects in true for label in objects.labels_n})
    by_class = np.array([[_class_precision(found, true, c, threshold) for threshold in THRESHOLDS] for c in classes])
    agreed = np.concatenate([_attribute_hits(r, o) for r, o in zip(found, true, strict=True)] or [np.zeros(0, bool)])
    if not classes:
        return Quality(0.0, 0.0, 0.0)
    return Quality(float(by_class[:, 0].mean()), float(by_class.mean()), float(agreed.mean()) if len(agreed) else 0.0)


def _class_precision(found: Sequence[Regions], true: Sequence[Objects], label: int, threshold: float) -> float:
    scores, hits, count = [], [], 0
    for regions, objects in zip(found, true, strict=True):
        labels_R, scores_R = best_objects(regions)
        rows = np.flatnonzero(labels_R == label)
        rows = rows[np.argsort(-scores_R[rows], kind="stable")]
        wanted_n4 = objects.boxes_n4[objects.labels_n == label]
        count += len(wanted_n4)
        scores.append(scores_R[rows])
        hits.append(match(box_overlaps(regions.boxes_R4[rows], wanted_n4), threshold) >= 0)
    return average_precision(np.concatenate(scores), np.concatenate(hits), count)


def _attribute_hits(regions: Regions, objects: Objects) -> npt.NDArray[np.bool_]:
    """For objects with an attribute that some region of their class covers: is that region's attribute the right one?"""
    labels_R, _ = best_objects(regions)
    overlaps_Rn = box_overlaps(regions.boxes_R4, objects.boxes_n4)
    matched_R = match(np.where(labels_R[:, None] == objects.labels_n[None], overlaps_Rn, 0.0), 0.5)
    rows = np.flatnonzero(matched_R >= 0)
    wanted = objects.attributes_n[matched_R[rows]]
    is_right: npt.NDArray[np.bool_] = (regions.attribute_ids_R[rows].astype(np.int64) == wanted)[wanted > 0]
    return is_right
