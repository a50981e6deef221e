"""From the judged proposals of one image to the regions that are kept.

Shape suffixes: P proposals, N classes with background at 0, R kept regions.
"""

import torch
from torch import Tensor
from torchvision.ops import batched_nms, nms

from unimo_ds.vision.detector_config import SelectionConfig


def select_regions(boxes_P4: Tensor, classes_P: Tensor, scores_P: Tensor, selection: SelectionConfig) -> Tensor:
    """Indices [R] of the regions to keep, best first.

    A proposal is one candidate, with the best class that is not the background. Candidates that survive suppression and
    reach the threshold are kept, at most `max_boxes`; when they are fewer than `min_boxes`, the best of the other
    survivors follow, then the best of the suppressed. So an image has `min_boxes` regions whenever it has that many
    proposals: a model can count on them, and a picture of nothing is still described.

    Args:
        boxes_P4: the boxes that overlap is measured on.
        classes_P: best class of each, from 1.
        scores_P: its probability.
    """
    by_score_P = torch.sort(scores_P, descending=True, stable=True).indices
    if selection.nms_over == "class":
        survivors = batched_nms(boxes_P4, scores_P, classes_P, selection.nms_iou)
    else:
        survivors = nms(boxes_P4, scores_P, selection.nms_iou)
    survived_P = torch.zeros_like(scores_P, dtype=torch.bool)
    survived_P[survivors] = True
    survived_P = survived_P[by_score_P]
    ranked_P = torch.cat([by_score_P[survived_P], by_score_P[~survived_P]])
    passed = int((survived_P & (scores_P[by_score_P] >= selection.score_threshold)).sum())
    return ranked_P[: min(max(passed, selection.min_boxes), selection.max_boxes)]
