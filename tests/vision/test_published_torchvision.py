"""torchvision's detectors through our class: what torchvision itself keeps, and the features that it computed on the way."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.vision.published_pairs import close, match, noise
from tests.vision.published_torchvision import ARCHITECTURES, as_published, shrunk, torchvision_weights
from unimo_ds.vision.torchvision_detector import TorchvisionDetector


def detector_of(architecture: str) -> TorchvisionDetector:
    detector = TorchvisionDetector(architecture, torchvision_weights(architecture))
    shrunk(detector.model)
    return detector


def torchvision_says(architecture: str, image_3HW: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Its detections of a picture, and of all its proposals the features and class probabilities."""
    seen: dict[str, Any] = {}
    model = as_published(architecture, torchvision_weights(architecture))
    model.roi_heads.box_head.register_forward_hook(lambda module, inputs, output: seen.update(features=output))
    model.roi_heads.box_predictor.register_forward_hook(lambda module, inputs, output: seen.update(logits=output[0]))
    with torch.no_grad():
        (detections,) = model([image_3HW.float() / 255])
    return detections, seen["features"], seen["logits"].softmax(dim=1)


@pytest.mark.parametrize("size", [(117, 201), (160, 161), (40, 230)], ids=str)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_regions_are_those_of_torchvision(architecture: str, size: tuple[int, int]) -> None:
    image_3HW = noise(3, *size)
    detections, features_PF, probabilities_PN = torchvision_says(architecture, image_3HW)
    ((frame, found),) = detector_of(architecture).find_batch([image_3HW])
    assert (frame.height, frame.width) == size
    assert len(detections["boxes"]) >= 10
    order = match(found.boxes_R4, detections["boxes"], (found.scores_R, detections["scores"]))
    close(found.boxes_R4[order], detections["boxes"], "boxes")
    close(found.scores_R[order], detections["scores"], "scores")
    assert found.classes_R[order].tolist() == detections["labels"].tolist()

    # torchvision does not say which proposal a box is of: the one with that probability of that class.
    labels_R = detections["labels"]
    distance_RP = (probabilities_PN[:, labels_R].T - detections["scores"][:, None]).abs()
    proposals_R = distance_RP.argmin(dim=1)
    close(found.features_RF[order], features_PF[proposals_R], "features")
    close(found.class_probabilities_RN[order], probabilities_PN[proposals_R], "class probabilities")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sizes_on_disk_and_in_the_network(architecture: str) -> None:
    detector = detector_of(architecture)
    model = as_published(architecture, torchvision_weights(architecture))
    for size in ((117, 201), (480, 640), (333, 500), (500, 333), (427, 640), (31, 400)):
        frame = detector.frame(*size)
        images, _ = model.transform([torch.zeros(3, *size)])
        assert (frame.rows, frame.columns) == images.image_sizes[0]
        assert detector.batch_shape(*size) == tuple(images.tensors.shape[2:])
        assert frame.scale_y == pytest.approx(frame.rows / size[0]) and frame.scale_x == pytest.approx(frame.columns / size[1])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_its_identity_and_names(architecture: str) -> None:
    detector = detector_of(architecture)
    identity = detector.identity()
    assert identity["classes"] == 90 and identity["attributes"] == 0 and identity["feature_width"] == 1024
    assert len(detector.class_names) == 90 and detector.class_names[0] == "person"
    regions = detector.detect([noise(3, 117, 201)])[0]
    assert regions.features_RF.shape == (len(regions), 1024) and not regions.attribute_ids_R.any()
