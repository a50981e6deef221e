"""The rules by which regions are kept."""

import torch

from unimo_ds.vision.detector_config import SelectionConfig
from unimo_ds.vision.selection import select_regions

APART = torch.tensor([[20.0 * i, 0, 20.0 * i + 10, 10] for i in range(6)])
SCORES = torch.tensor([0.1, 0.9, 0.3, 0.05, 0.5, 0.19])
CLASSES = torch.ones(6, dtype=torch.long)


def select(boxes: torch.Tensor, classes: torch.Tensor, scores: torch.Tensor, **settings: object) -> list[int]:
    return select_regions(boxes, classes, scores, SelectionConfig.model_validate(settings)).tolist()


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


def test_no_proposals_give_no_regions() -> None:
    assert select(APART[:0], CLASSES[:0], SCORES[:0]) == []
