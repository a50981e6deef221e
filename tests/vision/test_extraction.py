"""From a folder of images to a finished store: broken images, resuming, shards, determinism."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.vision.conftest import save_picture
from unimo_ds import extraction as runs
from unimo_ds.data.store import RegionStore, encode_regions
from unimo_ds.distributed import own_shards
from unimo_ds.errors import ConfigError, DataError, StoreError, UnimoError
from unimo_ds.extraction import ExtractionPlan, ExtractionResult, extract_features
from unimo_ds.regions import Regions
from unimo_ds.vision import extract as extraction
from unimo_ds.vision.detector_file import save_detector
from unimo_ds.vision.extract import extract, read_image
from unimo_ds.vision.faster_rcnn import BottomUpDetector
from unimo_ds.vision.image_sources import find_images


@pytest.fixture
def world(tmp_path: Path, tiny: BottomUpDetector) -> ExtractionPlan:
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
    """A `write` that keeps the order of its calls, and of which batches they were."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def __call__(self, batch: list[tuple[str, Regions]]) -> None:
        self.batches.append([key for key, _ in batch])

    @property
    def keys(self) -> list[str]:
        return [key for batch in self.batches for key in batch]


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


@pytest.mark.parametrize(("before", "after"), [(3, 2), (2, 3), (2, 1)])
def test_an_unfinished_store_is_continued_by_another_number_of_processes(
    world: ExtractionPlan, tmp_path: Path, before: int, after: int
) -> None:
    extract_features(world)
    other = with_changes(world, out=tmp_path / "other")
    first = extract_features(with_changes(other, shards=before, shard=before - 1)).extracted
    assert 0 < first < 7
    rest = [extract_features(with_changes(other, shards=after, shard=shard)) for shard in range(after)]
    assert first + sum(result.extracted for result in rest) == 7
    assert [result.finished for result in rest] == [False] * (after - 1) + [True]
    assert_equal_stores(stored(world.out), stored(other.out))
    assert set(RegionStore(other.out).manifest["hashed_over"]) == {before, after}


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
    with pytest.raises(ConfigError, match="--shard 2 of --shards 2"):
        extract_features(with_changes(world, shards=2, shard=2))


def test_a_coco_file_lists_images_by_file_name(world: ExtractionPlan, tmp_path: Path) -> None:
    listed = tmp_path / "instances.json"
    names = ["a/2.png", "b/1.png", "a/2.png", "a/missing.png"]
    listed.write_text(json.dumps({"images": [{"id": i, "file_name": name} for i, name in enumerate(names)]}))
    result = extract_features(with_changes(world, images=listed, images_root=world.images))
    assert (result.images, result.extracted) == (3, 2)
    assert [(failure.key, failure.kind) for failure in result.failures] == [("a/missing.png", "missing")]


def test_groups_are_fixed_and_the_look_ahead_is_bounded(world: ExtractionPlan, tiny: BottomUpDetector) -> None:
    items = list(find_images(world.images))  # type: ignore[arg-type]
    runs = [Recorder(), Recorder()]
    for run in runs:
        assert len(extract(items, tiny, run, batch=4, workers=0, look_ahead=2)) == 1
    assert runs[0].batches == runs[1].batches
    assert sorted(runs[0].keys) == sorted(item.key for item in items if "broken" not in item.key)
    assert max(map(len, runs[0].batches)) <= 2


@pytest.mark.parametrize("stopped_after", range(5))
def test_a_stopped_run_goes_on_with_the_same_groups(world: ExtractionPlan, tiny: BottomUpDetector, stopped_after: int) -> None:
    items = list(find_images(world.images))  # type: ignore[arg-type]
    whole = Recorder()
    extract(items, tiny, whole, batch=2, workers=0)
    done = {key for batch in whole.batches[:stopped_after] for key in batch}
    sizes = {key: read_image(world.images / key).shape[1:] for key in done}  # type: ignore[operator]
    rest = Recorder()
    extract(items, tiny, rest, lambda key: sizes.get(key), batch=2, workers=0)  # type: ignore[arg-type]
    assert rest.batches == whole.batches[stopped_after:]


def test_pictures_that_wait_are_bounded_by_their_memory_too(
    world: ExtractionPlan, tiny: BottomUpDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = list(find_images(world.images))  # type: ignore[arg-type]
    monkeypatch.setattr(extraction, "_MOST_HELD", 3 * 96 * 128)
    run = Recorder()
    extract(items, tiny, run, batch=4, workers=0)
    assert len(run.keys) == 7 and max(map(len, run.batches)) == 2


def test_an_image_that_the_detector_refuses_does_not_take_its_batch_along(
    world: ExtractionPlan, tiny: BottomUpDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    detect = tiny.detect

    def refuse_dark(images: list[Any]) -> list[Regions]:
        if any(bool((image == 0).all()) for image in images):
            raise RuntimeError("out of memory")
        return detect(images)

    monkeypatch.setattr(tiny, "detect", refuse_dark)
    Image.new("RGB", (128, 96)).save(world.images / "a" / "dark.png")  # type: ignore[operator]
    run = Recorder()
    failures = extract(list(find_images(world.images)), tiny, run, batch=4, workers=0)  # type: ignore[arg-type]
    assert len(run.keys) == 7
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


def unusual_pictures(folder: Path) -> dict[str, str]:
    """Pictures that are hard to read, each with the kind of failure that is expected; "" where it can be read."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
    whole = Image.fromarray(colours)
    whole.save(folder / "whole.jpg")
    content = (folder / "whole.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(content[: len(content) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("404 not found")
    whole.convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(rng.integers(0, 2**16, (60, 80), dtype=np.uint16)).save(folder / "sixteen.png")
    Image.fromarray(rng.random((60, 80), dtype=np.float32)).save(folder / "float.tiff")
    frames = [Image.fromarray(np.roll(colours, shift, 1)) for shift in range(3)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    whole.convert("RGBA").save(folder / "transparent.webp")
    Image.fromarray(colours[:1]).save(folder / "row.png")
    Image.new("RGB", (20_000, 12)).save(folder / "ribbon.png")
    Image.new("1", (20_000, 20_000)).save(folder / "bomb.png")
    Image.new("1", (12_000, 12_000)).save(folder / "huge.png")
    (folder / "folder.jpg").mkdir()
    expected = {
        "truncated.jpg": "truncated",
        "empty.jpg": "empty file",
        "text.jpg": "no picture",
        "float.tiff": "unknown range",
        "bomb.png": "too large",
        "huge.png": "too large",
    }
    readable = ("whole.jpg", "cmyk.jpg", "sixteen.png", "moving.gif", "transparent.webp", "row.png", "ribbon.png")
    return {**dict.fromkeys(readable, ""), **expected}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_unusual_pictures_are_read_or_stepped_over_with_a_reason(world: ExtractionPlan, tmp_path: Path) -> None:
    expected = unusual_pictures(tmp_path / "unusual")
    result = extract_features(with_changes(world, images=tmp_path / "unusual"))
    assert result.finished and result.images == len(expected)
    assert {failure.key: failure.kind for failure in result.failures} == {key: kind for key, kind in expected.items() if kind}
    assert sorted(stored(world.out)) == sorted(key for key, kind in expected.items() if not kind)


def test_a_strip_of_any_length_takes_no_more_memory_than_a_photograph(tiny: BottomUpDetector) -> None:
    for height, width in ((12, 20_000), (99_000, 1000), (1, 10), (1000, 1000)):
        frame = tiny.frame(height, width)
        assert frame.rows <= 160 and frame.columns <= 160 and min(frame.rows, frame.columns) <= 96


def test_grey_of_sixteen_bits_keeps_its_contrast(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 0x0100, 0x80FF, 0xFFFF]], np.uint16)).save(tmp_path / "grey.png")
    assert read_image(tmp_path / "grey.png")[:, 0].tolist() == [[0, 1, 0x80, 0xFF]] * 3


def test_names_that_a_store_cannot_hold_are_reported(world: ExtractionPlan) -> None:
    folders = ["x" * 200, "y" * 200, "z" * 120]
    save_picture(world.images.joinpath(*folders) / "long.png", 1)  # type: ignore[union-attr]
    with open(os.path.join(os.fsencode(world.images), b"\xff.png"), "wb") as file:  # type: ignore[arg-type]
        file.write(b"")
    result = extract_features(world)
    assert result.finished and result.extracted == 7
    assert sorted(failure.kind for failure in result.failures) == ["truncated", "unusable name", "unusable name"]


def test_when_no_image_can_be_read_there_is_no_store(world: ExtractionPlan, tmp_path: Path) -> None:
    listed = tmp_path / "list.json"
    listed.write_text(json.dumps(["x.jpg", "y.jpg"]))
    with pytest.raises(DataError, match=r"not one of the 2 images could be read: 2 missing. The first: .*x.jpg: missing"):
        extract_features(with_changes(world, images=listed, images_root=world.images))
    assert not (world.out / "manifest.json").exists()


def test_finished_work_is_known_without_the_detector(world: ExtractionPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written: corpora that were prepared from the store know it by its manifest's time."""
    first = extract_features(world)
    before = {path: path.stat().st_mtime_ns for path in world.out.rglob("*")}
    monkeypatch.setattr(runs, "load_detector", None)
    for shards in (1, 3):
        again = extract_features(with_changes(world, shards=shards, shard=0))
        assert again == ExtractionResult(8, 0, first.failures, finished=True, speaks=True)
    assert not extract_features(with_changes(world, shards=3, shard=1)).speaks
    assert {path: path.stat().st_mtime_ns for path in world.out.rglob("*")} == before


def test_a_detector_file_that_changed_is_looked_at_again(world: ExtractionPlan, tiny: BottomUpDetector) -> None:
    extract_features(world)
    manifest = (world.out / "manifest.json").stat().st_mtime_ns
    save_detector(tiny, Path(world.detector))
    assert extract_features(world).finished and (world.out / "manifest.json").stat().st_mtime_ns == manifest
    torch.nn.init.normal_(tiny.roi_heads.box_predictor.cls_score.weight)
    save_detector(tiny, Path(world.detector))
    with pytest.raises(StoreError, match="weights_sha256"):
        extract_features(world)


def test_further_images_are_added_without_doing_any_twice(world: ExtractionPlan, tmp_path: Path) -> None:
    two = [with_changes(world, shards=2, shard=shard) for shard in (0, 1)]
    for plan in two:
        extract_features(plan)
    before = stored(shutil.copytree(world.out, tmp_path / "copy"))  # what a process has read it cannot write
    for number in range(6):
        save_picture(world.images / "0" / f"{number}.png", 20 + number)  # type: ignore[operator]
    assert sum(extract_features(plan).extracted for plan in two) == 6
    after = stored(world.out)
    assert len(after) == 13
    for key, regions in before.items():
        assert encode_regions(regions) == encode_regions(after[key])


def test_tars_give_the_same_store_as_their_folder(world: ExtractionPlan, tmp_path: Path) -> None:
    for name in "ab":
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            tar.add(world.images / name, name)  # type: ignore[operator]
    extract_features(world)
    tars = with_changes(world, images=(tmp_path / "a.tar", tmp_path / "b.tar"), out=tmp_path / "other")
    result = extract_features(tars)
    assert (result.extracted, result.finished) == (7, True)
    assert result.failures[0].path == f"{tmp_path / 'a.tar'}:a/broken.png"
    assert_equal_stores(stored(world.out), stored(tars.out))


def test_a_run_with_another_number_of_processes_is_refused_while_one_is_at_work(world: ExtractionPlan) -> None:
    extract_features(with_changes(world, shards=3, shard=2))
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(world.out / "shard-00002")], stdout=subprocess.PIPE, stdin=subprocess.PIPE
    )
    with holder:
        assert holder.stdout is not None and holder.stdout.readline()
        with pytest.raises(StoreError, match=rf"process {holder.pid} on .* as one of 3 processes, now there are 2"):
            extract_features(with_changes(world, shards=2, shard=0))
        holder.kill()
    assert extract_features(with_changes(world, shards=2, shard=0)).extracted


_HOLD = """
import sys
from pathlib import Path
from unimo_ds.data.shard_lock import ShardLock
lock = ShardLock(Path(sys.argv[1]), 3)
print("held", flush=True)
sys.stdin.read()
"""


def test_the_ranks_of_every_call_divide_its_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two calls (elements of an array) of three ranks with two local processes each: twelve shards, each done once."""
    done = []
    for call in range(2):
        for rank in range(3):
            for name, value in (("RANK", rank), ("WORLD_SIZE", 3), ("LOCAL_RANK", rank)):
                monkeypatch.setenv(name, str(value))
            shards, own = own_shards(2, call, 2)
            assert shards == 12 and len(own) == 2
            done += own
    assert done == list(range(12))
    assert own_shards(None, None, 1) == (3, [2])


def test_a_decoding_process_that_the_system_ends_is_named(
    world: ExtractionPlan, tiny: BottomUpDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extraction, "_read", lambda item: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(UnimoError, match="a decoding process was ended by the system"):
        extract(list(find_images(world.images)), tiny, Recorder(), workers=1)  # type: ignore[arg-type]


def test_a_gpu_that_fails_is_no_failure_of_the_image(
    world: ExtractionPlan, tiny: BottomUpDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(images: list[Any]) -> list[Regions]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(tiny, "detect", fail)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        extract(list(find_images(world.images)), tiny, Recorder(), workers=0)  # type: ignore[arg-type]


@pytest.mark.life
def test_two_local_processes_make_one_store(world: ExtractionPlan, tmp_path: Path) -> None:
    extract_features(world)
    result = extract_features(with_changes(world, out=tmp_path / "other", processes=2))
    assert (result.extracted, result.finished, len(result.failures)) == (7, True, 1)
    assert_equal_stores(stored(world.out), stored(tmp_path / "other"))
