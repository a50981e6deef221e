"""Average precision against cases worked out by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from unimo_ds.errors import DataError
from unimo_ds.regions import Regions, best_objects
from unimo_ds.vision.average_precision import average_precision, box_overlaps, match, measure_quality
from unimo_ds.vision.coco import Objects, read_annotations


def found(boxes: list[list[float]], classes: list[int], scores: list[float], attributes: list[int]) -> Regions:
    """Regions whose second kept class is the background."""
    count = len(boxes)
    return Regions(
        100,
        100,
        np.array(boxes, np.float32).reshape(-1, 4),
        np.zeros((count, 1), np.float16),
        np.array([[c, 0] for c in classes], np.uint16).reshape(-1, 2),
        np.array([[s, 0.0] for s in scores], np.float16).reshape(-1, 2),
        np.array(attributes, np.uint16),
        np.ones(count, np.float16),
    )


def true(boxes: list[list[float]], labels: list[int], attributes: list[int]) -> Objects:
    return Objects("a.png", np.array(boxes, np.float32).reshape(-1, 4), np.array(labels), np.array(attributes))


def test_precision_at_101_recalls() -> None:
    # Right, wrong, right of 2 objects: precision 1 up to recall .5 (51 points), 2/3 beyond (50 points).
    value = average_precision(np.array([0.9, 0.8, 0.7]), np.array([True, False, True]), 2)
    assert value == pytest.approx((51 + 50 * 2 / 3) / 101)
    # One of two is never found: 51 points of 101.
    assert average_precision(np.array([0.9]), np.array([True]), 2) == pytest.approx(51 / 101)
    assert average_precision(np.zeros(0), np.zeros(0, bool), 3) == 0.0
    # The order is that of the scores, not of the list.
    assert average_precision(np.array([0.1, 0.9]), np.array([False, True]), 1) == 1.0


def test_each_object_is_found_once() -> None:
    overlaps = box_overlaps(np.array([[0, 0, 10, 10], [0, 0, 10, 9]]), np.array([[0, 0, 10, 10]]))
    np.testing.assert_allclose(overlaps, [[1.0], [0.9]])
    assert match(overlaps, 0.5).tolist() == [0, -1]
    assert match(overlaps[1:], 0.95).tolist() == [-1]


def test_quality_of_a_small_case() -> None:
    # Class 1: IoU 0.8, right at the thresholds .5 to .8, that is 7 of 10. Class 2: exact, and found second to a wrong one.
    objects = true([[0, 0, 10, 10], [50, 50, 60, 60]], [1, 2], [3, 4])
    regions = found([[0, 0, 10, 8], [80, 80, 90, 90], [50, 50, 60, 60]], [1, 2, 2], [0.9, 0.8, 0.5], [3, 1, 1])
    quality = measure_quality([regions], [objects])
    assert quality.ap50 == pytest.approx((1.0 + 0.5) / 2)
    assert quality.ap == pytest.approx((0.7 + 0.5) / 2)
    assert quality.attribute_accuracy == 0.5


def test_the_background_is_never_an_object() -> None:
    regions = found([[0, 0, 1, 1]], [0], [0.9], [0])
    regions.class_ids_RK[0] = [0, 5]
    labels, scores = best_objects(regions)
    assert labels.tolist() == [5] and scores.tolist() == [0.0]


def test_annotations_are_read_by_id_and_their_errors_are_named(tmp_path: Path) -> None:
    path = tmp_path / "instances.json"
    content = {
        "images": [{"id": 7, "file_name": "val/a.jpg"}, {"id": 8, "file_name": "val/b.jpg"}],
        "categories": [{"id": 30, "name": "cup"}, {"id": 2, "name": "ball"}],
        "attributes": [{"id": 1, "name": "red"}],
        "annotations": [{"image_id": 8, "category_id": 30, "attribute_id": 1, "bbox": [1, 2, 3, 4]}],
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    annotations = read_annotations(path)
    assert annotations.class_names == ("ball", "cup")
    assert annotations.images[0].boxes_n4.shape == (0, 4)
    assert annotations.images[1].labels_n.tolist() == [2] and annotations.images[1].attributes_n.tolist() == [1]
    assert annotations.images[1].boxes_n4.tolist() == [[1, 2, 4, 6]]
    content["annotations"][0]["category_id"] = 31
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DataError, match=r"instances.json.*31"):
        read_annotations(path)
