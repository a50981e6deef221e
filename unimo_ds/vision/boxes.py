"""Box arithmetic under the two conventions that detectors have: edges between pixels, or pixels that are counted.

Shape suffix: P boxes, each `x1, y1, x2, y2`.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms, nms

_LARGEST_GROWTH = math.log(1000 / 16)  # of a side by its delta, as every Faster R-CNN limits it


@dataclass(frozen=True)
class BoxRules:
    """How long a side is, where an image ends, and when two boxes overlap too much.

    Attributes:
        counted: 0, coordinates are edges: a side is `x2 - x1`, an image ends at its width, and of two boxes the worse is
            dropped when IoU > limit. 1, coordinates are pixels, the last one belongs to the box (Caffe's convention):
            a side is `x2 - x1 + 1`, an image ends at its width - 1, and IoU >= limit drops.
    """

    counted: int

    def decode(self, deltas_P4: Tensor, boxes_P4: Tensor, weights: tuple[float, float, float, float]) -> Tensor:
        """`boxes_P4` moved and scaled by `deltas_P4 / weights` (dx, dy in sides, log dw, log dh)."""
        sides_P2 = boxes_P4[:, 2:] - boxes_P4[:, :2] + self.counted
        centres_P2 = boxes_P4[:, :2] + 0.5 * sides_P2
        deltas_P4 = deltas_P4 / deltas_P4.new_tensor(weights)
        centres_P2 = centres_P2 + deltas_P4[:, :2] * sides_P2
        half_P2 = 0.5 * sides_P2 * torch.exp(deltas_P4[:, 2:].clamp(max=_LARGEST_GROWTH))
        return torch.cat([centres_P2 - half_P2, centres_P2 + half_P2], dim=1)

    def clip(self, boxes_P4: Tensor, rows: float, columns: float) -> Tensor:
        """Inside an image of that size."""
        most_4 = boxes_P4.new_tensor([columns, rows, columns, rows]) - self.counted
        return torch.minimum(boxes_P4.clamp(min=0), most_4)

    def longer_than(self, boxes_P4: Tensor, least: float) -> Tensor:
        """Which boxes are not empty and have both sides above `least`; bool [P]."""
        sides_P2 = boxes_P4[:, 2:] - boxes_P4[:, :2]
        return ((sides_P2 > 0) & (sides_P2 + self.counted > least)).all(dim=1)

    def suppress(self, boxes_P4: Tensor, scores_P: Tensor, limit: float, classes_P: Tensor | None = None) -> Tensor:
        """Indices of the boxes that survive non-maximum suppression (within each class, if classes are given), best first."""
        if self.counted:
            boxes_P4 = boxes_P4 + boxes_P4.new_tensor([0, 0, 1, 1])
            limit = _just_below(limit)  # torchvision drops what is above
        if classes_P is None:
            kept: Tensor = nms(boxes_P4, scores_P, limit)
        else:
            kept = batched_nms(boxes_P4, scores_P, classes_P, limit)
        return kept

    def overlaps(self, boxes_P4: Tensor, limit: float) -> Tensor:
        """Which pairs of different boxes overlap too much to stand side by side; bool [P, P]."""
        sides_P2 = boxes_P4[:, 2:] - boxes_P4[:, :2] + self.counted
        area_P = sides_P2.prod(dim=1)
        low_PP2 = torch.maximum(boxes_P4[:, None, :2], boxes_P4[None, :, :2])
        high_PP2 = torch.minimum(boxes_P4[:, None, 2:], boxes_P4[None, :, 2:])
        shared_PP = (high_PP2 - low_PP2 + self.counted).clamp(min=0).prod(dim=2)
        iou_PP = shared_PP / (area_P[:, None] + area_P[None, :] - shared_PP)
        too_much_PP = iou_PP > (_just_below(limit) if self.counted else limit)
        return too_much_PP.fill_diagonal_(False)


EDGES, PIXELS = BoxRules(0), BoxRules(1)
BOX_RULES = {"edges": EDGES, "pixels": PIXELS}
"""By `DetectorConfig.box_sides`."""


def _just_below(limit: float) -> float:
    """The float32 before `limit`: `iou > _just_below(limit)` is `iou >= limit`."""
    return float(np.nextafter(np.float32(limit), np.float32(0)))
