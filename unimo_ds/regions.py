"""The regions of one image: boxes, pooled features, class distributions, and their geometry.

Shape suffixes: R regions, K kept classes of the distribution, F feature width.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

BACKGROUND = 0  # class 0 of every detector's distribution is "no object" (unimo-spec, 11.9)

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Regions:
    """What a detector says of one image, best region first.

    Attributes:
        width, height: the image's size in pixels, as stored on disk.
        boxes_R4: float32 `x1, y1, x2, y2` in pixels of the image on disk.
        features_RF: float16 pooled vector of each region.
        class_ids_RK: uint16, the most probable classes, best first; 0 is background. A detector that keeps a region as several
            classes puts the one it was kept as first.
        class_probabilities_RK: float16, their probabilities (the rest of the mass is not kept).
        attribute_ids_R: uint16, the most probable attribute; 0 is "none".
        attribute_probabilities_R: float16.
    """

    width: int
    height: int
    boxes_R4: npt.NDArray[np.float32]
    features_RF: npt.NDArray[np.float16]
    class_ids_RK: npt.NDArray[np.uint16]
    class_probabilities_RK: npt.NDArray[np.float16]
    attribute_ids_R: npt.NDArray[np.uint16]
    attribute_probabilities_R: npt.NDArray[np.float16]

    def __len__(self) -> int:
        return len(self.boxes_R4)

    def only(self, chosen: slice | npt.NDArray[np.integer]) -> "Regions":
        """Some of the regions, in the order that they are named in."""
        parts: dict[str, Any] = {name: values[chosen] for name, values in vars(self).items() if isinstance(values, np.ndarray)}
        return replace(self, **parts)


def best_objects(regions: Regions) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The most probable class that is not the background, and its probability, of each region: int64 [R], float64 [R]."""
    is_object_RK = regions.class_ids_RK != BACKGROUND
    first_R = is_object_RK.argmax(axis=1)
    rows = np.arange(len(regions))
    return regions.class_ids_RK[rows, first_R].astype(np.int64), regions.class_probabilities_RK[rows, first_R].astype(float)


def location_features(boxes_R4: npt.NDArray[np.floating], width: int, height: int) -> Array:
    """`[x1/W, y1/H, x2/W, y2/H, (y2-y1)*(x2-x1)/(W*H)]` of each box, float32 [R, 5] (unimo-spec, 1.5; to the last bit)."""
    boxes_R4 = np.asarray(boxes_R4, dtype=np.float32)
    scale = np.array([width, height, width, height], dtype=np.float32)
    relative_R4 = boxes_R4 / scale
    area_R = (boxes_R4[:, 3] - boxes_R4[:, 1]) * (boxes_R4[:, 2] - boxes_R4[:, 0]) / np.float32(width * height)
    return np.concatenate([relative_R4, area_R[:, None]], axis=1)


def intersection_over_union(boxes_R4: npt.NDArray[np.floating]) -> Array:
    """IoU of every pair of boxes of one image, float32 [R, R]."""
    x1, y1, x2, y2 = (boxes_R4[:, i].astype(np.float32) for i in range(4))
    width = np.minimum.outer(x2, x2) - np.maximum.outer(x1, x1)
    height = np.minimum.outer(y2, y2) - np.maximum.outer(y1, y1)
    shared = np.clip(width, 0, None) * np.clip(height, 0, None)
    area = (x2 - x1) * (y2 - y1)
    union = np.add.outer(area, area) - shared
    overlap_RR: Array = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return overlap_RR
