"""A detector of ours and the plain reference with the same random weights, and how their regions are matched."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from tests.vision.published_reference import PUBLISHED, Reference, prepared, resized
from tests.vision.published_weights import SMALL, Sizes, centred, random_weights
from unimo_ds.vision.faster_rcnn import BottomUpDetector
from unimo_ds.vision.published import detector_from_state

SOURCES = tuple(PUBLISHED)
LAYOUTS = {"huggingface": "huggingface", "airsplay": "airsplay", "airsplay_attributes": "airsplay", "milvlg": "milvlg"}


def noise(seed: int, height: int, width: int) -> Tensor:
    """A uint8 RGB picture with edges at all scales, so that neither a shift nor another colour order goes unseen."""
    random = torch.Generator().manual_seed(seed)
    picture_13HW = torch.zeros(1, 3, height, width)
    for side in (32, 8, 2):
        coarse = torch.rand(1, 3, -(-height // side), -(-width // side), generator=random)
        picture_13HW += F.interpolate(coarse, scale_factor=side, mode="nearest")[:, :, :height, :width]
    return (picture_13HW[0] * 85).to(torch.uint8)


@cache
def weights_of(source: str, seed: int, sizes: Sizes = SMALL) -> dict[str, Tensor]:
    """In the layout of that source, with a region head that tells the regions of a picture apart."""
    state = random_weights(LAYOUTS[source], sizes, seed)
    rules = replace(PUBLISHED[source], short_side=96, long_side=160, proposals=48)
    reference, frame = Reference(state, rules), resized(120, 180, rules)
    map_1CHW = reference.backbone(prepared(noise(seed, 120, 180), rules)[None])
    return centred(state, reference.judge(map_1CHW, reference.propose(map_1CHW, frame)).features_PF)


def pair(
    source: str,
    seed: int,
    state: dict[str, Tensor] | None = None,
    *,
    least: int = 4,
    most: int = 12,
    threshold: float | None = None,
    proposals: int = 16,
    proposals_before: int = 6000,
    boxes: str | None = None,
) -> tuple[BottomUpDetector, Reference]:
    """Both with 96 x 160 pixels at most, and the source's own rules but for these numbers."""
    state = weights_of(source, seed) if state is None else state
    rules = replace(
        PUBLISHED[source],
        short_side=96,
        long_side=160,
        proposals=proposals,
        proposals_before=proposals_before,
        least=least,
        most=most,
    )
    selection: dict[str, Any] = {"min_boxes": least, "max_boxes": most}
    if threshold is not None:
        rules, selection["score_threshold"] = replace(rules, threshold=threshold), threshold
    if boxes is not None:
        selection["boxes"] = boxes
    detector = detector_from_state(
        state,
        source,
        short_side=rules.short_side,
        long_side=rules.long_side,
        proposals=proposals,
        proposals_before_nms=proposals_before,
        selection=selection,
    )
    return detector, Reference(state, rules)


def close(found: Tensor, expected: Tensor, what: str, atol: float = 1e-4, rtol: float = 1e-4) -> None:
    torch.testing.assert_close(found, expected, atol=atol, rtol=rtol, msg=lambda text: f"{what}: {text}")


def match(found_R4: Tensor, expected_R4: Tensor, *further: tuple[Tensor, Tensor]) -> Tensor:
    """For each expected box the index of the found one that lies nearest; as many of the one as of the other.

    Args:
        further: found and expected values [R, ...] that tell apart boxes that are the same (clipped to the whole picture, say).
    """
    assert len(found_R4) == len(expected_R4), f"{len(found_R4)} boxes instead of {len(expected_R4)}"
    cost_RR = torch.cdist(expected_R4.double(), found_R4.double(), p=torch.inf)
    for found, expected in further:
        found, expected = (values.double()[:, None].flatten(1) for values in (found, expected))
        cost_RR = cost_RR + 1e-3 * torch.cdist(expected, found, p=torch.inf).clamp(max=1)
    return torch.from_numpy(np.asarray(linear_sum_assignment(cost_RR.numpy())[1]))
