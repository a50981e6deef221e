"""Regions drawn on pictures: every box seen, labels apart from each other and readable, names of all kinds."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageColor

from tests.helpers import random_regions
from unimo_ds.regions import Regions
from unimo_ds.vision.drawing import (
    COLOURS,
    best_class,
    describe_region,
    draw_regions,
    font_for,
    letters_on,
    name_of,
    place_labels,
    resize_regions,
    write_under,
)

CLASSES, ATTRIBUTES = ("cup", "key", "tree"), ("red", "blue")


def regions_of(boxes: list[list[float]], width: int = 200, height: int = 160) -> Regions:
    """Class 2 (`key`) at 0.75 behind the background, attribute 1 (`red`)."""
    count = len(boxes)
    return Regions(
        width,
        height,
        np.array(boxes, "f4").reshape(-1, 4),
        np.zeros((count, 4), "f2"),
        np.array([[0, 2, 1]] * count, "u2").reshape(-1, 3),
        np.array([[0.5, 0.25, 0.125]] * count, "f2").reshape(-1, 3),
        np.ones(count, "u2"),
        np.full(count, 0.5, "f2"),
    )


def test_a_region_is_described_by_its_best_object() -> None:
    regions = regions_of([[1, 2, 30, 40]])
    assert describe_region(regions, 0, CLASSES, ATTRIBUTES) == "red key 0.25"
    assert best_class(regions, 0) == (2, 0.25)


def test_numbers_stand_for_missing_names() -> None:
    regions = regions_of([[1, 2, 30, 40]])
    assert describe_region(regions, 0, (), ()) == "attribute 1 class 2 0.25"
    assert describe_region(regions, 0, ("cup",), ATTRIBUTES) == "red class 2 0.25"
    assert [name_of(number, CLASSES, "class") for number in (0, 3, 4)] == ["background", "tree", "class 4"]
    assert name_of(0, ATTRIBUTES, "attribute") == "none"


def test_a_region_of_nothing_but_background_is_called_so() -> None:
    regions = replace(regions_of([[1, 2, 30, 40]]), class_ids_RK=np.zeros((1, 3), "u2"), attribute_ids_R=np.zeros(1, "u2"))
    assert describe_region(regions, 0, CLASSES, ATTRIBUTES) == "background 0.50"


def test_a_region_without_classes_has_its_number() -> None:
    regions = regions_of([[1, 2, 30, 40]])
    bare = replace(
        regions, class_ids_RK=np.zeros((1, 0), "u2"), class_probabilities_RK=np.zeros((1, 0), "f2"), attribute_ids_R=np.zeros(1)
    )
    assert describe_region(bare, 0, CLASSES, ATTRIBUTES) == "region 1" and best_class(bare, 0) == (0, 0.0)


def area_shared(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    across = min(one[2], other[2]) - max(one[0], other[0])
    return max(0.0, across) * max(0.0, min(one[3], other[3]) - max(one[1], other[1]))


@pytest.mark.parametrize("seed", range(5))
def test_labels_lie_on_the_picture_and_apart(seed: int) -> None:
    rng = np.random.default_rng(seed)
    corners = rng.random((8, 2)) * [500, 400]
    boxes = np.concatenate([corners, corners + rng.random((8, 2)) * 150 + 30], axis=1).clip(0, 640)
    sizes = [(float(width), 18.0) for width in rng.uniform(40, 110, 8)]
    labels = [
        (x, y, x + width, y + height)
        for (x, y), (width, height) in zip(place_labels(boxes.tolist(), sizes, 640, 640), sizes, strict=True)
    ]
    assert all(x1 >= 0 and y1 >= 0 and x2 <= 640 and y2 <= 640 for x1, y1, x2, y2 in labels)
    assert not any(area_shared(one, other) for place, one in enumerate(labels) for other in labels[:place])


def test_equal_boxes_have_labels_in_different_places() -> None:
    corners = place_labels([[100, 100, 200, 200]] * 4, [(60, 20)] * 4, 300, 300)
    assert len(set(corners)) == 4 and corners[0] == (100, 80)


def test_a_label_wider_than_the_picture_begins_at_its_edge() -> None:
    assert place_labels([[10, 10, 20, 20]], [(90, 12)], 50, 50) == [(0.0, 0.0)]


@pytest.mark.parametrize("size", [(1, 1), (9, 300), (40, 30), (640, 480), (3000, 2000)])
def test_pictures_of_any_size_are_drawn_on_a_copy(size: tuple[int, int]) -> None:
    picture = Image.new("RGB", size, "#777")
    before = picture.tobytes()
    regions = resize_regions(random_regions(np.random.default_rng(0), 12), *size)
    drawn = draw_regions(picture, regions, (), ())
    assert drawn.size == size and picture.tobytes() == before and drawn.tobytes() != before


def test_a_box_at_the_edge_is_seen_on_all_four_sides() -> None:
    drawn = draw_regions(Image.new("RGB", (200, 160), "#777"), regions_of([[0, 0, 200, 160]]), ("key",) * 3, ())
    colour = ImageColor.getrgb(COLOURS[0])
    assert all(drawn.getpixel(place) == colour for place in ((199, 80), (100, 159), (0, 120)))


def test_boxes_that_can_not_be_are_drawn_all_the_same() -> None:
    wrong = regions_of([[150, 120, 20, 30], [-50, -50, 900, 900], [60, 60, 60, 60]])
    assert draw_regions(Image.new("RGB", (200, 160)), wrong, (), ()).size == (200, 160)


def test_the_seam_makes_a_box_seen_on_its_own_colour() -> None:
    drawn = draw_regions(Image.new("RGB", (200, 160), COLOURS[0]), regions_of([[50, 40, 150, 120]]), ("key",) * 3, ())
    assert drawn.getpixel((100, 121)) == (255, 255, 255)


def test_no_more_boxes_than_asked_for_and_the_best_on_top() -> None:
    regions = regions_of([[20, 50, 120, 150], [20, 50, 120, 150], [130, 60, 190, 150]])
    drawn = draw_regions(Image.new("RGB", (200, 160), "#777"), regions, (), (), most=2)
    assert drawn.getpixel((120, 130)) == ImageColor.getrgb(COLOURS[0])
    assert drawn.getpixel((160, 150)) == (0x77, 0x77, 0x77)


@pytest.mark.parametrize("colour", COLOURS)
def test_letters_have_contrast_on_every_colour(colour: str) -> None:
    def luminance(name: str) -> float:
        parts = [value / 255 for value in ImageColor.getrgb(name)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(colour), luminance(letters_on(colour))), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 3


def test_names_in_other_scripts_get_a_font_that_has_their_letters_if_there_is_one() -> None:
    latin, greek = font_for("cup", 20), font_for("φλιτζάνι", 20)
    picture = Image.new("RGB", (300, 200))
    drawn = [draw_regions(picture, regions_of([[20, 50, 250, 150]]), ("", name), ()) for name in ("φλιτζάνι", "φλιτζάνα", "猫")]
    assert all(one.size == (300, 200) for one in drawn)
    if greek.getname() != latin.getname():  # the system has another font: then letters are told apart
        assert drawn[0].tobytes() != drawn[1].tobytes()


def test_resized_regions_lie_on_the_resized_picture() -> None:
    resized = resize_regions(regions_of([[10, 20, 100, 80]]), 400, 80)
    assert (resized.width, resized.height) == (400, 80) and resized.boxes_R4.tolist() == [[20, 10, 200, 40]]
    assert resized.boxes_R4.dtype == np.float32


def test_lines_stand_beneath_the_picture_and_are_broken_at_its_width() -> None:
    picture = Image.new("RGB", (280, 100), "red")
    sheets = [np.array(write_under(picture, lines)) for lines in (["word"], ["word " * 40], ["word", "word"], ["w" * 300], [])]
    heights = [len(sheet) - 100 for sheet in sheets]
    assert heights[0] == heights[3] < heights[2] < heights[1] and heights[4] < heights[0], "a word too long is cut"
    for sheet in sheets:
        assert sheet.shape[1] == 280 and (sheet[:100] == (255, 0, 0)).all()
        assert (sheet[100:, -4:] == 255).all() and (sheet[-2:] == 255).all(), "nothing runs over the edge"
    assert all((sheet[100:] < 100).any() for sheet in sheets[:4])
