"""From the judged proposals of one image to the regions that are kept.

Shape suffixes: P proposals, N classes with background at 0, R kept regions.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from unimo_ds.vision.boxes import BoxRules
from unimo_ds.vision.detector_config import SelectionConfig

BoxesOf = Callable[[Tensor, Tensor], Tensor]
"""Of proposals (indices) as classes (from 1): the boxes that overlap is measured on, [n, 4]."""


class Kept(NamedTuple):
    """R regions: which proposal, as which class (from 1), with which score."""

    proposals_R: Tensor
    classes_R: Tensor
    scores_R: Tensor


def select_regions(probabilities_PN: Tensor, boxes_of: BoxesOf, rules: BoxRules, selection: SelectionConfig) -> Kept:
    """The regions of an image by `selection.rule`; `SelectionConfig` says what each rule does."""
    return _RULES[selection.rule](probabilities_PN, boxes_of, rules, selection)


def _best_class(probabilities_PN: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every proposal once, with the best class that is not the background: indices, classes, scores."""
    scores_P, classes_P = probabilities_PN[:, 1:].max(dim=1)
    return torch.arange(len(scores_P), device=scores_P.device), classes_P + 1, scores_P


def _fill(probabilities_PN: Tensor, boxes_of: BoxesOf, rules: BoxRules, selection: SelectionConfig) -> Kept:
    index_P, classes_P, scores_P = _best_class(probabilities_PN)
    by_score_P = torch.sort(scores_P, descending=True, stable=True).indices
    within = classes_P if selection.nms_over == "class" else None
    survivors = rules.suppress(boxes_of(index_P, classes_P), scores_P, selection.nms_iou[0], within)
    survived_P = torch.zeros_like(scores_P, dtype=torch.bool)
    survived_P[survivors] = True
    survived_P = survived_P[by_score_P]
    ranked_P = torch.cat([by_score_P[survived_P], by_score_P[~survived_P]])
    passed = int((survived_P & (scores_P[by_score_P] >= selection.score_threshold)).sum())
    kept_R = ranked_P[: min(max(passed, selection.min_boxes), selection.max_boxes)]
    return Kept(kept_R, classes_P[kept_R], scores_P[kept_R])


def _retry(probabilities_PN: Tensor, boxes_of: BoxesOf, rules: BoxRules, selection: SelectionConfig) -> Kept:
    kept = _first_enough(*_best_class(probabilities_PN), boxes_of, rules, selection, within_class=False)
    passed = int((kept.scores_R >= selection.score_threshold).sum())
    return Kept(*(values_R[: max(passed, selection.min_boxes)] for values_R in kept))


def _retry_every_class(probabilities_PN: Tensor, boxes_of: BoxesOf, rules: BoxRules, selection: SelectionConfig) -> Kept:
    index_P, classes_P = (probabilities_PN[:, 1:] > selection.score_threshold).nonzero(as_tuple=True)
    scores_P = probabilities_PN[index_P, classes_P + 1]
    return _first_enough(index_P, classes_P + 1, scores_P, boxes_of, rules, selection, within_class=True)


def _first_enough(
    index_P: Tensor,
    classes_P: Tensor,
    scores_P: Tensor,
    boxes_of: BoxesOf,
    rules: BoxRules,
    selection: SelectionConfig,
    within_class: bool,
) -> Kept:
    boxes_P4 = boxes_of(index_P, classes_P)
    kept_R = index_P[:0]
    for limit in selection.nms_iou:
        kept_R = rules.suppress(boxes_P4, scores_P, limit, classes_P if within_class else None)[: selection.max_boxes]
        if len(kept_R) >= selection.min_boxes:
            break
    return Kept(index_P[kept_R], classes_P[kept_R], scores_P[kept_R])


def _any_class(probabilities_PN: Tensor, boxes_of: BoxesOf, rules: BoxRules, selection: SelectionConfig) -> Kept:
    index_P, classes_P, _ = _best_class(probabilities_PN)
    overlaps_PP = rules.overlaps(boxes_of(index_P, classes_P), selection.nms_iou[0])
    best_P = _best_surviving_score(probabilities_PN[:, 1:].T, overlaps_PP)
    kept_R = (best_P >= selection.score_threshold).nonzero()[:, 0]  # in the order of the proposals
    limit = min(max(len(kept_R), selection.min_boxes), selection.max_boxes)
    if limit != len(kept_R):
        kept_R = torch.sort(best_P, descending=True, stable=True).indices[:limit]
    return Kept(kept_R, classes_P[kept_R], best_P[kept_R])


def _best_surviving_score(scores_CP: Tensor, overlaps_PP: Tensor) -> Tensor:
    """Each proposal's best score among the classes in whose suppression it survives, 0 where it survives in none; [P].

    All classes run at once, rank by rank: a survivor drops what it overlaps. (It cannot drop an earlier survivor, or it
    would have been dropped itself.)
    """
    every_C = torch.arange(len(scores_CP), device=scores_CP.device)
    dropped_CP = torch.zeros_like(scores_CP, dtype=torch.bool)
    for proposal_C in torch.sort(scores_CP, dim=1, descending=True, stable=True).indices.unbind(dim=1):
        survives_C = ~dropped_CP[every_C, proposal_C]
        dropped_CP |= overlaps_PP[proposal_C] & survives_C[:, None]
    return scores_CP.masked_fill(dropped_CP, 0).amax(dim=0)


_RULES = {"fill": _fill, "retry": _retry, "retry_every_class": _retry_every_class, "any_class": _any_class}
