"""Tiny detectors and pictures that the tests of this folder share."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unimo_ds.vision.coco import Objects
from unimo_ds.vision.detector_config import DetectorConfig, SelectionConfig, small_detector
from unimo_ds.vision.faster_rcnn import BottomUpDetector

SQUARES = {"red": (220, 30, 30), "blue": (30, 60, 220)}


def tiny_config() -> DetectorConfig:
    """Two classes, two attributes, 96 pixels on the short side."""
    return small_detector(2, 2).model_copy(
        update={
            "short_side": 96,
            "long_side": 160,
            "stem_width": 8,
            "widths": (16, 16, 32, 64),
            "blocks": (1, 1, 1, 1),
            "anchor_sizes": (32.0, 56.0),
            "rpn_width": 32,
            "proposals": 24,
            "proposals_before_nms": 100,
            "selection": SelectionConfig(min_boxes=4, max_boxes=12, kept_classes=3, nms_iou=(0.5,)),
        }
    )


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The same sums in the same order on every machine, and no fight over cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny() -> BottomUpDetector:
    """A detector with random weights."""
    torch.manual_seed(3)
    detector = BottomUpDetector(tiny_config(), ("square", "disc"), ("red", "blue"))
    # Fresh class weights are so small that all scores are equal; spread them so that the selection has something to do.
    torch.nn.init.normal_(detector.roi_heads.box_predictor.cls_score.weight, std=0.3)
    return detector.eval()


def picture(seed: int, height: int = 96, width: int = 128) -> tuple[torch.Tensor, Objects]:
    """A grey picture with one red square and one blue one, and where they are."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(90, 130, (height, width, 3), dtype=np.uint8)
    boxes = []
    for column, colour in enumerate(SQUARES.values()):
        side = int(rng.uniform(0.45, 0.7) * min(height, width // 2))
        x, y = int(rng.integers(2, width // 2 - side)) + column * width // 2, int(rng.integers(2, height - side))
        pixels[y : y + side, x : x + side] = colour
        boxes.append([x, y, x + side, y + side])
    image = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
    return image, Objects(f"{seed}.png", np.array(boxes, np.float32), np.array([1, 2]), np.array([1, 2]))


def save_picture(path: Path, seed: int, height: int = 96, width: int = 128) -> None:
    """Writes `picture(seed)` as a lossless file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(seed, height, width)[0].permute(1, 2, 0).numpy()).save(path)
