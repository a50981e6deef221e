"""From pixels to the first convolution's input, as each source resizes, orders and normalises them.

The reference's OpenCV resizing is written in plain numpy; it was compared by hand with OpenCV 5.0's `resize(..., fx, fy)` on
thirteen sizes: 1.2e-4 grey levels at most.
"""

from functools import cache

import numpy as np
import pytest
import torch

from tests.vision.published_pairs import LAYOUTS, SOURCES, close, noise
from tests.vision.published_reference import MEAN_BGR, PUBLISHED, prepared, resized
from tests.vision.published_weights import SMALL, random_weights
from unimo_ds.vision.faster_rcnn import BottomUpDetector
from unimo_ds.vision.published import detector_from_state

SIZES = [
    (117, 201),
    (201, 117),
    (480, 640),
    (427, 640),
    (375, 500),
    (400, 401),
    (400, 403),  # 604.5: half to even, or up
    (500, 500),
    (600, 1000),
    (601, 1001),
    (600, 1003),
    (333, 555),  # exactly the longest side
    (599, 999),
    (900, 1403),
    (1200, 1600),
    (1400, 300),
    (60, 400),
    (24, 1900),
    (1, 50),
    (1000, 1),
    (33, 32),
]


@cache
def detector_of(source: str) -> BottomUpDetector:
    """With the source's own sizes."""
    return detector_from_state(random_weights(LAYOUTS[source], SMALL, seed=1), source)


@pytest.mark.parametrize("source", SOURCES)
def test_sizes(source: str) -> None:
    for height, width in SIZES:
        frame, expected = detector_of(source).frame(height, width), resized(height, width, PUBLISHED[source])
        found = (frame.height, frame.width, frame.rows, frame.columns)
        # An image of one pixel's breadth may round to nothing, which no source can resize.
        assert found == (height, width, max(expected.rows, 1), max(expected.columns, 1)), f"{height} x {width}"
        if expected.rows and expected.columns:
            assert (frame.scale_y, frame.scale_x) == pytest.approx((expected.scale_y, expected.scale_x), rel=1e-12)


@pytest.mark.parametrize(
    ("source", "on_disk", "in_the_network"),
    [
        ("huggingface", (480, 640), (800, 1067)),
        ("huggingface", (375, 500), (800, 1067)),
        ("huggingface", (427, 640), (800, 1199)),
        ("huggingface", (333, 1000), (444, 1333)),
        ("airsplay", (480, 640), (600, 800)),
        ("airsplay", (400, 403), (600, 605)),
        ("airsplay", (400, 667), (600, 1000)),
        ("airsplay_attributes", (480, 640), (800, 1067)),
        ("milvlg", (480, 640), (600, 800)),
        ("milvlg", (400, 403), (600, 604)),
        ("milvlg", (1000, 601), (998, 600)),
        ("milvlg", (30, 1999), (15, 1000)),
    ],
)
def test_sizes_worked_out_by_hand(source: str, on_disk: tuple[int, int], in_the_network: tuple[int, int]) -> None:
    frame = detector_of(source).frame(*on_disk)
    assert (frame.rows, frame.columns) == in_the_network


def test_caffe_keeps_the_factor_and_not_the_ratio_of_sizes() -> None:
    frame = detector_of("milvlg").frame(400, 403)
    assert frame.scale_x == frame.scale_y == 1.5 and frame.columns / frame.width != 1.5
    frame = detector_of("airsplay").frame(400, 403)
    assert frame.scale_y == 1.5 and frame.scale_x == 605 / 403


@pytest.mark.parametrize("size", [(117, 201), (1400, 300), (900, 1403), (60, 400), (403, 400), (600, 600)], ids=str)
@pytest.mark.parametrize("source", SOURCES)
def test_pixels(source: str, size: tuple[int, int]) -> None:
    image_3HW = noise(2, *size)
    expected = prepared(image_3HW, PUBLISHED[source])
    found = detector_of(source).prepare(image_3HW)
    assert found.dtype == torch.float32
    # Places are computed in fp32: 1e-7 of a thousand pixels, where neighbours differ by up to 255.
    close(found, expected, f"{source} {size}", atol=1e-4 if source.startswith("airsplay") else 2e-2, rtol=0)
    assert (found - expected).abs().mean() < 1e-3


@pytest.mark.parametrize("source", SOURCES)
def test_blue_comes_first_and_each_channel_has_its_mean(source: str) -> None:
    red_3HW = torch.zeros(3, 64, 80, dtype=torch.uint8)
    red_3HW[0] = 255
    blue, green, red = detector_of(source).prepare(red_3HW).mean(dim=(1, 2)).tolist()
    assert (blue, green, red) == pytest.approx((-102.9801, -115.9465, 255 - 122.7717), abs=1e-3)


def test_only_pillow_filters_when_it_shrinks() -> None:
    """A fine chequer becomes grey with Pillow's filter, and another pattern without one."""
    chequer_HW = (np.add.outer(np.arange(1500), np.arange(1500)) % 2 * 255).astype(np.uint8)
    image_3HW = torch.from_numpy(chequer_HW).expand(3, -1, -1).contiguous()
    spread = {source: detector_of(source).prepare(image_3HW)[0].std().item() for source in SOURCES}
    assert max(spread["airsplay"], spread["airsplay_attributes"]) < 5 < 20 < min(spread["huggingface"], spread["milvlg"])
    pixels = detector_of("airsplay").prepare(noise(3, 1000, 1500)) + torch.tensor(MEAN_BGR)[:, None, None]
    close(pixels, pixels.round(), "grey levels rounded to whole numbers", atol=1e-4)
