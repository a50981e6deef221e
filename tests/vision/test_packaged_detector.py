"""What the packaged detector promises, checked on scenes drawn here that it has never seen."""

from pathlib import Path

import pytest

from unimo_ds.demo.world import WorldConfig, write_world
from unimo_ds.vision.coco import Annotations, read_annotations
from unimo_ds.vision.detector_file import PACKAGED, load_detector
from unimo_ds.vision.extract import read_image
from unimo_ds.vision.training import evaluate

SCENES = 48
UNSEEN_SEED = 1234


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Annotations]:
    folder = tmp_path_factory.mktemp("world")
    write_world(WorldConfig(train=0, val=SCENES, alone=0, seed=UNSEEN_SEED), folder)
    return folder, read_annotations(folder / "annotations" / "instances_val.json")


def test_it_is_small_and_says_how_good_it_is() -> None:
    assert (PACKAGED / "world.safetensors").stat().st_size < 4_000_000
    detector = load_detector("world")
    assert detector.config.feature_width == 256
    assert detector.facts["ap50"] >= 0.9 and detector.facts["attribute_accuracy"] >= 0.9
    assert detector.facts["command"].startswith("python tools/train_detector.py")


def test_its_names_are_those_of_the_drawn_world(scenes: tuple[Path, Annotations]) -> None:
    detector = load_detector("world")
    assert detector.class_names == scenes[1].class_names
    assert detector.attribute_names == scenes[1].attribute_names


def test_it_is_as_good_on_new_scenes(scenes: tuple[Path, Annotations]) -> None:
    """With 48 scenes a class has some six objects, so a tenth below the measured value is within the noise."""
    folder, annotations = scenes
    detector = load_detector("world")
    images = [read_image(folder / "images" / objects.file_name) for objects in annotations.images]
    quality = evaluate(detector, images, annotations.images)
    assert quality.ap50 > detector.facts["ap50"] - 0.1
    assert quality.attribute_accuracy > detector.facts["attribute_accuracy"] - 0.05


def test_an_image_has_the_same_regions_alone_and_in_a_batch(scenes: tuple[Path, Annotations]) -> None:
    folder, annotations = scenes
    detector = load_detector("world")
    images = [read_image(folder / "images" / objects.file_name) for objects in annotations.images[:8]]
    for image, regions in zip(images, detector.detect(images), strict=True):
        alone = detector.detect([image])[0]
        assert alone.class_ids_RK[:, 0].tolist() == regions.class_ids_RK[:, 0].tolist()
        assert abs(alone.boxes_R4 - regions.boxes_R4).max() < 1e-2
        assert abs(alone.features_RF.astype(float) - regions.features_RF.astype(float)).max() < 5e-3
