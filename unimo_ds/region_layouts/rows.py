"""One image's row of a published file, and the checks that make `Regions` of it.

Shape suffixes: R regions, F feature width, N columns of a class distribution, K kept classes.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from unimo_ds.regions import BACKGROUND, Regions

VG_CLASSES, VG_ATTRIBUTES = 1600, 400  # of bottom-up attention, without background and "none"
CANVAS = 1024
"""Width and height given to an image of unknown size: a power of two, so that its boxes' relative places stay exact."""

_SLACK = 1.0  # pixels that a box may reach beyond its image: detectors clip in the resized image and scale back
_MOST = 65_535  # regions, and feature columns, of a store's record
_FLOAT16 = float(np.finfo(np.float16).max)

Array = npt.NDArray[Any]
Sizes = Mapping[str, tuple[int, int]]


class RowError(ValueError):
    """A row cannot be used; the message says which field is wrong, and how."""


@dataclass(frozen=True)
class ReadOptions:
    """What a file does not say of itself.

    Attributes:
        kept_classes: K, how many of a whole class distribution are kept.
        sizes: (width, height) in pixels by key of the store or of the file, for layouts without the image's size; they go
            before the file's own.
        nominal_canvas: stands in for a size that is in neither the file nor `sizes`: the image counts as
            `CANVAS` x `CANVAS`. Location features are then exact, pixels and aspect ratios are not.
        class_names, attribute_names: of the detector, without background and "none". They say how many there are
            (none given: Visual Genome's 1600 and 400) and what number a name has.
        key_format: makes the store's key of the file's, `COCO_val2014_{:0>12}.jpg` or the like.
    """

    kept_classes: int = 16
    sizes: Sizes = field(default_factory=dict)
    nominal_canvas: bool = False
    class_names: Sequence[str] = ()
    attribute_names: Sequence[str] = ()
    key_format: str = "{}"

    @property
    def class_count(self) -> int:
        return len(self.class_names) or VG_CLASSES

    @property
    def attribute_count(self) -> int:
        return len(self.attribute_names) or VG_ATTRIBUTES


@dataclass(frozen=True)
class PublishedRow:
    """What a file says of one image, unchecked. Ids count as in `Regions`: 0 is background, or no attribute.

    Attributes:
        boxes_R4: x1, y1, x2, y2 in pixels, or in parts of the image's sides if `relative`.
        size: (width, height), None where the layout does not say.
        distribution_RN: probabilities of all classes, background in column 0; it goes before the ids.
        kept_ids_RK, kept_scores_RK: the most probable classes, best first.
        class_ids_R, class_scores_R: the best class and its probability (scores without ids are no use and not kept).
    """

    boxes_R4: Array
    features_RF: Array
    size: tuple[int, int] | None
    relative: bool = False
    distribution_RN: Array | None = None
    kept_ids_RK: Array | None = None
    kept_scores_RK: Array | None = None
    class_ids_R: Array | None = None
    class_scores_R: Array | None = None
    attribute_ids_R: Array | None = None
    attribute_scores_R: Array | None = None


def checked_regions(row: PublishedRow, key: str, file_key: str, options: ReadOptions) -> Regions:
    """The row as `Regions`, K classes kept.

    Raises:
        RowError: anything that detectors do not write: boxes outside the image, numbers that are not finite, ...
    """
    count = _matrix(row.boxes_R4, "boxes", None, 4).shape[0]
    if not 1 <= count <= _MOST:
        raise RowError(f"{count} boxes; expected 1 to {_MOST:,}")
    width, height = _size_of(row, key, file_key, options)
    boxes_R4 = np.ascontiguousarray(row.boxes_R4, np.float32)
    if row.relative:
        with np.errstate(over="ignore", invalid="ignore"):  # a box that is not finite is refused next
            boxes_R4 = boxes_R4 * np.array([width, height, width, height], np.float32)
    _check_boxes(boxes_R4, width, height)
    features_RF = _matrix(row.features_RF, "features", count, None)
    if not 1 <= features_RF.shape[1] <= _MOST:
        raise RowError(f"features of {features_RF.shape[1]} numbers; expected 1 to {_MOST:,}")
    largest = float(np.abs(features_RF).max())  # NaN if there is one
    if not largest <= _FLOAT16:
        raise RowError(f"a feature is {largest}; expected finite numbers of at most {_FLOAT16:.0f}, float16's largest")
    class_ids_RK, class_probabilities_RK = _classes(row, count, options)
    attribute_ids_R = _ids(row.attribute_ids_R, "attribute", count, options.attribute_count)
    attribute_scores_R = _probabilities(row.attribute_scores_R, "attribute probability", count)
    return Regions(
        width,
        height,
        boxes_R4,
        features_RF.astype(np.float16),
        class_ids_RK.astype(np.uint16),
        class_probabilities_RK.astype(np.float16),
        attribute_ids_R.astype(np.uint16),
        attribute_scores_R.astype(np.float16),
    )


def _size_of(row: PublishedRow, key: str, file_key: str, options: ReadOptions) -> tuple[int, int]:
    size = options.sizes.get(key) or options.sizes.get(file_key) or row.size
    if size is None and options.nominal_canvas and row.relative:
        size = CANVAS, CANVAS
    if size is None:
        known = "--sizes has none either" if options.sizes else "give --sizes FILE"
        instead = " (or --nominal-canvas)" if row.relative else ""
        raise RowError(f"the layout does not say how large the image is; {known}{instead}")
    if min(size) < 1 or max(size) >= 2**31:
        raise RowError(f"an image of {size[0]}x{size[1]} pixels")
    return size


def _check_boxes(boxes_R4: Array, width: int, height: int) -> None:
    if not np.isfinite(boxes_R4).all():
        raise RowError("a box is not finite")
    for index, (x1, y1, x2, y2) in enumerate(boxes_R4.tolist()):
        if x2 < x1 or y2 < y1:
            raise RowError(f"box {index} is ({x1:.1f}, {y1:.1f}, {x2:.1f}, {y2:.1f}); expected x1 <= x2 and y1 <= y2")
        if min(x1, y1) < -_SLACK or x2 > width + _SLACK or y2 > height + _SLACK:
            swapped = max(x2, y2) <= max(width, height) + _SLACK and width != height
            hint = "; are width and height the other way round?" if swapped else ""
            raise RowError(
                f"box {index}, ({x1:.1f}, {y1:.1f}, {x2:.1f}, {y2:.1f}), lies outside its image of {width}x{height}{hint}"
            )


def _classes(row: PublishedRow, count: int, options: ReadOptions) -> tuple[Array, Array]:
    """Ids and probabilities [R, K] of the most probable classes, best first."""
    if row.distribution_RN is not None:
        distribution_RN = _probabilities(_matrix(row.distribution_RN, "class probabilities", count, None), "class", count)
        if distribution_RN.shape[1] != options.class_count + 1:
            raise RowError(
                f"{distribution_RN.shape[1]} class probabilities; expected {options.class_count + 1}, background included "
                "(--class-names says how many there are)"
            )
        if (total := float(distribution_RN.sum(axis=1).max())) > 1.02:
            raise RowError(f"the class probabilities of a box sum to {total:.3f}")
        kept_RK = _most_probable(distribution_RN, min(options.kept_classes, distribution_RN.shape[1]))
        return kept_RK, np.take_along_axis(distribution_RN, kept_RK, axis=1)
    if row.kept_ids_RK is not None and row.kept_scores_RK is not None:
        return row.kept_ids_RK, _probabilities(row.kept_scores_RK, "class probability", count)
    if row.class_ids_R is None:
        return np.zeros((count, 0), np.int64), np.zeros((count, 0), np.float32)
    ids_R = _ids(row.class_ids_R, "class", count, options.class_count)
    return ids_R[:, None], _probabilities(row.class_scores_R, "class probability", count)[:, None]


def _most_probable(distribution_RN: Array, kept: int) -> Array:
    """The first `kept` columns of `argsort(-distribution_RN, kind="stable")`, without sorting 1601 columns for 16 of them.

    Floats that are not negative are in the order of their bits; below these the column, so that of equal ones the first wins.
    """
    columns = distribution_RN.shape[1]
    bits_RN = np.ascontiguousarray(np.maximum(distribution_RN, 0) + 0, np.float32).view(np.uint32).astype(np.uint64)
    ranked_RN = (bits_RN << np.uint64(32)) | np.arange(columns - 1, -1, -1, dtype=np.uint64)
    best_RK = np.sort(np.partition(ranked_RN, columns - kept, axis=1)[:, columns - kept :], axis=1)[:, ::-1]
    kept_RK: Array = columns - 1 - (best_RK & np.uint64(0xFFFFFFFF)).astype(np.int64)
    return kept_RK


def _ids(ids_R: Array | None, what: str, count: int, most: int) -> Array:
    if ids_R is None:
        return np.zeros(count, np.int64)
    ids_R = _vector(ids_R, f"{what} ids", count)
    if ids_R.min() < BACKGROUND or ids_R.max() > most:
        wrong = int(ids_R.max() if ids_R.max() > most else ids_R.min())
        raise RowError(f"{what} number {wrong} of {most}, counted from 1 (--{what}-names says how many there are)")
    return ids_R


def _probabilities(values: Array | None, what: str, count: int) -> Array:
    if values is None:
        return np.zeros(count, np.float32)
    if values.ndim < 2:
        values = _vector(values, what, count)
    if not (values >= -1e-6).all() or not (values <= 1.001).all():  # NaN is neither
        raise RowError(f"a {what} lies outside 0..1")
    return values.astype(np.float32)


def _matrix(values: Array, what: str, count: int | None, columns: int | None) -> Array:
    if values.ndim != 2 or (count is not None and len(values) != count) or (columns is not None and values.shape[1] != columns):
        expected = f"{'R' if count is None else count} x {'F' if columns is None else columns}"
        raise RowError(f"{what} have the shape {'x'.join(map(str, values.shape)) or 'of one number'}; expected {expected}")
    if values.dtype.kind != "f":
        raise RowError(f"{what} are {values.dtype}; expected floating-point numbers")
    return values


def _vector(values: Array, what: str, count: int) -> Array:
    values = values.reshape(-1)
    if len(values) != count:
        raise RowError(f"{len(values)} {what} for {count} boxes")
    return values


def with_background(distribution_RN: Array, class_count: int) -> Array:
    """A distribution over the classes alone gets a column 0 of zeros; one that has it already is left as it is."""
    if distribution_RN.ndim == 2 and distribution_RN.shape[1] == class_count:
        return np.pad(distribution_RN, ((0, 0), (1, 0)))
    return distribution_RN


def whole_number(text: str | bytes, what: str, least: int = 0) -> int:
    """Raises RowError: not a number, not whole, or below `least`."""
    try:
        value = float(text)
        if value != int(value) or value < least:
            raise ValueError
    except (ValueError, OverflowError):
        shown = text.decode("ascii", "replace") if isinstance(text, bytes) else text
        raise RowError(f"{what} is {shown[:40]!r}; expected a whole number of at least {least}") from None
    return int(value)


def decoded(text: str | bytes, what: str) -> bytes:
    """The bytes of a base64 field, `b'...'` around it (as Python 3's csv module writes bytes) or not, line breaks in it or not.

    Raises:
        RowError: not base64.
    """
    raw = text.encode("ascii", "replace") if isinstance(text, str) else text
    if raw[:2] in (b"b'", b'b"') and raw[-1:] == raw[1:2]:
        raw = raw[2:-1]
    if b"\n" in raw:
        raw = raw.replace(b"\n", b"")
    try:
        return base64.b64decode(raw, validate=True)
    except binascii.Error as error:
        raise RowError(f"{what}: damaged base64 of {len(raw)} characters ({error})") from error


def floats(text: str | bytes, what: str, count: int, columns: int | None = None) -> Array:
    """float32 [count, columns] of a base64 field; columns None: as many as there are.

    Raises:
        RowError: damaged base64, or a length that does not go with the number of boxes.
    """
    content = decoded(text, what)
    row = 4 * (columns or 1) * count
    if not content or len(content) % row or (columns and len(content) != row):
        expected = f"{row} ({count} x {columns} float32)" if columns else f"a multiple of {row} ({count} boxes)"
        raise RowError(f"{what}: {len(content)} bytes; expected {expected}")
    return np.frombuffer(content, "<f4").reshape(count, -1)


def integers(text: str | bytes, what: str, count: int) -> Array:
    """int64 [count] of a base64 field of int64 or (written on Windows) int32.

    Raises:
        RowError: damaged base64, or a length that does not go with the number of boxes.
    """
    content = decoded(text, what)
    if len(content) not in (8 * count, 4 * count):
        raise RowError(f"{what}: {len(content)} bytes; expected {8 * count} ({count} x int64)")
    return np.frombuffer(content, "<i8" if len(content) == 8 * count else "<i4").astype(np.int64)
