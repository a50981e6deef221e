"""Batch invariance, the published size by configuration, learning, identity, drawing."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.vision.conftest import picture, tiny_config
from unimo_ds.regions import Regions, best_objects
from unimo_ds.vision.detector import weights_sha256
from unimo_ds.vision.detector_config import DetectorConfig
from unimo_ds.vision.drawing import describe_region, draw_regions
from unimo_ds.vision.faster_rcnn import BottomUpDetector
from unimo_ds.vision.preprocessing import frame_of
from unimo_ds.vision.training import TrainingPlan, evaluate, fit


def assert_same(one: Regions, other: Regions) -> None:
    assert (one.width, one.height) == (other.width, other.height)
    np.testing.assert_allclose(one.boxes_R4, other.boxes_R4, atol=1e-3)
    np.testing.assert_allclose(one.features_RF.astype(float), other.features_RF.astype(float), atol=1e-3, rtol=1e-3)
    np.testing.assert_array_equal(one.class_ids_RK, other.class_ids_RK)


def test_an_image_is_the_same_alone_and_in_any_batch(tiny: BottomUpDetector) -> None:
    sizes = [(96, 128), (96, 128), (120, 90), (48, 64), (96, 128), (200, 400)]
    images = [picture(seed, *size)[0] for seed, size in enumerate(sizes)]
    together = tiny.detect(images)
    backwards = tiny.detect(images[::-1])[::-1]
    for image, one, other in zip(images, together, backwards, strict=True):
        alone = tiny.detect([image])[0]
        assert_same(alone, one)
        assert_same(alone, other)


def test_features_are_the_same_in_a_batch_to_four_digits(tiny: BottomUpDetector) -> None:
    """The regions hold fp16; here the fp32 map and pooled features are compared."""
    images_B3HW = torch.stack([tiny.prepare(picture(seed)[0]) for seed in range(5)])
    boxes = torch.tensor([[4.0, 8.0, 60.0, 70.0], [30.0, 3.0, 90.0, 50.0]])
    with torch.inference_mode():
        map_BCHW = tiny.backbone(images_B3HW)
        joined = tiny.roi_heads.judge(map_BCHW, [boxes] * 5).features_PF.view(5, 2, -1)
        for index in range(5):
            alone = tiny.roi_heads.judge(tiny.backbone(images_B3HW[index : index + 1]), [boxes]).features_PF
            torch.testing.assert_close(alone, joined[index], atol=1e-4, rtol=1e-4)


def test_regions_have_the_promised_form(tiny: BottomUpDetector) -> None:
    image = picture(1, 192, 256)[0]
    regions = tiny.detect([image])[0]
    count = len(regions)
    assert tiny.selection.min_boxes <= count <= tiny.selection.max_boxes
    assert regions.features_RF.shape == (count, 64) and regions.features_RF.dtype == np.float16
    assert regions.class_ids_RK.shape == (count, 3) and regions.class_ids_RK.dtype == np.uint16
    assert (np.diff(regions.class_probabilities_RK.astype(float), axis=1) <= 0).all()
    assert (regions.boxes_R4[:, 2:] > regions.boxes_R4[:, :2]).all()
    assert (regions.boxes_R4 >= 0).all() and (regions.boxes_R4 <= [256.01, 192.01, 256.01, 192.01]).all()
    assert regions.boxes_R4[:, 2].max() > 128  # in pixels of the image on disk, not of the resized one


def test_the_published_detector_is_a_configuration() -> None:
    """Names and shapes as in the published files (background moved to the front)."""
    config = DetectorConfig()
    with torch.device("meta"):
        detector = BottomUpDetector(config, [""] * 1600, [""] * 400)
    shapes = {name: tuple(value.shape) for name, value in detector.state_dict().items()}
    assert config.feature_width == 2048
    assert shapes["backbone.res4.22.conv3.weight"] == (1024, 256, 1, 1)
    assert shapes["roi_heads.res5.2.conv3.norm.weight"] == (2048,)
    assert shapes["roi_heads.box_predictor.cls_score.weight"] == (1601, 2048)
    assert shapes["roi_heads.box_predictor.bbox_pred.weight"] == (6404, 2048)
    assert shapes["roi_heads.box_predictor.fc_attr.weight"] == (512, 2304)
    assert shapes["roi_heads.box_predictor.attr_score.weight"] == (401, 512)
    assert shapes["proposal_generator.head.conv.weight"] == (512, 1024, 3, 3)
    convolutions = {name: module for name, module in detector.named_modules() if isinstance(module, torch.nn.Conv2d)}
    assert convolutions["roi_heads.res5.0.conv1"].stride == (1, 1)
    assert convolutions["roi_heads.res5.0.conv2"].dilation == (2, 2)
    assert convolutions["backbone.res3.0.conv1"].stride == (2, 2)


def test_anchors_lie_on_multiples_of_sixteen_whatever_the_image_size(tiny: BottomUpDetector) -> None:
    class Images:
        image_sizes = ((600, 900),)

    anchors = tiny.proposal_generator.anchor_generator(Images(), [torch.zeros(1, 1, 38, 57)])[0].view(38, 57, -1, 4)
    centres = (anchors[..., :2] + anchors[..., 2:]) / 2
    torch.testing.assert_close(centres[2, 5], torch.tensor([80.0, 32.0]).expand_as(centres[2, 5]))
    sides = anchors[0, 0, :, 2:] - anchors[0, 0, :, :2]
    torch.testing.assert_close(sides.prod(dim=1), torch.tensor([32.0**2] * 3 + [56.0**2] * 3))  # size-major
    torch.testing.assert_close(sides[:3, 1] / sides[:3, 0], torch.tensor([0.5, 1.0, 2.0]))  # height / width


def test_sizes_are_rounded_as_published() -> None:
    for size, resized in (((480, 640), (600, 800)), ((300, 900), (333, 1000))):
        frame = frame_of(*size, DetectorConfig())
        assert (frame.rows, frame.columns) == resized


@pytest.mark.long
def test_a_tiny_detector_learns_two_pictures_by_heart() -> None:
    torch.manual_seed(0)
    detector = BottomUpDetector(tiny_config(), ("square", "disc"), ("red", "blue"))
    images, objects = zip(*(picture(seed) for seed in (1, 2)), strict=True)
    # Enough for any processor: at 100 steps it depends on how products round.
    losses = fit(detector, images, objects, TrainingPlan(steps=200, batch=4, peak_rate=1e-2, warmup=10))
    missing = [name for name, p in detector.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not missing
    assert np.mean(losses[-10:]) < 0.35 * np.mean(losses[:10])
    quality = evaluate(detector.eval(), images, objects)
    assert quality.ap50 > 0.9 and quality.attribute_accuracy == 1.0


def test_training_twice_gives_the_same_weights() -> None:
    digests = []
    for _ in range(2):
        torch.manual_seed(0)
        detector = BottomUpDetector(tiny_config(), ("square", "disc"), ("red", "blue"))
        images, objects = zip(*(picture(seed) for seed in (1, 2)), strict=True)
        fit(detector, images, objects, TrainingPlan(steps=3, batch=2, warmup=1))
        digests.append(weights_sha256(detector))
    assert digests[0] == digests[1]


def test_a_picture_without_objects_can_be_trained_on(tiny: BottomUpDetector) -> None:
    empty = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.long),
        "attributes": torch.zeros(0, dtype=torch.long),
    }
    losses = tiny.train()([picture(1)[0]], [empty])
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_identity_names_weights_and_selection(tiny: BottomUpDetector) -> None:
    before = tiny.identity()
    assert before["classes"] == 2 and before["feature_width"] == 64 and before["min_boxes"] == 4
    assert tiny.with_selection(min_boxes=5).identity() != before
    tiny.with_selection(min_boxes=4)
    assert tiny.identity() == before
    with torch.no_grad():
        tiny.backbone.stem.conv1.weight[0, 0, 0, 0] += 1
    assert tiny.identity()["weights_sha256"] != before["weights_sha256"]


def test_wrong_names_and_unknown_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="3 class names for class_count 2"):
        BottomUpDetector(tiny_config(), ("a", "b", "c"), ("red", "blue"))
    with pytest.raises(ValueError, match="wdiths"):
        DetectorConfig.model_validate({"wdiths": (1, 2, 3, 4)})


def test_regions_are_drawn_on_a_copy(tiny: BottomUpDetector) -> None:
    image, _ = picture(1)
    original = Image.fromarray(image.permute(1, 2, 0).numpy())
    regions = tiny.detect([image])[0]
    drawn = draw_regions(original, regions, tiny.class_names, tiny.attribute_names, most=3)
    assert drawn.size == original.size and drawn.tobytes() != original.tobytes()
    label = int(best_objects(regions)[0][0])
    assert tiny.class_names[label - 1] in describe_region(regions, 0, tiny.class_names, tiny.attribute_names)
