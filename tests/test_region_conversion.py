"""Published regions to a store and back: exact, safe against kills, honest about what was lost, in constant memory."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from tests.data.test_store import assert_same
from tests.helpers import random_regions
from tests.region_layouts.published_files import PUBLISHED, Images, detected
from unimo_ds.data.store import RegionStore, RegionStoreWriter, finish_store
from unimo_ds.errors import ConfigError, DataError, StoreError
from unimo_ds.region_conversion import ConversionPlan, ConversionResult, convert_regions, export_regions, read_sizes
from unimo_ds.region_layouts import open_layout
from unimo_ds.regions import Regions, location_features

TOOL = Path(__file__).parents[1] / "tools/convert_regions.py"
FIVE = {str(key): detected(key, 4) for key in range(1, 6)}


def convert(out: Path, *sources: Path, **changes: object) -> ConversionResult:
    return convert_regions(ConversionPlan(sources, out, **changes), show_progress=False)  # type: ignore[arg-type]


def published(path: Path, name: str = "bottom-up", images: Images = FIVE) -> Path:
    PUBLISHED[name].write(path, images)
    return path


def failures(out: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (out / "failures-00000.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", [name for name, kind in PUBLISHED.items() if kind.size and kind.classes != "named"])
def test_a_store_holds_what_its_file_holds(name: str, tmp_path: Path) -> None:
    path = published(tmp_path / f"in{PUBLISHED[name].suffix}", name)
    result = convert(tmp_path / "out", path)
    assert (result.converted, result.present, result.failures, result.lost) == (5, 0, (), ())
    store = RegionStore(tmp_path / "out")
    regions = dict(open_layout(path))
    assert sorted(store.keys()) == sorted(regions) and len(store) == 5
    for key, one in regions.items():
        assert_same(store.get(key), one)
    kind = PUBLISHED[name]
    assert store.detector == {
        "architecture": "Faster R-CNN ResNet-101 (bottom-up attention)",
        "source": kind.layout.removesuffix("_hw"),
        "classes": 0 if kind.classes == "none" else 1600,
        "attributes": 400 if kind.attributes else 0,
        "feature_width": 8,
        "kept_classes": {"none": 0, "best": 1}.get(kind.classes, 16),
    }


def test_several_files_become_one_store_with_names(tmp_path: Path) -> None:
    first = published(tmp_path / "train", "UNIMO", dict(list(FIVE.items())[:3]))
    second = published(tmp_path / "test", "UNIMO, height first", dict(list(FIVE.items())[3:]))
    for kind, count in (("class", 1600), ("attribute", 400)):
        (tmp_path / f"{kind}.txt").write_text("".join(f"{kind} {number}, also called so\n" for number in range(count)))
    names = {"class_names": tmp_path / "class.txt", "attribute_names": tmp_path / "attribute.txt"}
    result = convert(tmp_path / "out", first, second, **names, detector="mine", key_format="{:0>4}.jpg")
    assert result.converted == 5 and result.layouts == ("unimo_tsv", "unimo_tsv_hw")
    store = RegionStore(tmp_path / "out")
    assert sorted(store.keys()) == [f"000{number}.jpg" for number in range(1, 6)]
    assert store.detector["architecture"] == "mine"
    assert store.class_names[:2] == ("class 0", "class 1") and len(store.attribute_names) == 400


def test_a_second_conversion_adds_what_is_new_and_reads_the_rest_by_key(tmp_path: Path) -> None:
    path = published(tmp_path / "a.tsv", images=dict(list(FIVE.items())[:3]))
    assert convert(tmp_path / "out", path).converted == 3
    manifest = (tmp_path / "out/manifest.json").stat().st_mtime_ns
    again = convert(tmp_path / "out", path)
    assert (again.converted, again.present, again.failures) == (0, 3, ())
    assert (tmp_path / "out/manifest.json").stat().st_mtime_ns == manifest
    more = convert(tmp_path / "out", published(tmp_path / "a.tsv"))
    assert (more.converted, more.present) == (2, 3) and len(RegionStore(tmp_path / "out")) == 5


def test_damaged_rows_are_reported_and_those_that_come_again_whole_are_not_lost(tmp_path: Path) -> None:
    """As in bottom-up attention's test2014 features: three rows have damaged base64, and come again whole."""
    path = published(tmp_path / "a.tsv")
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1][:-29] + b"\n"
    lines[3] = lines[3].replace(b"640", b"64", 1)
    whole = published(tmp_path / "b.tsv").read_bytes().splitlines(keepends=True)[1]
    path.write_bytes(b"".join([*lines, whole, lines[0]]))
    result = convert(tmp_path / "out", path)
    assert result.lost == ("4",) and [failure.key for failure in result.failures] == ["2", "4", "1"]
    found = failures(tmp_path / "out")
    assert [one["key"] for one in found] == ["2", "4", "1"]
    assert found[0]["path"].startswith(f"{path}:2 (byte ") and "damaged base64" in found[0]["reason"]
    assert "lies outside its image of 64x427" in found[1]["reason"]
    assert found[2]["path"].startswith(f"{path}:7 ") and found[2]["reason"].startswith("the same key came before")
    again = convert(tmp_path / "out", path)  # steps over what it has by the key, undecoded: the damage to 2 is not seen again
    assert again.lost == ("4",) and [failure.key for failure in again.failures] == ["4", "2", "1"]
    published(path)
    assert convert(tmp_path / "out", path).failures == () and not (tmp_path / "out/failures-00000.jsonl").exists()
    assert sorted(RegionStore(tmp_path / "out").keys()) == ["1", "2", "3", "4", "5"]


def test_rows_of_captions_repeat_their_image_without_complaint(tmp_path: Path) -> None:
    result = convert(tmp_path / "out", published(tmp_path / "a", "UNIMO captions"))
    assert (result.converted, result.failures) == (5, ())


def test_an_image_with_another_width_than_the_first_is_stepped_over(tmp_path: Path) -> None:
    images = {"1": detected(1), "2": detected(2, features=12), "3": detected(3)}
    result = convert(tmp_path / "out", published(tmp_path / "a.tsv", images=images))
    assert result.lost == ("2",)
    assert (
        result.failures[0].reason == "12 numbers a feature and 0 classes; the first image has 8 numbers a feature and 0 classes"
    )


def test_files_of_another_kind_do_not_join_a_store(tmp_path: Path) -> None:
    first, second = published(tmp_path / "a.tsv"), published(tmp_path / "b.tsv", "LXMERT")
    with pytest.raises(DataError, match=r"b\.tsv: is of lxmert_tsv, .*a\.tsv of bottom_up_tsv; one store takes one layout"):
        convert(tmp_path / "out", first, second)
    assert not (tmp_path / "out").exists()
    convert(tmp_path / "out", first)
    with pytest.raises(StoreError, match=r"was written by another detector; .*source: 'bottom_up_tsv' there"):
        convert(tmp_path / "out", second)
    third, fourth = published(tmp_path / "c", "MILVLG"), published(tmp_path / "d", "MCAN", {"9": FIVE["1"]})
    with pytest.raises(StoreError, match=r"d: cannot join what was converted before it; attributes: 400 there, 0 here;"):
        convert(tmp_path / "two", third, fourth)
    assert not (tmp_path / "two/manifest.json").exists()
    assert convert(tmp_path / "two", third).present == 5  # what was converted before the error stays
    with RegionStoreWriter(tmp_path / "many", {"architecture": "x", "feature_width": 8}, 3):
        pass
    with pytest.raises(StoreError, match=r"has shards that no conversion wrote \(shard-00003"):
        convert(tmp_path / "many", first)


def test_wrong_options_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    path = published(tmp_path / "a.tsv")
    for changes, message in (
        ({"key_format": "same.jpg"}, "key_format 'same.jpg': it makes one key of all images"),
        ({"key_format": "{:012d}"}, "expected the image's name as {}, or with zeros before it as {:0>12}"),
        ({"key_format": "{name}"}, "key_format '{name}'"),
        ({"kept_classes": 0}, "kept_classes 0: at least 1"),
        ({"layout": "tsv"}, "layout 'tsv': not known; allowed are"),
        ({"class_names": tmp_path / "none.txt"}, "none.txt: cannot be read as a list of names"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)):
            convert(tmp_path / "out", path, **changes)
    assert not (tmp_path / "out").exists()


def test_a_key_that_is_too_long_costs_its_image(tmp_path: Path) -> None:
    result = convert(tmp_path / "out", published(tmp_path / "a.tsv", images={"1": FIVE["1"], "k" * 600: FIVE["2"]}))
    assert result.converted == 1 and result.failures[0].reason == "a key of 600 bytes; at most 511"


def test_sizes_come_from_coco_from_tables_and_from_the_images(tmp_path: Path) -> None:
    coco = {"images": [{"id": 9, "file_name": "COCO_train2014_000000000009.jpg", "width": 640, "height": 480}]}
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    sizes = read_sizes(tmp_path / "coco.json")
    assert sizes["9"] == sizes["coco_train2014_000000000009"] == sizes["COCO_train2014_000000000009.jpg"] == (640, 480)
    (tmp_path / "plain.json").write_text('{"a": [3, 4]}')
    (tmp_path / "table.tsv").write_text("a\t3\t4\n\nb\t5\t6\n")
    assert read_sizes(tmp_path / "plain.json") == {"a": (3, 4)}
    assert read_sizes(tmp_path / "table.tsv") == {"a": (3, 4), "b": (5, 6)}
    (tmp_path / "images/deep").mkdir(parents=True)
    Image.new("RGB", (7, 8)).save(tmp_path / "images/deep/a.png")
    folder = read_sizes(tmp_path / "images")
    assert (
        folder["deep/a.png"] == (7, 8) and folder.get("b.png") is None and list(folder) == ["deep/a.png"] and len(folder) == 1
    )
    for content in ("{", "[1]", '{"images": [{}]}', '{"a": 3}'):
        (tmp_path / "plain.json").write_text(content)
        with pytest.raises(DataError, match=r"plain\.json: cannot be read as sizes of images"):
            read_sizes(tmp_path / "plain.json")
    (tmp_path / "table.tsv").write_text("a\t3\n")
    with pytest.raises(DataError, match=r"table\.tsv: cannot be read as sizes"):
        read_sizes(tmp_path / "table.tsv")


def test_uniter_with_sizes_has_pixels_and_without_them_says_so_in_the_identity(tmp_path: Path) -> None:
    path = published(tmp_path / "db", "UNITER")
    with pytest.raises(DataError, match=r"give --sizes FILE \(or --nominal-canvas\)"):
        convert(tmp_path / "out", path)
    (tmp_path / "sizes.tsv").write_text("".join(f"{key}.jpg\t640\t427\n" for key in FIVE))
    convert(tmp_path / "pixels", path, sizes=tmp_path / "sizes.tsv", key_format="{}.jpg")
    pixels = RegionStore(tmp_path / "pixels")
    assert (pixels.get("3.jpg").width, pixels.get("3.jpg").height) == (640, 427) and "image_size" not in pixels.detector
    np.testing.assert_allclose(pixels.get("3.jpg").boxes_R4, FIVE["3"].boxes_R4, atol=0.4)
    convert(tmp_path / "canvas", path, nominal_canvas=True)
    canvas = RegionStore(tmp_path / "canvas")
    assert canvas.detector["image_size"] == "where it is not known, 1024x1024 stands for it"
    places = [location_features(one.boxes_R4, one.width, one.height) for one in (canvas.get("3"), pixels.get("3.jpg"))]
    np.testing.assert_allclose(*places, rtol=0, atol=2**-23)


def stored(folder: Path, kept: int = 4) -> dict[str, Regions]:
    rng = np.random.default_rng(kept)
    written = {f"a folder/{number}.jpg": random_regions(rng, number + 1, kept=kept) for number in range(6)}
    identity = {"architecture": "random", "feature_width": 24, "classes": 19, "attributes": 4, "weights_sha256": "a" * 64}
    with RegionStoreWriter(folder, identity, class_names=["cat", "dog"], attribute_names=["red"]) as writer:
        for key, regions in written.items():
            writer.write(key, regions)
    finish_store(folder)
    return written


@pytest.mark.parametrize("kept", [4, 0])
def test_hdf5_gives_back_the_whole_store(kept: int, tmp_path: Path) -> None:
    written = stored(tmp_path / "store", kept)
    assert export_regions(tmp_path / "store", "hdf5", tmp_path / "regions.hdf5", show_progress=False) == 6
    convert(tmp_path / "back", tmp_path / "regions.hdf5")
    store, back = RegionStore(tmp_path / "store"), RegionStore(tmp_path / "back")
    assert sorted(back.keys()) == sorted(written)
    for key, regions in written.items():
        assert_same(back.get(key), regions)
    assert back.detector == store.detector
    assert (back.class_names, back.attribute_names) == (("cat", "dog"), ("red",))


def test_hdf5_can_be_read_as_ban_reads_its_own(tmp_path: Path) -> None:
    written = stored(tmp_path / "store")
    export_regions(tmp_path / "store", "hdf5", tmp_path / "regions.hdf5", show_progress=False)
    with h5py.File(tmp_path / "regions.hdf5") as file:
        rows = {key: row for row, key in enumerate(file["image_ids"].asstr())}
        features, spatials, boxes = (np.array(file[name]) for name in ("image_features", "spatial_features", "pos_boxes"))
        assert features.dtype == spatials.dtype == np.float32
    for key, regions in written.items():
        start, end = boxes[rows[key]]
        assert (features[start:end] == regions.features_RF).all()
        places_R5 = location_features(regions.boxes_R4, 200, 160)
        assert (spatials[start:end, :4] == places_R5[:, :4]).all()
        np.testing.assert_allclose(spatials[start:end, 4] * spatials[start:end, 5], places_R5[:, 4], rtol=1e-6)


def test_lxmert_gives_back_the_best_class_and_attribute(tmp_path: Path) -> None:
    written = stored(tmp_path / "store")
    export_regions(tmp_path / "store", "lxmert", tmp_path / "regions.tsv", show_progress=False)
    for key, found in open_layout(tmp_path / "regions.tsv"):
        regions = written[key]
        assert (found.width, found.height) == (200, 160)
        assert (found.boxes_R4 == regions.boxes_R4).all() and (found.features_RF == regions.features_RF).all()
        for row in range(len(regions)):
            ids, scores = regions.class_ids_RK[row], regions.class_probabilities_RK[row]
            best = next((rank for rank in range(4) if ids[rank]), None)
            expected = (0, 0) if best is None else (ids[best], scores[best])
            assert (found.class_ids_RK[row, 0], found.class_probabilities_RK[row, 0]) == expected
            attribute = regions.attribute_ids_R[row]
            assert found.attribute_ids_R[row] == attribute
            assert found.attribute_probabilities_R[row] == (regions.attribute_probabilities_R[row] if attribute else 0)


def test_a_bottom_up_table_gives_back_boxes_and_features_as_its_own_reader_reads_them(tmp_path: Path) -> None:
    written = stored(tmp_path / "store")
    export_regions(tmp_path / "store", "tsv", tmp_path / "regions.tsv", show_progress=False)
    found = dict(open_layout(tmp_path / "regions.tsv"))
    assert sorted(found) == sorted(written)
    for key, regions in written.items():
        assert (found[key].boxes_R4 == regions.boxes_R4).all() and (found[key].features_RF == regions.features_RF).all()
    assert convert(tmp_path / "back", tmp_path / "regions.tsv").converted == 6


def test_a_published_table_comes_back_as_it_was_but_for_float16(tmp_path: Path) -> None:
    convert(tmp_path / "store", published(tmp_path / "in.tsv", "LXMERT"))
    export_regions(tmp_path / "store", "lxmert", tmp_path / "out.tsv", show_progress=False)
    for (key, before), (other, after) in zip(open_layout(tmp_path / "in.tsv"), open_layout(tmp_path / "out.tsv"), strict=True):
        assert key == other
        assert_same(after, before)


def test_a_failed_export_leaves_no_file_and_an_old_one_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with RegionStoreWriter(tmp_path / "store", {"architecture": "x", "feature_width": 24}) as writer:
        writer.write("a", random_regions(rng, 2))
        writer.write("b\tc", random_regions(rng, 2))
    finish_store(tmp_path / "store")
    (tmp_path / "out.tsv").write_text("before")
    with pytest.raises(DataError, match=r"image 'b\\tc': a table cannot hold a key with a tab"):
        export_regions(tmp_path / "store", "tsv", tmp_path / "out.tsv", show_progress=False)
    assert (tmp_path / "out.tsv").read_text() == "before" and len(list(tmp_path.iterdir())) == 2


def big_table(path: Path, images: int, boxes: int, features: int = 2048) -> None:
    """A table of distinct rows, made fast: the arrays of one image, under many keys."""
    published(path, images={"0": detected(0, boxes, features=features)})
    row = path.read_bytes().split(b"\t", 1)[1]
    with path.open("wb") as file:
        for number in range(images):
            file.write(b"%d\t%s" % (number, row))


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    big_table(path, 500, 36)  # 200 MB
    assert path.stat().st_size > 190e6
    script = (
        "import sys; from pathlib import Path; from unimo_ds.region_layouts import open_layout\n"
        "def resident(): return int(Path('/proc/self/status').read_text().split('RssAnon:')[1].split()[0])\n"
        "seen, start = 0, 0\n"
        "for key, regions in open_layout(Path(sys.argv[1])):\n"
        "    seen += len(regions); start = start or (seen > 36 * 20 and resident())\n"
        "print(seen, resident() - start)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    seen, growth = map(int, done.stdout.split())
    assert seen == 500 * 36 and growth < 8_000, f"{growth} kB more after 480 images"


def call_tool(*arguments: object) -> tuple[int, str]:
    words = [sys.executable, str(TOOL), *map(str, arguments)]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120)
    return done.returncode, done.stdout


@pytest.mark.life
def test_a_killed_conversion_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    big_table(path, 3000, 36, 256)
    words = [sys.executable, str(TOOL), str(path), "--out", str(tmp_path / "out")]
    for attempt in range(2):
        process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
        data = tmp_path / "out/shard-00000/data.mdb"
        size = data.stat().st_size if attempt else 0
        deadline = time.monotonic() + 60
        while not (data.exists() and data.stat().st_size > size + 8_000_000) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "out/manifest.json").exists()
    code, output = call_tool(path, "--out", tmp_path / "out")
    assert code == 0, output
    present = int(re.search(r"; ([\d,]+) were there before", output)[1].replace(",", ""))  # type: ignore[index]
    assert 256 <= present < 3000
    convert(tmp_path / "whole", path)
    store, whole = RegionStore(tmp_path / "out"), RegionStore(tmp_path / "whole")
    assert sorted(store.keys()) == sorted(whole.keys()) and len(store) == 3000
    for key in whole.keys():
        assert_same(store.get(key), whole.get(key))


@pytest.mark.life
def test_the_tool_says_what_it_did_and_what_was_lost(tmp_path: Path) -> None:
    path = published(tmp_path / "a.tsv")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], lines[1][:-29], b"\n", *lines[2:]]))
    code, output = call_tool(path, "--out", tmp_path / "out", "--key-format", "{:0>3}.jpg")
    assert code == 3 and f"{tmp_path}/out: converted 4 images of bottom_up_tsv; 0 were there before" in output
    assert "1 rows were stepped over" in output and "1 images lost" in output and "1 x features: damaged base64" in output
    assert "MB" in output and "4 images" in output  # the progress
    code, output = call_tool(tmp_path / "out", "--to", "lxmert", "--out", tmp_path / "b.tsv")
    assert code == 0 and f"{tmp_path}/b.tsv: wrote 4 images" in output
    code, output = call_tool(tmp_path / "b.tsv", "--out", tmp_path / "out", "--layout", "lxmert_tsv")
    assert code == 1 and "convert_regions: " in output and "another detector" in output and "Traceback" not in output
    assert [key for key, _ in open_layout(tmp_path / "b.tsv")] == ["001.jpg", "003.jpg", "004.jpg", "005.jpg"]


def test_an_export_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    PUBLISHED["bottom-up"].write(tmp_path / "a.tsv", {"1": detected(1, 3)})
    convert_regions(ConversionPlan([tmp_path / "a.tsv"], tmp_path / "store"), show_progress=False)
    with pytest.raises(DataError, match="is a folder; name the file"):
        export_regions(tmp_path / "store", "tsv", tmp_path, show_progress=False)
    with pytest.raises(DataError, match=r"b\.tsv: cannot be written: "):
        export_regions(tmp_path / "store", "tsv", tmp_path / "a.tsv" / "b.tsv", show_progress=False)


def test_a_nominal_canvas_is_named_only_where_it_is_used(tmp_path: Path) -> None:
    PUBLISHED["bottom-up"].write(tmp_path / "a.tsv", {"1": detected(1, 3)})
    convert_regions(ConversionPlan([tmp_path / "a.tsv"], tmp_path / "store", nominal_canvas=True), show_progress=False)
    assert "image_size" not in RegionStore(tmp_path / "store").detector
