"""The rules by which regions are kept."""

import numpy as np
import pytest
import torch
from torch import Tensor

from unimo_ds.vision.boxes import EDGES, PIXELS, BoxRules
from unimo_ds.vision.detector_config import SelectionConfig
from unimo_ds.vision.selection import Kept, select_regions

APART = torch.tensor([[20.0 * i, 0, 20.0 * i + 10, 10] for i in range(6)])
SCORES = torch.tensor([0.1, 0.9, 0.3, 0.05, 0.5, 0.19])
CLASSES = torch.ones(6, dtype=torch.long)


def kept(boxes: Tensor, probabilities: Tensor, rules: BoxRules = EDGES, **settings: object) -> Kept:
    return select_regions(probabilities, lambda index, classes: boxes[index], rules, SelectionConfig.model_validate(settings))


def select(boxes: Tensor, classes: Tensor, scores: Tensor, **settings: object) -> list[int]:
    """The kept proposals, each with one class that is not impossible."""
    probabilities = torch.zeros(len(scores), 4)
    probabilities[torch.arange(len(scores)), classes] = scores
    return kept(boxes, probabilities, **settings).proposals_R.tolist()


def test_what_reaches_the_threshold_is_kept_best_first() -> None:
    assert select(APART, CLASSES, SCORES, score_threshold=0.2, min_boxes=1) == [1, 4, 2]


def test_at_least_min_boxes_and_at_most_max_boxes() -> None:
    assert select(APART, CLASSES, SCORES, min_boxes=5) == [1, 4, 2, 5, 0]
    assert select(APART, CLASSES, SCORES, min_boxes=1, max_boxes=2) == [1, 4]
    assert len(select(APART, CLASSES, SCORES, min_boxes=10)) == 6  # there are no more


def test_suppression_is_within_a_class_or_over_all() -> None:
    boxes = APART[[0, 0, 0, 1]]
    classes = torch.tensor([1, 1, 2, 1])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    assert select(boxes, classes, scores, min_boxes=1) == [0, 2, 3]
    assert select(boxes, classes, scores, min_boxes=1, nms_over="all") == [0, 3]


def test_suppressed_regions_fill_up_to_the_minimum_after_all_survivors() -> None:
    boxes = APART[[0, 0, 0, 1]]
    scores = torch.tensor([0.9, 0.8, 0.7, 0.01])
    assert select(boxes, torch.ones(4, dtype=torch.long), scores, min_boxes=3) == [0, 3, 1]


def test_equal_scores_keep_their_order() -> None:
    assert select(APART, CLASSES, torch.full((6,), 0.5), min_boxes=1) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("rule", ["fill", "retry", "retry_every_class", "any_class"])
def test_no_proposals_give_no_regions(rule: str) -> None:
    assert select(APART[:0], CLASSES[:0], SCORES[:0], rule=rule, min_boxes=1) == []


def overlapping(*shifts: float) -> Tensor:
    """Boxes of side 10 side by side, each moved by so much: an overlap of `(10 - shift) / (10 + shift)` with the first."""
    return torch.tensor([[shift, 0, shift + 10, 10] for shift in shifts], dtype=torch.float32)


def test_retry_takes_the_first_limit_that_leaves_enough() -> None:
    boxes = overlapping(0, 3, 4.5)  # IoU with the first: 0.54, 0.38; of the two 0.74
    scores, classes = torch.tensor([0.9, 0.8, 0.7]), torch.ones(3, dtype=torch.long)
    settings = {"rule": "retry", "score_threshold": 0, "nms_iou": (0.3, 0.5, 0.6, 0.8)}
    assert select(boxes, classes, scores, min_boxes=1, **settings) == [0]
    assert select(boxes, classes, scores, min_boxes=2, **settings) == [0, 2]  # at 0.5 the first drops the second alone
    assert select(boxes, classes, scores, min_boxes=3, **settings) == [0, 1, 2]
    assert select(boxes, classes, scores, min_boxes=3, max_boxes=3, **{**settings, "nms_iou": (0.3, 0.5)}) == [0, 2]


def test_retry_keeps_those_that_reach_the_threshold_but_enough() -> None:
    assert select(APART, CLASSES, SCORES, rule="retry", score_threshold=0.2, min_boxes=1) == [1, 4, 2]
    assert select(APART, CLASSES, SCORES, rule="retry", score_threshold=0.2, min_boxes=5) == [1, 4, 2, 5, 0]


def test_retry_does_not_look_at_classes() -> None:
    boxes, scores = overlapping(0, 0), torch.tensor([0.9, 0.8])
    assert select(boxes, torch.tensor([1, 2]), scores, rule="retry", min_boxes=1) == [0]


def test_a_proposal_can_be_kept_as_several_classes() -> None:
    probabilities = torch.tensor([[0.1, 0.5, 0.4, 0.0], [0.1, 0.45, 0.1, 0.35]])
    found = kept(overlapping(0, 1), probabilities, rule="retry_every_class", score_threshold=0.2, min_boxes=1)
    assert list(zip(found.proposals_R.tolist(), found.classes_R.tolist(), strict=True)) == [(0, 1), (0, 2), (1, 3)]
    assert found.scores_R.tolist() == pytest.approx([0.5, 0.4, 0.35])


def in_plain_loops(boxes: Tensor, probabilities: Tensor, limit: float) -> list[float]:
    """Caffe's way: suppression class by class, a proposal's score is the best with which it survives."""
    best = [0.0] * len(boxes)
    for number in range(1, probabilities.shape[1]):
        order = np.argsort(-probabilities[:, number].numpy(), kind="stable").tolist()
        survivors: list[int] = []
        for one in order:
            if all(overlap(boxes[one], boxes[other]) < limit for other in survivors):
                survivors.append(one)
                best[one] = max(best[one], float(probabilities[one, number]))
    return best


def overlap(one: Tensor, other: Tensor) -> float:
    """IoU of boxes that contain their last pixel."""
    width = float(min(one[2], other[2]) - max(one[0], other[0]) + 1)
    height = float(min(one[3], other[3]) - max(one[1], other[1]) + 1)
    shared = max(width, 0) * max(height, 0)
    areas = [float((box[2] - box[0] + 1) * (box[3] - box[1] + 1)) for box in (one, other)]
    return shared / (sum(areas) - shared)


@pytest.mark.parametrize("least, most", [(1, 100), (25, 100), (1, 4)])
def test_any_class_counts_the_best_score_that_survives_anywhere(least: int, most: int) -> None:
    generator = torch.Generator().manual_seed(4)
    corners = torch.randint(0, 60, (30, 2), generator=generator)
    boxes = torch.cat([corners, corners + torch.randint(5, 40, (30, 2), generator=generator)], dim=1).float()
    probabilities = (torch.randn(30, 6, generator=generator) * 2).softmax(dim=1)
    best = in_plain_loops(boxes, probabilities, 0.3)
    enough = [index for index, score in enumerate(best) if score >= 0.5]
    assert 4 < len(enough) < 25
    found = kept(boxes, probabilities, PIXELS, rule="any_class", score_threshold=0.5, min_boxes=least, max_boxes=most)
    expected = enough if (least, most) == (1, 100) else np.argsort(-np.array(best), kind="stable")[: max(least, 4)].tolist()
    assert found.proposals_R.tolist() == expected
    assert found.scores_R.tolist() == pytest.approx([best[index] for index in expected])


def test_several_limits_go_with_retry_only() -> None:
    with pytest.raises(ValueError, match="only retry"):
        SelectionConfig(nms_iou=(0.3, 0.5))
    with pytest.raises(ValueError, match=r"nms_iou 1\.5"):
        SelectionConfig(nms_iou=(1.5,))
    with pytest.raises(ValueError, match=r"min_boxes 10: .* cannot fill up"):
        SelectionConfig(rule="retry_every_class", min_boxes=10)
