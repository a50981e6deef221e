"""Regions as a record of named fields: the many spellings of one thing in LMDB, HDF5, JSON and npz files."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from unimo_ds.region_layouts.rows import (
    Array,
    PublishedRow,
    ReadOptions,
    RowError,
    decoded,
    floats,
    integers,
    whole_number,
    with_background,
)

_NAMES = {
    "width": ("image_w", "img_w", "image_width", "width"),
    "height": ("image_h", "img_h", "image_height", "height"),
    "count": ("num_boxes", "num_bbox"),
    "boxes": ("boxes", "bbox"),
    "features": ("features", "x"),
    "class_ids": ("objects_id", "objects", "obj_id"),
    "class_scores": ("objects_conf", "obj_conf"),
    "attribute_ids": ("attrs_id", "attr_id"),
    "attribute_scores": ("attrs_conf", "attr_conf"),
    "distribution": ("cls_prob", "soft_labels"),
}

Record = Mapping[str, Any]


def row_of_record(record: Record, options: ReadOptions) -> PublishedRow:
    """The row that `record` describes, whichever of the known names it uses; arrays may be base64.

    Ids are taken to be without background, unless a class distribution with a column for it stands beside them.

    Raises:
        RowError: no boxes or features, or of shapes that do not go together.
    """
    boxes, features = _get(record, "boxes"), _get(record, "features")
    if boxes is None or features is None:
        missing = " and ".join(name for name, value in (("boxes", boxes), ("features", features)) if value is None)
        raise RowError(f"no {missing}; found {', '.join(map(str, record)) or 'nothing'}")
    count = _count(record, boxes, features)
    boxes_R4 = _array(boxes, "boxes", count, 4)
    features_RF = _array(features, "features", count, None)
    if features_RF.shape[0] != count and features_RF.shape[-1] == count:
        features_RF = features_RF.T  # npz files made for MCAN and its kin hold them with the regions last
    distribution_RN = class_scores_R = None
    if (scores := _get(record, "distribution")) is not None:
        scores = _array(scores, "class probabilities", count, None)
        if scores.ndim == 2 and scores.shape[1] > 1:
            distribution_RN = with_background(scores[:count], options.class_count)
        else:  # the best class's alone
            class_scores_R = scores.reshape(-1)[:count]
    if (scores := _get(record, "class_scores")) is not None:
        class_scores_R = _array(scores, "class probabilities", count, 1).reshape(-1)[:count]
    attribute_scores_R = None
    if (scores := _get(record, "attribute_scores")) is not None:
        attribute_scores_R = _array(scores, "attribute probabilities", count, 1).reshape(-1)[:count]
    return PublishedRow(
        boxes_R4[:count],
        features_RF[:count],
        _size(record),
        distribution_RN=distribution_RN,
        class_ids_R=_ids(record, "class_ids", class_scores_R, count),
        class_scores_R=class_scores_R,
        attribute_ids_R=_ids(record, "attribute_ids", attribute_scores_R, count),
        attribute_scores_R=attribute_scores_R,
    )


def _get(record: Record, what: str) -> Any:
    for name in _NAMES[what]:
        if name in record:
            return record[name]
    return None


def _size(record: Record) -> tuple[int, int] | None:
    width, height = _get(record, "width"), _get(record, "height")
    if width is None or height is None:
        return None
    return (
        whole_number(str(np.asarray(width).item()), "image width", 1),
        whole_number(str(np.asarray(height).item()), "image height", 1),
    )


def _count(record: Record, boxes: Any, features: Any) -> int:
    """The number of boxes: arrays may be padded beyond it, and MMF writes the number asked for where fewer were found."""
    count = _get(record, "count")
    stated = None if count is None else whole_number(str(np.asarray(count).item()), "the number of boxes", 1)
    if isinstance(boxes, str | bytes):
        return stated or len(decoded(boxes, "boxes")) // 16
    shapes = np.shape(boxes), np.shape(features)
    rows = min(shape[0] if len(shape) == 2 else stated or 1 for shape in shapes)
    if stated is None or (len(shapes[0]) == len(shapes[1]) == 2 and shapes[0][0] == shapes[1][0] < stated):
        return rows
    return stated


def _array(value: Any, what: str, count: int, columns: int | None) -> Array:
    """The field as an array of rows; lists and base64 are decoded."""
    if isinstance(value, str | bytes):
        return floats(value, what, count, columns)
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise RowError(f"{what} are {array.dtype}; expected numbers")
    if array.ndim == 1 and columns != 1:  # flat, as variable-length HDF5 has it
        array = array.reshape(count, -1) if len(array) % count == 0 else array[None]
    if len(array) < count and array.shape[-1] != count:
        raise RowError(f"{len(array)} rows of {what} for {count} boxes")
    return array if array.dtype.kind == "f" else array.astype(np.float32)


def _ids(record: Record, what: str, scores_R: Array | None, count: int) -> Array | None:
    """Ids counted from 1; 0, no class or attribute, where the probability beside them is exactly 0."""
    ids = _get(record, what)
    if ids is None or scores_R is None:
        return None
    if isinstance(ids, str | bytes):
        ids_R = integers(ids, what, count)
    else:
        ids_R = np.asarray(ids).reshape(-1)[:count]
        if ids_R.dtype.kind not in "iu":
            raise RowError(f"{what.replace('_', ' ')} are {ids_R.dtype}; expected whole numbers")
    if len(ids_R) != len(scores_R):
        raise RowError(f"{len(ids_R)} {what.replace('_', ' ')} for {len(scores_R)} probabilities")
    found: Array = (ids_R.astype(np.int64) + 1) * (scores_R != 0)
    return found
