"""Golden verification: each way to go wrong is made on purpose, and its diagnosis expected."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from unimo_ds.cli import app
from unimo_ds.data.store import RegionStoreWriter, finish_store
from unimo_ds.errors import DataError, StoreError
from unimo_ds.golden import Report, check_reference, verify
from unimo_ds.golden.comparison import cosines, match, overlaps
from unimo_ds.regions import Regions

FEATURES, CLASSES, ATTRIBUTES = 64, 30, 9
DETECTOR = {"architecture": "random", "feature_width": FEATURES, "classes": CLASSES, "attributes": ATTRIBUTES}
SIZES = [(640, 480), (500, 375), (333, 500), (1024, 683), (480, 640), (612, 612)]
Change = Callable[[Regions], Regions]


def image(seed: int, count: int = 24) -> Regions:
    """Distinct boxes inside an image, non-negative features, all classes and attributes in use."""
    rng = np.random.default_rng(seed)
    width, height = SIZES[seed % len(SIZES)]
    sides = rng.uniform(0.08, 0.4, (count, 2)) * [width, height]
    corners = rng.random((count, 2)) * ([width, height] - sides - 4) + 1
    ids = np.stack([rng.permutation(CLASSES)[:4] + 1 for _ in range(count)])
    return Regions(
        width,
        height,
        np.concatenate([corners, corners + sides], axis=1).astype("f4"),
        np.maximum(rng.normal(0.3, 1, (count, FEATURES)), 0).astype("f2"),
        ids.astype("u2"),
        np.sort(rng.random((count, 4)) / 2, axis=1)[:, ::-1].astype("f2"),
        rng.integers(1, ATTRIBUTES, count).astype("u2"),
        rng.random(count).astype("f2"),
    )


def write(folder: Path, images: dict[str, Regions], detector: dict[str, object] = DETECTOR) -> Path:
    with RegionStoreWriter(folder, detector) as writer:
        for key, regions in images.items():
            writer.write(key, regions)
    finish_store(folder)
    return folder


IMAGES = {f"val/{number:03}.jpg": image(number) for number in range(8)}


def compared(tmp_path: Path, change: Change, ours: Change = lambda regions: regions) -> Report:
    """Our store as it is, the reference with `change` applied to each image."""
    store = write(tmp_path / "store", {key: ours(regions) for key, regions in IMAGES.items()})
    golden = write(tmp_path / "golden", {key: change(regions) for key, regions in IMAGES.items()})
    return verify(store, golden, show_progress=False)


def said(report: Report) -> str:
    return " | ".join(finding.text for finding in report.findings)


def take(regions: Regions, rows: object) -> Regions:
    arrays = {name: value[rows] for name, value in vars(regions).items() if isinstance(value, np.ndarray)}
    return replace(regions, **arrays)


def test_equal_stores_are_the_same_and_nothing_is_diagnosed(tmp_path: Path) -> None:
    report = compared(tmp_path, lambda regions: regions)
    assert report.same and report.matched == 1 and not report.findings and not report.worst and not report.missing
    assert [one.matched for one in report.comparisons] == [24] * 8
    for expected in (
        ": the same",
        "images: 8 compared, 8 of them by the same key",
        "192 matched at IoU >= 0.99 (100 % of both sides); 0 only here, 0 only in the reference",
        "x +0.000, y +0.000, width +0.000, height +0.000",
        "least 1.00000",
        "0 of 192 below 0.999",
        "classes: 100 % the same",
        "attributes: 100 % the same",
        "detector: the same identity",
        "val/003.jpg: 24 boxes matched of 24 here and 24 there",
    ):
        assert expected in report.text, expected


def test_rounding_of_a_reference_passes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def nearly(regions: Regions) -> Regions:
        boxes = regions.boxes_R4 + rng.normal(0, 0.02, regions.boxes_R4.shape)
        features = regions.features_RF * (1 + rng.normal(0, 0.005, regions.features_RF.shape))
        return replace(regions, boxes_R4=boxes.astype("f4"), features_RF=features.astype("f2"))

    report = compared(tmp_path, nearly)
    assert report.same and not report.findings


# ---- faults, each with the words that name it --------------------------------------------------------------------------


def boxes(change: Callable[[np.ndarray, Regions], np.ndarray]) -> Change:
    return lambda regions: replace(regions, boxes_R4=change(regions.boxes_R4, regions).astype("f4"))


def features(change: Callable[[np.ndarray], np.ndarray]) -> Change:
    return lambda regions: replace(regions, features_RF=change(regions.features_RF.astype("f4")).astype("f2"))


def class_ids(change: Callable[[np.ndarray], np.ndarray]) -> Change:
    return lambda regions: replace(regions, class_ids_RK=change(regions.class_ids_RK.astype("i8")).astype("u2"))


def noise(scale: float) -> Callable[[np.ndarray], np.ndarray]:
    rng = np.random.default_rng(5)
    return lambda values: np.maximum(values + rng.normal(0, scale, values.shape) * values.std(), 0)


def crossed(regions: Regions) -> Regions:
    return replace(regions, features_RF=np.roll(regions.features_RF, 1, axis=0))


def resized(boxes_R4: np.ndarray, regions: Regions) -> np.ndarray:
    return boxes_R4 * (600 / min(regions.width, regions.height))


PERMUTATION = np.random.default_rng(1).permutation(FEATURES)
RENAMED = np.concatenate([[0], np.random.default_rng(2).permutation(CLASSES) + 1])
FAULTS: dict[str, tuple[Change, str]] = {
    "scaled alike": (boxes(lambda b, _: b * 1.6), r"all boxes are scaled: .* times 0\.625 across and 0\.625 down"),
    "resized image's scale": (boxes(resized), r"all boxes are scaled.*images resized to a short side of 600"),
    "plus one": (
        boxes(lambda b, _: b + np.array([0, 0, 1, 1])),
        r"by -1\.00 pixels in width and -1\.00 in height.*off by one",
    ),
    "minus one": (boxes(lambda b, _: b - [0, 0, 1, 1]), r"\+1\.00 pixels in width.*off by one"),
    "from one": (boxes(lambda b, _: b + 1), r"shifted alike \(x1 -1\.00, y1 -1\.00.*counted from 0"),
    "axes": (boxes(lambda b, _: b[:, [1, 0, 3, 2]]), r"y1, x1, y2, x2: the axes are exchanged"),
    "sides": (boxes(lambda b, _: np.concatenate([b[:, :2], b[:, 2:] - b[:, :2]], 1)), r"x, y, width, height, not two corners"),
    "mirrored": (boxes(lambda b, r: np.stack([r.width - b[:, 2], b[:, 1], r.width - b[:, 0], b[:, 3]], 1)), "mirrored"),
    "shares": (boxes(lambda b, r: b / np.array([r.width, r.height] * 2)), r"shares of the image \(0\.\.1\)"),
    "other boxes": (boxes(lambda b, r: image(r.width + 77).boxes_R4 % 300), r"same features .* with other boxes"),
    "near boxes": (
        lambda r: features(noise(0.5))(boxes(lambda b, _: b + np.random.default_rng(r.width).normal(0, 6, b.shape))(r)),
        r"same objects are found .* placed a little otherwise",
    ),
    "other image": (lambda r: replace(image(r.width + 78), width=r.width, height=r.height), r"most boxes have no counterpart"),
    "fewer boxes": (lambda r: take(r, slice(10)), r"number differs: always 24 an image here, always 10 in the reference"),
    "close features": (features(noise(0.12)), r"boxes agree, features do not \(median cosine 0\.99\d\): close, .*resampling"),
    "related features": (features(noise(0.8)), r"related, as from another colour order"),
    "unrelated": (features(lambda f: np.random.default_rng(3).random(f.shape) ** 8), "unrelated, as from another layer"),
    "before ReLU": (
        features(lambda f: f - 0.6),
        "in the reference they have negative numbers, so they were",
    ),
    "channels": (features(lambda f: f[:, PERMUTATION]), "the channels are permuted"),
    "crossed": (crossed, "the same features are on both sides, but at other boxes"),
    "factor": (features(lambda f: f / 4), r"features are 4 times as long .*equal up to a factor"),
    "unit length": (features(lambda f: f / np.linalg.norm(f, axis=1, keepdims=True)), "equal up to a factor"),
    "width": (features(lambda f: f[:, :32]), r"features are 64 wide here and 32 in the reference.*another layer"),
    "classes up": (
        class_ids(lambda ids: ids + 1),
        r"only 0% .* same class; .* shifted by -1: the background is first",
    ),
    "classes down": (class_ids(lambda ids: ids - 1), r"ids here are shifted by \+1"),
    "classes renamed": (class_ids(lambda ids: RENAMED[ids]), "each id stands for one other id"),
    "classes": (class_ids(lambda ids: np.random.default_rng(4).integers(1, 30, ids.shape)), "another head, other weights"),
    "attributes": (
        lambda r: replace(r, attribute_ids_R=r.attribute_ids_R + np.uint16(1)),
        r"attribute; .* by -1: `none`",
    ),
    "exchanged size": (lambda r: replace(r, width=r.height, height=r.width), "width and height of the images are exchanged"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_and_fails(fault: str, tmp_path: Path) -> None:
    change, words = FAULTS[fault]
    report = compared(tmp_path, change)
    assert not report.same
    assert re.search(words, said(report)), report.text
    assert "NOT the same" in report.text
    harmful = [finding for finding in report.findings if not finding.harmless]
    assert len(harmful) <= 2, report.text


def test_another_order_of_boxes_does_no_harm(tmp_path: Path) -> None:
    report = compared(tmp_path, lambda regions: take(regions, slice(None, None, -1)))
    assert report.same and "another order in 8 of 8 images, which does no harm" in said(report)


def test_an_image_of_a_nominal_size_is_compared_by_relative_boxes(tmp_path: Path) -> None:
    def on_canvas(regions: Regions) -> Regions:
        scale = np.array([1000 / regions.width, 1000 / regions.height] * 2)
        return replace(regions, width=1000, height=1000, boxes_R4=(regions.boxes_R4 * scale).astype("f4"))

    report = compared(tmp_path, on_canvas)
    assert report.same and "1000x1000 there); boxes were compared relative to them" in said(report)


def test_a_reference_without_classes_and_attributes_is_compared_in_what_it_has(tmp_path: Path) -> None:
    def bare(regions: Regions) -> Regions:
        empty = regions.class_ids_RK[:, :0]
        nothing = np.zeros_like(regions.attribute_ids_R)
        return replace(
            regions,
            class_ids_RK=empty,
            class_probabilities_RK=regions.class_probabilities_RK[:, :0],
            attribute_ids_R=nothing,
            attribute_probabilities_R=nothing.astype("f2"),
        )

    report = compared(tmp_path, bare)
    assert report.same
    assert "classes: not compared, one side has none" in report.text and "attributes: not compared" in report.text


def test_one_box_and_one_feature_that_differ_are_found_and_shown(tmp_path: Path) -> None:
    """A few faults are not explained by a pattern, but they fail, and the worst images are named with a command."""
    changed = dict(IMAGES)
    for number, key in enumerate(["val/002.jpg", "val/005.jpg"]):
        values = changed[key].features_RF.copy()
        values[3] = values[3][::-1]
        boxes_R4 = changed[key].boxes_R4.copy()
        boxes_R4[7] = [0, 0, 9 + number, 9]
        changed[key] = replace(changed[key], features_RF=values, boxes_R4=boxes_R4)
    report = verify(write(tmp_path / "s", IMAGES), write(tmp_path / "g", changed), show_progress=False)
    assert not report.same and set(report.worst) == {"val/002.jpg", "val/005.jpg"}
    assert "a few boxes differ: 2 in 2 of 8 images" in said(report) and "2 of 190 features differ" in said(report)
    assert "val/002.jpg: 23 boxes matched of 24 here and 24 there" in report.text
    assert f"unimo-ds regions show {tmp_path}/s val/002.jpg --images FOLDER" in report.text


@pytest.mark.parametrize(
    ("rename", "rule"),
    [
        (lambda key: key.removesuffix(".jpg"), "the key without its extension"),
        (lambda key: f"features/{Path(key).stem}.npz", "the file name without folder and extension"),
        (lambda key: f"coco_val2014_{int(Path(key).stem):012}.npz", "the number at the end of the file name"),
        (lambda key: str(int(Path(key).stem)), "the number at the end of the file name"),
    ],
)
def test_keys_of_another_form_are_matched_and_said(rename: Callable[[str], str], rule: str, tmp_path: Path) -> None:
    golden = {rename(key): regions for key, regions in IMAGES.items()}
    report = verify(write(tmp_path / "s", IMAGES), write(tmp_path / "g", golden), show_progress=False)
    assert report.same and f"8 by {rule}" in said(report)


def test_an_ambiguous_key_is_missing_and_not_guessed(tmp_path: Path) -> None:
    store = write(tmp_path / "s", {"a/1.jpg": image(1), "b/1.jpg": image(2), "a/2.jpg": image(3)})
    report = verify(store, write(tmp_path / "g", {"1.npz": image(1), "2.npz": image(3)}), show_progress=False)
    assert report.missing == ("1.npz",) and not report.same
    assert [one.key for one in report.comparisons] == ["a/2.jpg"]


def test_missing_images_fail_unless_they_are_not_wanted(tmp_path: Path) -> None:
    few = {key: IMAGES[key] for key in list(IMAGES)[:5]}
    store, golden = write(tmp_path / "s", few), write(tmp_path / "g", IMAGES)
    report = verify(store, golden, show_progress=False)
    assert not report.same and len(report.missing) == 3 and report.matched == 1
    assert "missing in the store: 3 ('val/005.jpg', 'val/006.jpg', 'val/007.jpg')" in report.text
    assert verify(store, golden, wanted=set(few), show_progress=False).same
    absent = verify(store, golden, wanted={*few, "nowhere.jpg"}, show_progress=False)
    assert not absent.same and absent.missing == ("nowhere.jpg",)
    with pytest.raises(DataError, match="none of the images to compare"):
        verify(store, golden, wanted={"nowhere.jpg"}, show_progress=False)


def test_keys_without_any_likeness_are_shown_side_by_side(tmp_path: Path) -> None:
    golden = write(tmp_path / "g", {f"photo-{letter}": image(0) for letter in "ab"})
    report = verify(write(tmp_path / "s", IMAGES), golden, show_progress=False)
    assert not report.same and not report.comparisons
    assert "they look like 'photo-a' there and 'val/000.jpg' here" in said(report)


def test_images_without_regions_are_the_same_as_each_other_only(tmp_path: Path) -> None:
    none = {"0.jpg": take(image(0), slice(0)), "1.jpg": image(1)}
    store = write(tmp_path / "s", none)
    assert verify(store, write(tmp_path / "g", none), show_progress=False).same
    assert not verify(store, write(tmp_path / "h", {"0.jpg": image(0)}), show_progress=False).same


def test_another_identity_is_told(tmp_path: Path) -> None:
    golden = write(tmp_path / "g", IMAGES, {**DETECTOR, "architecture": "another"})
    report = verify(write(tmp_path / "s", IMAGES), golden, show_progress=False)
    assert report.same and "detector: another identity; architecture: 'another' there, 'random' here" in report.text


def test_published_features_are_a_reference_too(tmp_path: Path) -> None:
    """npz files as UNITER's and MILVLG's tools write them: no classes, keys without folder."""
    for key, regions in IMAGES.items():
        arrays = {"x": regions.features_RF.astype("f4"), "bbox": regions.boxes_R4, "num_bbox": np.array(len(regions))}
        size = {"image_h": np.array(regions.height), "image_w": np.array(regions.width)}
        (tmp_path / "npz").mkdir(exist_ok=True)
        np.savez(tmp_path / "npz" / f"{Path(key).stem}.npz", **arrays, **size)
    store = write(tmp_path / "s", IMAGES)
    report = verify(store, tmp_path / "npz", show_progress=False)
    assert report.same and "classes: not compared" in report.text, report.text
    path = tmp_path / "npz" / "003.npz"
    path.write_bytes(path.read_bytes()[:200])
    damaged = verify(store, tmp_path / "npz", show_progress=False)
    assert not damaged.same and "cannot be read in the reference: 1" in damaged.text


def test_the_command_prints_the_report_and_its_exit_code(tmp_path: Path) -> None:
    store, golden = write(tmp_path / "s", IMAGES), write(tmp_path / "g", {"val/000.jpg": image(9)})
    (tmp_path / "wanted.txt").write_text("val/000.jpg\n")
    same = CliRunner().invoke(app, ["regions", "compare", str(store), str(store), "--wanted", str(tmp_path / "wanted.txt")])
    assert same.exit_code == 0 and "1 compared" in same.output
    other = CliRunner().invoke(app, ["regions", "compare", str(store), str(golden)])
    assert other.exit_code == 1 and "NOT the same" in other.output


def test_a_store_that_is_not_finished_is_refused_on_both_sides(tmp_path: Path) -> None:
    whole, begun = write(tmp_path / "s", IMAGES), write(tmp_path / "t", IMAGES)
    (begun / "manifest.json").unlink()
    for pair in ((whole, begun), (begun, whole)):
        with pytest.raises(StoreError, match="t: not a finished regions store"):
            verify(*pair, show_progress=False)


# ---- matching ----------------------------------------------------------------------------------------------------------


def test_boxes_are_matched_one_to_one_the_best_first() -> None:
    ours = np.array([[0, 0, 100, 100], [0, 0, 100, 101], [200, 200, 300, 300]], "f4")
    theirs = np.array([[200, 200, 300, 300], [0, 0, 100, 101]], "f4")
    rows, columns = match(overlaps(ours, theirs), 0.98)
    assert sorted(zip(rows.tolist(), columns.tolist(), strict=True)) == [(1, 1), (2, 0)]


def test_equal_boxes_are_told_apart_by_their_features() -> None:
    twice = np.array([[0, 0, 50, 50]] * 2, "f4")
    values = np.array([[1.0, 0.0], [0.0, 1.0]])
    rows, columns = match(overlaps(twice, twice), 0.99, cosines(values, values[::-1]))
    assert sorted(zip(rows.tolist(), columns.tolist(), strict=True)) == [(0, 1), (1, 0)]


def test_boxes_without_area_match_their_equals() -> None:
    flat = np.array([[5, 5, 5, 9], [6, 5, 6, 9]], "f4")
    assert overlaps(flat, flat).tolist() == [[1, 0], [0, 1]]


def test_the_cosine_of_zero_vectors() -> None:
    found = cosines(np.array([[0.0, 0], [3, 4]]), np.array([[0.0, 0], [6, 8]]))
    assert found == pytest.approx(np.eye(2))


def test_a_reference_is_looked_at_before_anything_else(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        check_reference(tmp_path / "nope.tsv")
    (tmp_path / "other.txt").write_text("neither of these\n")
    with pytest.raises(DataError, match="as no known layout"):
        check_reference(tmp_path / "other.txt")
    (tmp_path / "begun/shard-00000").mkdir(parents=True)
    with pytest.raises(StoreError, match="not a finished regions store"):
        check_reference(tmp_path / "begun")
