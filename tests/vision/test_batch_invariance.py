"""An image's regions do not depend on what else is in the batch, nor on the batch's size or padding.

Examples are chosen by hypothesis, the same ones at every run. Boxes are matched by place.
"""

from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.vision.published_pairs import SOURCES, close, match, noise, pair
from tests.vision.published_torchvision import ARCHITECTURES, shrunk, torchvision_weights
from unimo_ds.regions import Regions
from unimo_ds.vision.detector import Detector, Found
from unimo_ds.vision.detector_file import load_detector
from unimo_ds.vision.faster_rcnn import BottomUpDetector
from unimo_ds.vision.torchvision_detector import TorchvisionDetector

pytestmark = pytest.mark.long
SIDES = st.sampled_from([40, 63, 64, 90, 96, 117, 150, 201, 320])
PICTURES = st.lists(st.tuples(st.integers(0, 3), SIDES, SIDES), min_size=2, max_size=4)
"""Seed, height and width of each picture; they may be alike."""

FEW = settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@cache
def bottom_up(kind: str) -> BottomUpDetector:
    if kind == "world":
        detector = load_detector("world")
        assert isinstance(detector, BottomUpDetector)
        return detector
    return pair(kind, seed=2)[0]


@cache
def of_torchvision(architecture: str) -> TorchvisionDetector:
    detector = TorchvisionDetector(architecture, torchvision_weights(architecture))
    shrunk(detector.model)
    return detector


def drawn(pictures: list[tuple[int, int, int]]) -> list[Tensor]:
    return [noise(*picture) for picture in pictures]


def assert_same_found(found: Found, alone: Found) -> None:
    order = match(
        found.boxes_R4,
        alone.boxes_R4,
        (found.scores_R, alone.scores_R),
        (found.class_probabilities_RN, alone.class_probabilities_RN),
    )
    for name in ("boxes_R4", "scores_R", "features_RF", "class_probabilities_RN", "attribute_probabilities_RA"):
        close(getattr(found, name)[order], getattr(alone, name), name)
    assert found.classes_R[order].tolist() == alone.classes_R.tolist()


def assert_same_regions(found: Regions, alone: Regions) -> None:
    """What is stored; fp16 may round a difference up to its last digit."""
    assert (found.width, found.height) == (alone.width, alone.height)
    boxes_R4, features_RF = torch.from_numpy(found.boxes_R4), torch.from_numpy(found.features_RF).float()
    scores_R, alone_scores_R = (torch.from_numpy(regions.class_probabilities_RK).float()[:, 0] for regions in (found, alone))
    order = match(boxes_R4, torch.from_numpy(alone.boxes_R4), (scores_R, alone_scores_R))
    close(boxes_R4[order], torch.from_numpy(alone.boxes_R4), "boxes")
    close(features_RF[order], torch.from_numpy(alone.features_RF).float(), "features", 2e-3, 2e-3)
    assert found.class_ids_RK[order.numpy(), 0].tolist() == alone.class_ids_RK[:, 0].tolist()


def assert_detected_alike(detector: Detector, images: list[Tensor]) -> None:
    alone = [detector.detect([image])[0] for image in images]
    for found, expected in zip(detector.detect(images), alone, strict=True):
        assert_same_regions(found, expected)
    for found, expected in zip(detector.detect(images[::-1]), alone[::-1], strict=True):
        assert_same_regions(found, expected)


@FEW
@given(kind=st.sampled_from([*SOURCES, "world"]), pictures=PICTURES)
def test_any_sizes_in_one_padded_batch(kind: str, pictures: list[tuple[int, int, int]]) -> None:
    detector = bottom_up(kind)
    images = drawn(pictures)
    frames = [detector.frame(image.shape[1], image.shape[2]) for image in images]
    prepared = [detector.prepare(image) for image in images]
    for found, image, frame in zip(detector.find_batch(prepared, frames), prepared, frames, strict=True):
        assert_same_found(found, detector.find_batch([image], [frame])[0])


@FEW
@given(kind=st.sampled_from([*SOURCES, "world"]), pictures=PICTURES)
def test_the_regions_that_are_stored(kind: str, pictures: list[tuple[int, int, int]]) -> None:
    assert_detected_alike(bottom_up(kind), drawn(pictures))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_torchvision_s_detectors(architecture: str) -> None:
    """torchvision takes padding for image: only pictures that it pads alike may share a batch."""
    detector = of_torchvision(architecture)

    @settings(FEW, max_examples=3)
    @given(pictures=PICTURES)
    def any_pictures(pictures: list[tuple[int, int, int]]) -> None:
        assert_detected_alike(detector, drawn(pictures))

    any_pictures()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_pictures_that_torchvision_pads_alike_and_those_it_does_not(architecture: str) -> None:
    """A column more on disk may move the resized size across a multiple of 32."""
    detector = of_torchvision(architecture)
    images = [noise(seed, 100, width) for seed, width in enumerate(range(130, 136))]
    shapes = [detector.batch_shape(image.shape[1], image.shape[2]) for image in images]
    assert len(set(shapes)) == 2
    assert_detected_alike(detector, images)
    together = [image for image, shape in zip(images, shapes, strict=True) if shape == shapes[0]]
    for (_, found), image in zip(detector.find_batch(together), together, strict=True):
        assert_same_found(found, detector.find_batch([image])[0][1])
