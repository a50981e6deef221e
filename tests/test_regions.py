"""Geometry of regions against plain loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import random_regions
from unimo_ds.regions import intersection_over_union, location_features

quick = settings(deadline=None, derandomize=True, max_examples=60)
box = st.tuples(*[st.integers(0, 12)] * 4).map(lambda c: (min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]), max(c[1], c[3])))


def pixels(b: tuple[int, ...]) -> set[tuple[int, int]]:
    return {(x, y) for x in range(b[0], b[2]) for y in range(b[1], b[3])}


@quick
@given(st.lists(box, max_size=6))
def test_overlap_is_shared_pixels_over_all_pixels(boxes: list[tuple[int, ...]]) -> None:
    found = intersection_over_union(np.array(boxes, "f4").reshape(-1, 4))
    for i, a in enumerate(boxes):
        for j, b in enumerate(boxes):
            together = pixels(a) | pixels(b)
            assert found[i, j] == pytest.approx(len(pixels(a) & pixels(b)) / len(together) if together else 0.0)


@quick
@given(st.lists(box, max_size=6), st.integers(12, 50), st.integers(12, 50))
def test_location_is_corners_and_area_relative_to_the_image(boxes: list[tuple[int, ...]], width: int, height: int) -> None:
    found = location_features(np.array(boxes, "f4").reshape(-1, 4), width, height)
    assert found.shape == (len(boxes), 5) and found.dtype == np.float32
    for (x1, y1, x2, y2), row in zip(boxes, found, strict=True):
        area = len(pixels((x1, y1, x2, y2))) / (width * height)
        assert row == pytest.approx([x1 / width, y1 / height, x2 / width, y2 / height, area], abs=1e-6)


def test_the_whole_image_has_the_location_of_the_image_row() -> None:
    """[IMG] is `[0, 0, 1, 1, 1]` (spec 1.5)."""
    np.testing.assert_array_equal(location_features(np.array([[0, 0, 640, 480]]), 640, 480), [[0, 0, 1, 1, 1]])


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i4"])
def test_boxes_of_any_number_type_give_float32(dtype: str) -> None:
    boxes = np.array([[0, 0, 10, 20], [5, 0, 15, 20]], dtype)
    assert location_features(boxes, 20, 40).dtype == intersection_over_union(boxes).dtype == np.float32
    assert intersection_over_union(boxes)[0, 1] == pytest.approx(1 / 3)
    np.testing.assert_allclose(location_features(boxes, 20, 40)[1], [0.25, 0, 0.75, 0.5, 0.25])


def test_no_box_has_no_overlap_and_no_location() -> None:
    assert intersection_over_union(np.zeros((0, 4))).shape == (0, 0) and location_features(np.zeros((0, 4)), 3, 4).shape == (
        0,
        5,
    )


def test_regions_are_counted_by_their_boxes() -> None:
    assert [len(random_regions(np.random.default_rng(0), count)) for count in (0, 1, 7)] == [0, 1, 7]


def test_location_features_of_a_known_box() -> None:
    found = location_features(np.array([[10, 20, 60, 80]], "f4"), width=100, height=200)
    np.testing.assert_allclose(found, [[0.1, 0.1, 0.6, 0.4, 0.15]], rtol=1e-6)


def test_overlap_of_known_boxes() -> None:
    boxes = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30], [3, 3, 3, 3]], "f4")
    found = intersection_over_union(boxes)
    assert found[0, 1] == pytest.approx(50 / 150) and found[0, 2] == 0 and found[0, 0] == 1
    assert np.isfinite(found).all(), "an empty box overlaps nothing"
    np.testing.assert_array_equal(found, found.T)


def test_some_of_the_regions_keep_all_that_is_known_of_them() -> None:
    whole = random_regions(np.random.default_rng(0), 5)
    some = whole.only(np.array([3, 0]))
    assert (some.width, some.height, len(some)) == (whole.width, whole.height, 2)
    for name, values in vars(some).items():
        if isinstance(values, np.ndarray):
            np.testing.assert_array_equal(values, np.stack([getattr(whole, name)[3], getattr(whole, name)[0]]))
    assert len(whole.only(slice(None))) == 5
