"""`unimo-ds regions`: info, verify, show and merge, on whole, damaged and unfinished stores."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.helpers import CLASSES, WIDTH, random_regions
from tests.life.small_run import flip_a_byte
from unimo_ds.cli import app
from unimo_ds.data.store import RegionStore, RegionStoreWriter, encode_regions, finish_store, shard_of
from unimo_ds.errors import ConfigError, DamagedRecordError, DataError, StoreError
from unimo_ds.progress import Progress
from unimo_ds.region_tools import shards
from unimo_ds.region_tools.info import describe_store
from unimo_ds.region_tools.merge import Merged, merge_stores
from unimo_ds.region_tools.show import near_keys, show_regions
from unimo_ds.region_tools.verify import Verification, check_regions, verify_store
from unimo_ds.regions import Regions

DETECTOR = {"architecture": "random", "feature_width": WIDTH, "classes": CLASSES, "attributes": 5}
NAMES = [f"thing {number}" for number in range(1, CLASSES + 1)], ["red", "blue", "old", "new", "wet"]


def sound(seed: int, count: int) -> Regions:
    """Regions without anything to complain of: probabilities are sorted, boxes inside."""
    regions = random_regions(np.random.default_rng(seed), count)
    return replace(regions, class_probabilities_RK=np.sort(regions.class_probabilities_RK, axis=1)[:, ::-1].copy())


def write(
    folder: Path,
    images: dict[str, Regions],
    shards: int = 1,
    finish: bool = True,
    names: Any = NAMES,
    detector: dict[str, Any] = DETECTOR,
) -> Path:
    for shard in range(shards):
        with RegionStoreWriter(folder, detector, shard, *names, shards=shards) as writer:
            for key, regions in images.items():
                if shard_of(key, shards) == shard:
                    writer.write(key, regions)
    if finish:
        finish_store(folder)
    return folder


IMAGES = {f"val/{number:03}.jpg": sound(number, number % 7 + 3) for number in range(40)}


def found_by(store: Path) -> Verification:
    return verify_store(store, show_progress=False)


def run(*words: str | Path) -> Any:
    return CliRunner().invoke(app, ["regions", *map(str, words)], catch_exceptions=True)


# ---- info --------------------------------------------------------------------------------------------------------------


def test_info_counts_what_was_written(tmp_path: Path) -> None:
    info = describe_store(write(tmp_path / "s", IMAGES, shards=3), show_progress=False).content
    counts = [len(regions) for regions in IMAGES.values()]
    assert info["finished"] and info["records"] == 40 and info["regions"] == sum(counts)
    assert info["detector"] == DETECTOR
    assert info["regions_per_image"] == {"min": 3, "median": np.median(counts), "max": 9, "mean": np.mean(counts)}
    assert [(bar["from"], bar["to"], bar["images"]) for bar in info["histogram"]] == [
        (n, n, counts.count(n)) for n in range(3, 10)
    ]
    assert info["record_bytes"] == sum(len(encode_regions(regions)) for regions in IMAGES.values())
    assert info["bytes_per_region"] == pytest.approx(info["record_bytes"] / sum(counts))
    assert info["feature_widths"] == {str(WIDTH): 40} and info["kept_classes"] == {"4": 40}
    assert info["image_sizes"]["most_frequent"] == {"width": 200, "height": 160, "images": 40}
    first = [int(ids[np.argmax(ids != 0)]) for regions in IMAGES.values() for ids in regions.class_ids_RK]
    assert {entry["id"]: entry["regions"] for entry in info["classes"]} == {n: first.count(n) for n in set(first)}
    assert info["classes"][0]["name"] == f"thing {info['classes'][0]['id']}"
    assert [shard["records"] for shard in info["shards"]] == [
        sum(shard_of(key, 3) == shard for key in IMAGES) for shard in range(3)
    ]


def test_info_is_read_by_people_and_by_programs(tmp_path: Path) -> None:
    store = write(tmp_path / "s", IMAGES, names=((), ()))
    (store / "failures-00000.jsonl").write_text(
        "".join(
            json.dumps({"key": k, "path": k, "reason": r}) + "\n"
            for k, r in (("a", "OSError: x"), ("b", "OSError: y"), ("c", "huge"))
        )
    )
    result = run("info", store)
    assert result.exit_code == 0
    for expected in (
        "a finished regions store",
        "feature_width  24",
        "records: 40",
        "3 least",
        "█",
        "no names.json",
        "class 1",
    ):
        assert expected in result.output, expected
    assert "images that failed: 3 (failures-00000.jsonl)" in result.output and re.search(r"2  OSError\n", result.output)
    content = json.loads(run("info", store, "--json").stdout)  # the progress goes to the other stream
    assert content["failures"] == {"files": ["failures-00000.jsonl"], "images": 3, "reasons": {"OSError": 2, "huge": 1}}


def test_info_of_a_sample_says_so_and_counts_records_exactly(tmp_path: Path) -> None:
    info = describe_store(write(tmp_path / "s", IMAGES, shards=2), sample=10, show_progress=False)
    assert info.content["records"] == 40 and 8 <= info.content["looked_at"] <= 12
    assert f"of {info.content['looked_at']} records spread evenly" in info.text


def test_info_of_an_unfinished_store_says_what_is_there(tmp_path: Path) -> None:
    writer = RegionStoreWriter(tmp_path / "s", DETECTOR, 0, *NAMES, shards=2)
    for key, regions in IMAGES.items():
        if shard_of(key, 2) == 0:
            writer.write(key, regions)
    writer.flush()
    info = describe_store(tmp_path / "s", show_progress=False)  # while it is open for writing
    writer.close()
    assert not info.content["finished"] and "not finished" in info.text
    assert info.content["records"] == sum(shard_of(key, 2) == 0 for key in IMAGES)


@pytest.mark.parametrize("command", ["info", "verify"])
def test_a_folder_that_is_no_store_is_named(command: str, tmp_path: Path) -> None:
    result = run(command, tmp_path)
    assert isinstance(result.exception, StoreError) and "holds no shard-* folder" in str(result.exception)
    result = run(command, tmp_path / "nowhere")
    assert isinstance(result.exception, StoreError) and "no such folder" in str(result.exception)


def test_classes_that_were_not_kept_are_not_invented(tmp_path: Path) -> None:
    bare = {"a": replace(sound(1, 4), class_ids_RK=np.zeros((4, 0), "u2"), class_probabilities_RK=np.zeros((4, 0), "f2"))}
    store = write(tmp_path / "s", bare)
    info = describe_store(store, show_progress=False)
    assert info.content["classes"] == [] and "no classes are stored" in info.text
    assert found_by(store).sound


# ---- verify ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 3])
def test_a_whole_store_is_sound(processes: int, tmp_path: Path) -> None:
    found = verify_store(write(tmp_path / "s", IMAGES, shards=3), processes, show_progress=False)
    assert found.sound and found.records == 40 and found.regions == sum(map(len, IMAGES.values())) and not found.faults
    assert "sound: checksums, keys, geometry, probabilities and counts" in found.text()


def test_a_changed_byte_is_found_with_its_shard_and_key(tmp_path: Path) -> None:
    store = write(tmp_path / "s", IMAGES, shards=2)
    shard = shard_of("val/007.jpg", 2)
    flip_a_byte(store / f"shard-{shard:05}/data.mdb", IMAGES["val/007.jpg"].features_RF.tobytes())
    found = found_by(store)
    assert found.counts == {"record is damaged": 1} and found.records == 40
    assert str(found.faults[0]).startswith(f"shard-{shard:05}: image 'val/007.jpg': the checksum does not match")
    result = run("verify", store)
    assert result.exit_code == 1 and "val/007.jpg" in result.output and "damage: record is damaged: 1" in result.output


def test_a_shard_that_was_cut_short_does_not_end_the_check(tmp_path: Path) -> None:
    """Reading behind the end of a mapped file kills a process."""
    images = {f"{number}.jpg": random_regions(np.random.default_rng(number), 30, width=512) for number in range(40)}
    store = write(tmp_path / "s", images, shards=2, detector={**DETECTOR, "feature_width": 512})
    path = store / "shard-00001/data.mdb"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    found = found_by(store)
    assert found.records == sum(shard_of(key, 2) == 0 for key in images)
    assert any(fault.shard == "shard-00001" and "was cut short" in fault.detail for fault in found.faults), found.text()
    assert describe_store(store, show_progress=False).content["shards"][1]["problem"].startswith("CorruptedError: data.mdb has")


@pytest.mark.long
def test_a_reading_process_that_dies_is_told(tmp_path: Path) -> None:
    silent = Progress("reading", None, enabled=False)
    found = list(shards.read_shards(_die, [tmp_path / "shard-00000", tmp_path / "shard-00001"], None, 2, silent))
    assert sorted(shard.name for shard, _ in found) == ["shard-00000", "shard-00001"]
    assert all(isinstance(result, shards.ShardFailure) and "signal SIGKILL" in result.reason for _, result in found)


def _die(shard: Path, common: None, advance: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_lost_shards_wrong_counts_and_strangers_are_named(tmp_path: Path) -> None:
    store = write(tmp_path / "s", IMAGES, shards=3)
    shutil.rmtree(store / "shard-00002")
    manifest = json.loads((store / "manifest.json").read_text())
    manifest["shards"][0]["records"] += 1
    (store / "manifest.json").write_text(json.dumps(manifest))
    (store / "names.json").write_text(json.dumps({"classes": ["one"], "attributes": []}))
    text = found_by(store).text()
    assert "shard-00002: the manifest promises" in text and "the folder is missing" in text
    assert re.search(r"shard-00000: \d+ records where the manifest says \d+", text)
    assert "manifest.json: says 40 records, and 41 when its shards are added up" in text
    assert "names.json: 1 names of classes where the detector has 20" in text


@pytest.mark.parametrize("name", ["manifest.json", "shard-00000.json"])
@pytest.mark.parametrize(("content", "words"), [("{", "cannot be read"), ("[]", "holds list"), ("{}", "has no `detector`")])
def test_a_damaged_file_beside_the_shards_is_named(name: str, content: str, words: str, tmp_path: Path) -> None:
    store = write(tmp_path / "s", IMAGES)
    (store / name).write_text(content)
    with pytest.raises(StoreError, match=rf"{re.escape(name)}: {words}"):
        found_by(store)


def test_an_unfinished_store_is_not_sound(tmp_path: Path) -> None:
    found = found_by(write(tmp_path / "s", IMAGES, finish=False))
    assert found.counts == {"not finished": 1} and found.records == 40


def two_shards_with_one_key(folder: Path, same: bool) -> Path:
    for shard in range(2):
        with RegionStoreWriter(folder, DETECTOR, shard, *NAMES) as writer:
            writer.write("twice.jpg", sound(1 if same else shard, 5))
            writer.write(f"{shard}.jpg", sound(shard, 4))
    return folder


def test_a_key_in_two_shards_is_found(tmp_path: Path) -> None:
    found = found_by(two_shards_with_one_key(tmp_path / "s", same=True))
    assert found.counts == {"not finished": 1, "key in two shards": 1}
    assert "shard-00000, shard-00001: image 'twice.jpg'" in found.text()


def test_shards_of_two_detectors_are_found(tmp_path: Path) -> None:
    write(tmp_path / "s", IMAGES)
    write(tmp_path / "t", IMAGES, detector={**DETECTOR, "classes": 19})
    shutil.copytree(tmp_path / "t" / "shard-00000", tmp_path / "s" / "shard-00001")
    shutil.copy(tmp_path / "t" / "shard-00000.json", tmp_path / "s" / "shard-00001.json")
    assert "another detector: classes: 19 there, 20 here" in found_by(tmp_path / "s").text()


GOOD = sound(3, 6)


def changed(name: str, place: Any, value: float) -> Regions:
    array = getattr(GOOD, name).copy()
    array[place] = value
    return replace(GOOD, **{name: array})


@pytest.mark.parametrize(
    ("regions", "kind", "words"),
    [
        (changed("boxes_R4", (2, 0), np.nan), "geometry", "region 2: box is infinite or not a number"),
        (changed("boxes_R4", (2, 2), 1e5), "geometry", r"region 2: box .* lies outside the image of 200x160"),
        (changed("boxes_R4", (2, 0), -9), "geometry", "lies outside"),
        (changed("boxes_R4", (2, 2), 0.5), "geometry", "ends before it begins"),
        (changed("boxes_R4", (2, 2), 200.9), "box up to a pixel outside", "reaches out of the image"),
        (changed("boxes_R4", (2, 2), GOOD.boxes_R4[2, 0]), "box without area", "has no area"),
        (changed("features_RF", (1, 5), np.inf), "features", "region 1: infinite or not a number"),
        (changed("features_RF", (slice(0, 5), 5), np.nan), "features", "regions 0, 1, 2 and 2 more"),
        (changed("class_probabilities_RK", (3, 0), 1.5), "probabilities", "region 3: class probability outside 0..1"),
        (changed("class_probabilities_RK", (3, 0), np.nan), "probabilities", "class probability outside"),
        (changed("class_probabilities_RK", (3, 3), 1.0), "probabilities", "region 3: class probabilities are not sorted"),
        (changed("attribute_probabilities_R", 3, -0.5), "probabilities", "region 3: attribute probability outside 0..1"),
        (changed("class_ids_RK", (4, 1), 21), "ids", "region 4: class 21 of 20"),
        (changed("attribute_ids_R", 4, 6), "ids", "region 4: attribute 6 of 5"),
        (replace(GOOD, features_RF=GOOD.features_RF[:, :8]), "features", "8 wide, the detector's are 24"),
        (replace(GOOD, width=0), "geometry", "the image is 0x160 pixels"),
    ],
)
def test_what_can_not_be_is_named(regions: Regions, kind: str, words: str) -> None:
    found = check_regions(regions, DETECTOR)
    assert any(name == kind and re.search(words, detail) for name, detail in found), found


def test_good_regions_pass_with_any_detector() -> None:
    assert check_regions(GOOD, DETECTOR) == [] and check_regions(GOOD, {}) == []
    assert check_regions(sound(0, 0), DETECTOR) == []


def test_boxes_that_detectors_do_write_are_remarks_and_no_damage(tmp_path: Path) -> None:
    store = write(
        tmp_path / "s", {"a": changed("boxes_R4", (2, 2), 200.9), "b": changed("boxes_R4", (1, 3), GOOD.boxes_R4[1, 1])}
    )
    found = found_by(store)
    assert found.sound and found.remarks == {"box up to a pixel outside": 1, "box without area": 1}
    assert "worth a remark, no damage" in found.text()


def test_many_faults_are_counted_and_some_named(tmp_path: Path) -> None:
    store = write(tmp_path / "s", {f"{number}": changed("features_RF", (0, 0), np.nan) for number in range(70)})
    text = found_by(store).text(most=5)
    assert text.count("shard-00000: image") == 5 and "... and 65 more" in text and "damage: features: 70" in text


# ---- show --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "val").mkdir()
    for number, key in enumerate(IMAGES):
        pixels = np.random.default_rng(number).integers(60, 200, (160, 200, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / key)
    return folder


@pytest.fixture(scope="module")
def shown_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("store") / "s", IMAGES, shards=2)


class Page(HTMLParser):
    """All tags with their attributes, and the text; fails on tags that are not closed in their order."""

    void = ("meta", "link", "img", "br", "input", "hr")

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(content)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str, name: str | None = None) -> list[dict[str, str | None]]:
        return [
            attrs for found, attrs in self.tags if found == tag and (name is None or name in (attrs.get("class") or "").split())
        ]


def test_a_picture_is_drawn_large_enough_to_be_read(shown_store: Path, pictures: Path, tmp_path: Path) -> None:
    result = run("show", shown_store, "val/005.jpg", "--images", pictures, "--out", tmp_path / "new" / "a.png")
    assert result.exit_code == 0 and "val/005.jpg: 8 regions, 200x160 pixels" in result.output
    with Image.open(tmp_path / "new" / "a.png") as drawn:
        assert drawn.size == (800, 640)


def test_a_page_holds_picture_boxes_and_table_and_needs_no_network(shown_store: Path, pictures: Path, tmp_path: Path) -> None:
    show_regions(shown_store, "val/005.jpg", pictures, tmp_path / "a.html")
    content = (tmp_path / "a.html").read_text()
    page, regions = Page(content), IMAGES["val/005.jpg"]
    boxes = page.all("rect", "box")
    assert len(boxes) == len(page.all("tr")) - 1 == len(regions) == len(page.all("g", "label"))
    places = sorted(tuple(float(box[name] or 0) for name in ("x", "y", "width", "height")) for box in boxes)
    x1, y1, x2, y2 = regions.boxes_R4.T
    assert np.allclose(places, sorted(zip(x1, y1, x2 - x1, y2 - y1, strict=True)), atol=0.11)
    source = page.all("image")[0]["href"] or ""
    assert source.startswith("data:image/jpeg;base64,")
    assert not re.search(r"(src|href)=\"(?!data:)", content) and "http" not in content.replace("http-equiv", "")
    assert page.all("input")[0]["type"] == "range"
    assert "thing " in page.text and any(name in page.text for name in NAMES[1])


def test_names_and_keys_are_no_html(tmp_path: Path) -> None:
    names = [f"<b>{number}</b> & co" for number in range(CLASSES)], ["猫", "Ж", "é", "<i>", "&"]
    store = write(tmp_path / "s", {"<script>x</script>.jpg": sound(1, 5)}, names=names)
    show_regions(store, "<script>x</script>.jpg", None, tmp_path / "a.html")
    page = Page((tmp_path / "a.html").read_text())
    assert not page.all("b") and len(page.all("script")) == 1 and "<b>" in page.text and "<script>x" in page.text


def test_a_gallery_is_chosen_by_its_seed(shown_store: Path, pictures: Path, tmp_path: Path) -> None:
    def keys(seed: int, count: int = 4) -> list[str]:
        out = tmp_path / f"{seed}-{count}.html"
        show_regions(shown_store, None, pictures, out, count=count, seed=seed)
        page = Page(out.read_text())
        assert len(page.all("svg")) == min(count, 40) == len(page.all("details"))
        return re.findall(r"val/\d+\.jpg", page.text)

    assert keys(0) == keys(0) != keys(1) and len(set(keys(0))) == 4
    assert set(keys(2, 100)) == set(IMAGES)
    show_regions(shown_store, None, pictures, tmp_path / "sheet.png", count=5)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width == 3 * 480 + 4 * 12


def test_without_a_picture_boxes_are_drawn_on_a_canvas_and_the_reason_is_said(shown_store: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    shown = show_regions(shown_store, "val/005.jpg", tmp_path / "empty", tmp_path / "a.html")
    assert "val/005.jpg: missing: " in shown.text
    assert "missing: " in (tmp_path / "a.html").read_text()
    show_regions(shown_store, "val/005.jpg", None, tmp_path / "b.html")
    assert "no --images folder was given" in (tmp_path / "b.html").read_text()


def test_a_picture_of_another_size_is_remarked_and_keys_need_no_extension(tmp_path: Path) -> None:
    store = write(tmp_path / "s", {"42": sound(1, 5)}, names=((), ()))
    Image.new("RGB", (100, 90)).save(tmp_path / "42.jpg")
    shown = show_regions(store, "42", tmp_path, tmp_path / "a.png")
    assert "has 100x90 pixels, its regions are of 200x160" in shown.text and "numbers stand for the names" in shown.text


def test_a_wrong_key_gets_near_ones(shown_store: Path) -> None:
    for wrong, right in (
        ("005.jpg", "val/005.jpg"),
        ("val/005", "val/005.jpg"),
        ("VAL/005.JPG", "val/005.jpg"),
        ("5", "val/005.jpg"),
    ):
        with pytest.raises(DataError, match=f"has no image '{wrong}'; did you mean '{right}'"):
            show_regions(shown_store, wrong)
    with pytest.raises(DataError, match="keys look like 'val/"):
        show_regions(shown_store, "ÖÖÖÖÖÖÖ")
    assert near_keys("val/0O5.jpg", list(IMAGES))[0] in IMAGES


@pytest.mark.parametrize("out", ["a.gif", "a", "a.htm"])
def test_another_kind_of_file_is_refused(out: str, shown_store: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected \.png or \.jpg for a picture, \.html for a page"):
        show_regions(shown_store, "val/005.jpg", None, tmp_path / out)
    with pytest.raises(ConfigError, match=r"--images .*: is no folder"):
        show_regions(shown_store, "val/005.jpg", tmp_path / "nowhere")


def test_an_image_without_regions_or_classes_can_be_shown(tmp_path: Path) -> None:
    bare = replace(sound(1, 4), class_ids_RK=np.zeros((4, 0), "u2"), class_probabilities_RK=np.zeros((4, 0), "f2"))
    store = write(tmp_path / "s", {"none.jpg": sound(0, 0), "bare.jpg": bare})
    for key in ("none.jpg", "bare.jpg"):
        for suffix in ("png", "html"):
            show_regions(store, key, None, tmp_path / f"{key}.{suffix}")
    page = Page((tmp_path / "bare.jpg.html").read_text())
    assert not [box for box in page.all("input") if box["type"] == "range"] and len(page.all("rect", "box")) == 4


# ---- merge -------------------------------------------------------------------------------------------------------------


def merged(out: Path, *stores: Path, **options: Any) -> Merged:
    return merge_stores(out, stores, show_progress=False, **options)


def assert_holds(store: Path, images: dict[str, Regions]) -> None:
    opened = RegionStore(store)
    assert sorted(opened.keys()) == sorted(images)
    for key, regions in images.items():
        assert encode_regions(opened.get(key)) == encode_regions(regions), key


def test_shards_are_merged_into_another_number_byte_for_byte(tmp_path: Path) -> None:
    store = write(tmp_path / "s", IMAGES, shards=5)
    done = merged(tmp_path / "out", store, shards=2)
    assert done == Merged(records=40, written=40, doubled=0, shards=2)
    assert_holds(tmp_path / "out", IMAGES)
    opened = RegionStore(tmp_path / "out")
    assert opened.manifest["hashed_over"] == [2] and list(opened.class_names) == NAMES[0] and opened.detector == DETECTOR
    assert found_by(tmp_path / "out").sound
    assert done.text(tmp_path / "out").endswith("40 records in 2 shards")


def test_stores_are_merged_and_the_same_command_again_does_nothing(tmp_path: Path) -> None:
    keys = list(IMAGES)
    one = write(tmp_path / "one", {key: IMAGES[key] for key in keys[:15]}, names=((), ()))
    two = write(tmp_path / "two", {key: IMAGES[key] for key in keys[15:]}, shards=2)
    result = run("merge", tmp_path / "out", one, two, "--shards", "3")
    assert result.exit_code == 0 and "40 records in 3 shards" in result.output
    assert_holds(tmp_path / "out", IMAGES)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert "merged already" in run("merge", tmp_path / "out", one, two, "--shards", "3").output
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {path: time for path, time in after.items() if path.suffix == ".json"} == {
        path: time for path, time in before.items() if path.suffix == ".json"
    }
    with pytest.raises(StoreError, match="was begun as a merge of other stores"):
        merged(tmp_path / "out", one, two, shards=2)


def test_one_image_in_two_stores_is_taken_once_if_it_is_the_same(tmp_path: Path) -> None:
    one, two = (
        write(tmp_path / "one", {"a": sound(1, 3), "b": sound(2, 3)}),
        write(tmp_path / "two", {"b": sound(2, 3), "c": GOOD}),
    )
    assert merged(tmp_path / "out", one, two).doubled == 1
    assert_holds(tmp_path / "out", {"a": sound(1, 3), "b": sound(2, 3), "c": GOOD})


def test_another_image_under_the_same_key_is_refused_or_the_first_preferred(tmp_path: Path) -> None:
    one, two = (
        write(tmp_path / "one", {"a": sound(1, 3), "b": sound(2, 3)}),
        write(tmp_path / "two", {"b": sound(9, 3), "c": GOOD}),
    )
    with pytest.raises(StoreError, match=r"'b' in .*one/shard-00000 and in .*two/shard-00000\. Say --prefer first"):
        merged(tmp_path / "out", one, two)
    assert not (tmp_path / "out").exists()
    assert merged(tmp_path / "out", one, two, prefer_first=True).doubled == 1
    assert_holds(tmp_path / "out", {"a": sound(1, 3), "b": sound(2, 3), "c": GOOD})
    assert merged(tmp_path / "back", two, one, prefer_first=True).records == 3
    assert_holds(tmp_path / "back", {"a": sound(1, 3), "b": sound(9, 3), "c": GOOD})


@pytest.mark.parametrize("same", [True, False])
def test_a_store_that_can_not_be_finished_for_a_doubled_key_is_mended(same: bool, tmp_path: Path) -> None:
    store = two_shards_with_one_key(tmp_path / "s", same)
    with pytest.raises(StoreError, match=r"unimo-ds regions merge OUT .* --prefer first"):
        finish_store(store)
    assert run("merge", tmp_path / "out", store, "--prefer", "first").exit_code == 0
    assert_holds(tmp_path / "out", {"twice.jpg": sound(1 if same else 0, 5), "0.jpg": sound(0, 4), "1.jpg": sound(1, 4)})


def test_other_detectors_and_other_names_are_refused(tmp_path: Path) -> None:
    one = write(tmp_path / "one", {"a": GOOD})
    other = write(tmp_path / "other", {"b": GOOD}, detector={**DETECTOR, "weights_sha256": "b"})
    with pytest.raises(StoreError, match=r"made by another detector than .*one; weights_sha256: 'b' there, None here"):
        merged(tmp_path / "out", one, other)
    renamed = write(tmp_path / "renamed", {"b": GOOD}, names=([*NAMES[0][:4], "x", *NAMES[0][5:]], NAMES[1]))
    with pytest.raises(StoreError, match=r"renamed/names\.json: has other class names than .*one, from number 5 on"):
        merged(tmp_path / "out", one, renamed)
    assert not (tmp_path / "out").exists()


def test_places_and_sources_that_can_not_be_are_refused(tmp_path: Path) -> None:
    one = write(tmp_path / "one", {"a": GOOD})
    with pytest.raises(ConfigError, match="merged into itself"):
        merged(one, one)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match="there already and not empty"):
        merged(tmp_path / "full", one)
    writer = RegionStoreWriter(tmp_path / "open", DETECTOR)
    with pytest.raises(StoreError, match="is not complete: its writer still runs"):
        merged(tmp_path / "out", one, tmp_path / "open")
    writer.close()
    result = run("merge", tmp_path / "out", one, "--prefer", "last")
    assert isinstance(result.exception, ConfigError)
    two = write(tmp_path / "two", IMAGES, shards=2)
    shutil.rmtree(two / "shard-00001")
    with pytest.raises(StoreError, match="shard-00001 is missing"):
        merged(tmp_path / "out", one, two)


def test_a_damaged_record_ends_a_merge_and_is_named(tmp_path: Path) -> None:
    store = write(tmp_path / "s", IMAGES)
    flip_a_byte(store / "shard-00000/data.mdb", IMAGES["val/007.jpg"].features_RF.tobytes())
    with pytest.raises(DamagedRecordError, match=r"s/shard-00000: image 'val/007\.jpg': the checksum"):
        merged(tmp_path / "out", store)
    with pytest.raises(StoreError, match="not a finished"):
        RegionStore(tmp_path / "out")


@pytest.mark.long
def test_a_merge_that_was_killed_is_finished_by_the_same_command(tmp_path: Path) -> None:
    """Killed again and again while it writes; every call goes on from what was committed."""
    images = {f"{number:04}.jpg": random_regions(np.random.default_rng(number), 40, width=512) for number in range(600)}
    store = write(tmp_path / "s", images, shards=3, detector={**DETECTOR, "feature_width": 512})
    code = (
        "import sys, pathlib\n"
        "from unimo_ds.region_tools import merge\n"
        "merge._COMMIT_BYTES = 1 << 20\n"
        "if __name__ == '__main__':\n"
        "    out, store = map(pathlib.Path, sys.argv[1:])\n"
        "    print(merge.merge_stores(out, [store], 2, show_progress=False).written)\n"
    )
    script = tmp_path / "merge_slowly.py"
    script.write_text(code)
    command = [sys.executable, str(script), str(tmp_path / "out"), str(store)]
    kills = 0
    while kills < 3:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        begun = size_of(tmp_path / "out")
        while process.poll() is None and size_of(tmp_path / "out") <= begun + (2 << 20):
            time.sleep(0.002)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        assert not (tmp_path / "out" / "manifest.json").exists()
    assert kills >= 1
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) < 600  # goes on, and does not begin anew
    assert_holds(tmp_path / "out", images)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("shard-*/data.mdb"))
