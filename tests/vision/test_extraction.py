"""From a folder of images to a finished store: broken images, resuming, shards, determinism."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.vision.conftest import save_picture
from unimo_ds.data.store import RegionStore
from unimo_ds.errors import ConfigError, DataError, StoreError
from unimo_ds.extraction import ExtractionPlan, extract_features, list_images
from unimo_ds.regions import Regions
from unimo_ds.vision import extract as extraction
from unimo_ds.vision.detector import Detector
from unimo_ds.vision.detector_file import save_detector
from unimo_ds.vision.extract import extract, read_image


@pytest.fixture
def world(tmp_path: Path, tiny: Detector) -> ExtractionPlan:
    """Seven good images of three sizes in two folders, one broken image, and a saved detector."""
    sizes = [(96, 128), (120, 90), (96, 128), (96, 128), (64, 64), (120, 90), (96, 128)]
    for index, size in enumerate(sizes):
        save_picture(tmp_path / "images" / "ab"[index % 2] / f"{index}.png", index, *size)
    whole = (tmp_path / "images" / "a" / "0.png").read_bytes()
    (tmp_path / "images" / "a" / "broken.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "images" / "notes.txt").write_text("no image")
    save_detector(tiny, tmp_path / "tiny.safetensors")
    return ExtractionPlan(
        tmp_path / "images", tmp_path / "store", detector=str(tmp_path / "tiny.safetensors"), workers=0, batch=3
    )


class Recorder:
    """A `write` that keeps the order of its calls."""

    def __init__(self, keys: list[str]) -> None:
        self.keys = keys

    def __call__(self, key: str, regions: Regions) -> None:
        self.keys.append(key)


def with_changes(plan: ExtractionPlan, **changes: object) -> ExtractionPlan:
    return dataclasses.replace(plan, **changes)  # type: ignore[arg-type]


def stored(folder: Path) -> dict[str, Regions]:
    store = RegionStore(folder)
    return {key: store.get(key) for key in sorted(store.keys())}


def assert_equal_stores(one: dict[str, Regions], other: dict[str, Regions]) -> None:
    assert list(one) == list(other)
    for key, regions in one.items():
        np.testing.assert_allclose(regions.boxes_R4, other[key].boxes_R4, atol=1e-3)
        np.testing.assert_allclose(
            regions.features_RF.astype(float), other[key].features_RF.astype(float), atol=2e-3, rtol=2e-3
        )


def test_a_broken_image_is_reported_and_stepped_over(world: ExtractionPlan) -> None:
    result = extract_features(world)
    assert (result.images, result.extracted, result.finished) == (8, 7, True)
    assert [failure.key for failure in result.failures] == ["a/broken.png"]
    report = [json.loads(line) for line in (world.out / "failures-00000.jsonl").read_text().splitlines()]
    assert report[0]["path"].endswith("a/broken.png") and "truncated" in report[0]["reason"]
    regions = stored(world.out)
    assert list(regions) == sorted(f"{'ab'[i % 2]}/{i}.png" for i in range(7))
    assert (regions["b/1.png"].width, regions["b/1.png"].height) == (90, 120)


def test_a_second_run_does_nothing_and_a_mended_image_is_added(world: ExtractionPlan) -> None:
    extract_features(world)
    again = extract_features(world)
    assert again.extracted == 0 and again.finished
    save_picture(world.images / "a" / "broken.png", 9)
    mended = extract_features(world)
    assert (mended.extracted, mended.failures) == (1, ())
    assert not (world.out / "failures-00000.jsonl").exists()
    assert len(RegionStore(world.out)) == 8


def test_batches_shards_and_decoding_processes_change_nothing(world: ExtractionPlan, tmp_path: Path) -> None:
    extract_features(world)
    others = with_changes(world, out=tmp_path / "other", batch=1, workers=1, shards=2, shard=0)
    assert not extract_features(with_changes(others, shard=1)).finished
    assert not (others.out / "manifest.json").exists()
    assert extract_features(with_changes(others, shard=0)).finished
    assert_equal_stores(stored(world.out), stored(others.out))


def test_an_unfinished_store_wants_the_same_number_of_shards(world: ExtractionPlan) -> None:
    extract_features(with_changes(world, shards=2, shard=0))
    with pytest.raises(StoreError, match="begun by 2 processes, now there are 3"):
        extract_features(with_changes(world, shards=3, shard=0))


def test_a_finished_store_takes_new_images_from_any_number_of_shards(world: ExtractionPlan) -> None:
    extract_features(world)
    save_picture(world.images / "c" / "new.png", 11)
    save_picture(world.images / "c" / "newer.png", 12)
    results = [extract_features(with_changes(world, shards=2, shard=shard)) for shard in (0, 1)]
    assert sum(result.extracted for result in results) == 2 and results[1].finished
    assert len(RegionStore(world.out)) == 9


def test_another_detector_or_a_wrong_setting_is_refused(world: ExtractionPlan) -> None:
    extract_features(world)
    with pytest.raises(StoreError, match="max_boxes"):
        extract_features(with_changes(world, selection={"max_boxes": 11}))
    with pytest.raises(ConfigError, match="min_boxes 30 is above max_boxes 12"):
        extract_features(with_changes(world, selection={"min_boxes": 30}))
    with pytest.raises(ConfigError, match="both or neither"):
        extract_features(with_changes(world, shards=2))
    with pytest.raises(ConfigError, match="shard 2 of 2"):
        extract_features(with_changes(world, shards=2, shard=2))


def test_a_coco_file_lists_images_by_file_name(world: ExtractionPlan, tmp_path: Path) -> None:
    listed = tmp_path / "instances.json"
    names = ["a/2.png", "b/1.png", "a/2.png", "a/missing.png"]
    listed.write_text(json.dumps({"images": [{"id": i, "file_name": name} for i, name in enumerate(names)]}))
    assert [key for key, _ in list_images(listed, world.images)] == ["a/2.png", "b/1.png", "a/missing.png"]
    result = extract_features(with_changes(world, images=listed, images_root=world.images))
    assert result.extracted == 2 and result.failures[0].key == "a/missing.png"
    with pytest.raises(DataError, match="--images-root"):
        list_images(listed)
    with pytest.raises(DataError, match="no such folder"):
        list_images(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images found"):
        list_images(tmp_path / "empty")


def test_order_of_writing_is_fixed_and_the_look_ahead_is_bounded(world: ExtractionPlan, tiny: Detector) -> None:
    items = list_images(world.images)
    orders: list[list[str]] = [[], []]
    for order in orders:
        failures = extract(items, tiny, Recorder(order), batch=4, workers=0, look_ahead=2)
        assert len(failures) == 1
    assert orders[0] == orders[1] and sorted(orders[0]) == sorted(key for key, _ in items if "broken" not in key)


def test_an_image_that_the_detector_refuses_does_not_take_its_batch_along(
    world: ExtractionPlan, tiny: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    detect = tiny.detect

    def refuse_dark(images: list[object]) -> list[Regions]:
        if any(bool((image == 0).all()) for image in images):  # type: ignore[attr-defined]
            raise RuntimeError("out of memory")
        return detect(images)  # type: ignore[arg-type]

    monkeypatch.setattr(tiny, "detect", refuse_dark)
    Image.new("RGB", (128, 96)).save(world.images / "a" / "dark.png")
    written: list[str] = []
    failures = extract(list_images(world.images), tiny, Recorder(written), batch=4, workers=0)
    assert len(written) == 7
    assert {failure.key: failure.reason for failure in failures}["a/dark.png"] == "the detector refused it: out of memory"


def test_a_huge_image_is_refused_by_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_picture(tmp_path / "big.png", 1)
    monkeypatch.setattr(extraction, "MOST_PIXELS", 1000)
    with pytest.raises(extraction.ImageError, match="128x96 pixels"):
        read_image(tmp_path / "big.png")


def test_grey_and_transparent_pictures_become_rgb(tmp_path: Path) -> None:
    for mode in ("L", "RGBA", "P", "CMYK", "1"):
        path = tmp_path / f"{mode}.tiff"
        Image.new(mode, (20, 10)).save(path)
        assert read_image(path).shape == (3, 10, 20)


@pytest.mark.life
def test_two_local_processes_make_one_store(world: ExtractionPlan, tmp_path: Path) -> None:
    extract_features(world)
    result = extract_features(with_changes(world, out=tmp_path / "other", processes=2))
    assert (result.extracted, result.finished, len(result.failures)) == (7, True, 1)
    assert_equal_stores(stored(world.out), stored(tmp_path / "other"))
