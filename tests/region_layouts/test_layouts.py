"""Every layout, read from a file that independent code wrote."""

from pathlib import Path

import numpy as np
import pytest

from tests.region_layouts.published_files import PUBLISHED, Detected, Images, best, detected
from unimo_ds.errors import ConfigError, DataError
from unimo_ds.region_layouts import LAYOUTS, ReadOptions, open_layout
from unimo_ds.regions import Regions, location_features

NAMED = ReadOptions(
    class_names=[f"class {number}" for number in range(1600)], attribute_names=[f"attribute {number}" for number in range(400)]
)


@pytest.fixture(params=PUBLISHED)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def images(name: str) -> Images:
    counts = [5, 5, 5] if name == "Hu" else [5, 3, 7]
    sizes = [(640, 427), (333, 500), (500, 375)]
    return {
        str(key): detected(seed, count, *size)
        for seed, (key, count, size) in enumerate(zip((9, 25, 581929), counts, sizes, strict=True))
    }


def sizes_of(images: Images) -> dict[str, tuple[int, int]]:
    return {key: (image.width, image.height) for key, image in images.items()}


def options_for(name: str, images: Images) -> ReadOptions:
    named = PUBLISHED[name].classes == "named"
    return ReadOptions(
        sizes={} if PUBLISHED[name].size else sizes_of(images),
        class_names=NAMED.class_names if named else (),
        attribute_names=NAMED.attribute_names if named else (),
    )


def expected_locations(image: Detected) -> np.ndarray:
    """As the original's readers compute them, in float32, from the numbers in the file (unimo-spec, 1.5)."""
    location_R5 = np.zeros((len(image), 5), dtype=np.float32)
    location_R5[:, :4] = image.boxes_R4
    area_R = (location_R5[:, 3] - location_R5[:, 1]) * (location_R5[:, 2] - location_R5[:, 0])
    location_R5[:, 4] = area_R / (float(image.width) * float(image.height))
    location_R5[:, [0, 2]] /= float(image.width)
    location_R5[:, [1, 3]] /= float(image.height)
    return location_R5


def check_locations(regions: Regions, image: Detected, half: bool, relative: bool) -> None:
    locations_R5 = location_features(regions.boxes_R4, regions.width, regions.height)
    expected_R5 = expected_locations(image)
    if half:  # the file's own numbers are rounded: its places, and the area between them
        expected_R5[:, :4] = expected_R5[:, :4].astype(np.float16).astype(np.float32)
        expected_R5[:, 4] = np.prod(expected_R5[:, 2:4] - expected_R5[:, :2], axis=1)
    if not relative:
        assert (locations_R5 == expected_R5).all()
    np.testing.assert_allclose(locations_R5, expected_R5, rtol=0, atol=2**-23)


def check_classes(regions: Regions, image: Detected, classes: str, half: bool) -> None:
    ids_R, scores_R = best(image.classes_RN)
    if classes == "none":
        assert regions.class_ids_RK.shape == regions.class_probabilities_RK.shape == (len(image), 0)
    elif classes in ("best", "named"):
        assert (regions.class_ids_RK[:, 0] == ids_R + 1).all() and regions.class_ids_RK.shape[1] == 1
        assert (regions.class_probabilities_RK[:, 0] == scores_R.astype(np.float16)).all()
    else:
        distribution_RN = image.classes_RN.astype(np.float16).astype(np.float32) if half else image.classes_RN.copy()
        distribution_RN[:, 0] *= classes == "all"
        order_RK = np.argsort(-distribution_RN, axis=1, kind="stable")[:, :16]
        assert (regions.class_ids_RK == order_RK).all()
        assert (regions.class_probabilities_RK == np.take_along_axis(distribution_RN, order_RK, 1).astype(np.float16)).all()


def check_attributes(regions: Regions, image: Detected, name: str) -> None:
    ids_R, scores_R = best(image.attributes_RA)
    if not PUBLISHED[name].attributes:
        ids_R, scores_R = ids_R * 0 - 1, scores_R * 0
    elif name == "UNIMO captions":  # the whole distribution is there: "none" can win
        ids_R, scores_R = image.attributes_RA.argmax(axis=1) - 1, image.attributes_RA.max(axis=1)
    assert (regions.attribute_ids_R == ids_R + 1).all()
    assert (regions.attribute_probabilities_R == scores_R.astype(np.float16)).all()


def test_a_layout_is_told_from_its_content_and_read_exactly(name: str, images: Images, tmp_path: Path) -> None:
    kind, path = PUBLISHED[name], tmp_path / f"published{PUBLISHED[name].suffix}"
    kind.write(path, images)
    published = open_layout(path, options=options_for(name, images))
    assert published.layout == kind.layout
    found = list(published)
    copies = 2 if published.repeats else 1
    assert sorted(key for key, _ in found) == sorted([*images] * copies)
    for key, regions in found:
        image = images[key]
        assert (regions.width, regions.height) == (image.width, image.height)
        assert regions.boxes_R4.dtype == np.float32 and regions.features_RF.dtype == np.float16
        if not kind.relative:
            assert (regions.boxes_R4 == image.boxes_R4).all()
        assert (regions.features_RF == image.features_RF.astype(np.float16)).all()
        check_locations(regions, image, kind.half, kind.relative)
        check_classes(regions, image, kind.classes, kind.half)
        check_attributes(regions, image, name)


def test_every_layout_is_tested() -> None:
    assert {kind.layout for kind in PUBLISHED.values()} == set(LAYOUTS)


def test_the_size_of_an_image_is_never_invented(tmp_path: Path) -> None:
    images = {"9": detected(0)}
    for kind in PUBLISHED.values():
        path = tmp_path / f"{kind.write.__name__}{kind.suffix}"
        kind.write(path, images)
        if not kind.size:
            with pytest.raises(DataError, match="does not say how large the image is; give --sizes FILE"):
                list(open_layout(path))


def test_on_the_nominal_canvas_the_places_are_those_of_the_file_to_the_last_bit(tmp_path: Path) -> None:
    image = detected(3, 40)
    PUBLISHED["UNITER"].write(tmp_path / "db", {"a": image})
    regions = next(iter(open_layout(tmp_path / "db", options=ReadOptions(nominal_canvas=True))))[1]
    assert (regions.width, regions.height) == (1024, 1024)
    size = np.array([640, 427, 640, 427], np.float32)
    places_R4 = location_features(regions.boxes_R4, regions.width, regions.height)[:, :4]
    left_top_R2 = (image.boxes_R4 / size).astype(np.float16)[:, :2]
    assert (places_R4[:, :2] == left_top_R2.astype(np.float32)).all()
    assert (places_R4.astype(np.float16) == places_R4).all()


def test_uniter_keeps_as_many_boxes_as_its_list_of_counts_says(tmp_path: Path) -> None:
    path = tmp_path / "feat_th0.2_max100_min10"
    PUBLISHED["UNITER"].write(path, {"a": detected(0, 20), "b": detected(1, 12)})
    (tmp_path / "nbb_th0.2_max100_min10.json").write_text('{"a.npz": 11, "b.npz": 12}')
    options = ReadOptions(nominal_canvas=True)
    assert {key: len(regions) for key, regions in open_layout(path, options=options)} == {"a": 11, "b": 12}
    (tmp_path / "nbb_th0.2_max100_min10.json").write_text("[1]")
    with pytest.raises(DataError, match=r"nbb_th0\.2_max100_min10\.json: cannot be read as numbers of boxes"):
        list(open_layout(path, options=options))


def test_sizes_that_are_given_go_before_those_in_the_file(tmp_path: Path) -> None:
    PUBLISHED["MMF npy"].write(tmp_path / "npy", {"9": detected(0)})
    regions = next(iter(open_layout(tmp_path / "npy", options=ReadOptions(sizes={"9": (800, 600)}))))[1]
    assert (regions.width, regions.height) == (800, 600)


def test_keys_are_made_by_the_format(tmp_path: Path) -> None:
    PUBLISHED["bottom-up"].write(tmp_path / "a.tsv", {"9": detected(0)})
    options = ReadOptions(key_format="COCO_val2014_{:0>12}.jpg")
    assert [key for key, _ in open_layout(tmp_path / "a.tsv", options=options)] == ["COCO_val2014_000000000009.jpg"]


def test_a_detector_without_attributes_writes_zeros_that_mean_none(tmp_path: Path) -> None:
    image = detected(0)
    image = Detected(
        image.width, image.height, image.boxes_R4, image.features_RF, image.classes_RN, np.zeros((5, 401), np.float32)
    )
    PUBLISHED["LXMERT"].write(tmp_path / "a.tsv", {"9": image})
    regions = next(iter(open_layout(tmp_path / "a.tsv")))[1]
    assert not regions.attribute_ids_R.any() and not regions.attribute_probabilities_R.any()


def test_fewer_classes_are_kept_when_fewer_are_wanted(tmp_path: Path) -> None:
    PUBLISHED["UNIMO"].write(tmp_path / "a", {"9": detected(0)})
    regions = next(iter(open_layout(tmp_path / "a", options=ReadOptions(kept_classes=3))))[1]
    assert regions.class_ids_RK.shape == (5, 3)
    assert (np.diff(regions.class_probabilities_RK.astype(np.float32), axis=1) <= 0).all()


def test_names_say_how_many_classes_there_are(tmp_path: Path) -> None:
    PUBLISHED["LXMERT"].write(tmp_path / "a.tsv", {"9": detected(0)})
    with pytest.raises(DataError, match=r"class number \d+ of 12, counted from 1 \(--class-names says how many"):
        list(open_layout(tmp_path / "a.tsv", options=ReadOptions(class_names=[f"class {n}" for n in range(12)])))
    PUBLISHED["UNIMO"].write(tmp_path / "b", {"9": detected(0)})
    with pytest.raises(DataError, match=r"1601 class probabilities; expected 13, background included"):
        list(open_layout(tmp_path / "b", options=ReadOptions(class_names=[f"class {n}" for n in range(12)])))


def test_a_name_that_the_detector_does_not_have_is_damage(tmp_path: Path) -> None:
    PUBLISHED["VinVL"].write(tmp_path / "v", {"9": detected(0)})
    with pytest.raises(DataError, match=r"class 'class \d+' is not among the 2 class names given"):
        list(open_layout(tmp_path / "v", options=ReadOptions(class_names=["cat", "dog"])))
    assert next(iter(open_layout(tmp_path / "v")))[1].class_ids_RK.shape == (5, 0)


def test_an_unknown_layout_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="layout 'uniter': not known; allowed are bottom_up_tsv, "):
        open_layout(tmp_path, "uniter")
    with pytest.raises(DataError, match="no such file"):
        open_layout(tmp_path / "nowhere.tsv")


def test_of_equal_probabilities_the_lower_class_comes_first(tmp_path: Path) -> None:
    image = detected(0)
    classes_RN = np.zeros((5, 1601), np.float32)
    classes_RN[:, [0, 7, 900, 1600]] = 0.25
    equal = Detected(image.width, image.height, image.boxes_R4, image.features_RF, classes_RN, image.attributes_RA)
    PUBLISHED["UNIMO"].write(tmp_path / "a", {"9": equal})
    regions = next(iter(open_layout(tmp_path / "a")))[1]
    assert (regions.class_ids_RK == [0, 7, 900, 1600, *range(1, 7), *range(8, 14)]).all()
    options = ReadOptions(kept_classes=5000)
    assert next(iter(open_layout(tmp_path / "a", options=options)))[1].class_ids_RK.shape == (5, 1601)
