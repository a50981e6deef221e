"""Regions in HDF5: bottom-up attention's for VQA (Hu, BAN) and ours, nocaps', VOLTA's, and the captioning one.

Shape suffixes: B all boxes of a file, M images, R regions of one image, F feature width.
"""

import json
from abc import abstractmethod
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np

from unimo_ds.errors import DataError
from unimo_ds.region_layouts.array_files import unpickled
from unimo_ds.region_layouts.published import Entry, PublishedRegions
from unimo_ds.region_layouts.records import row_of_record
from unimo_ds.region_layouts.rows import Array, PublishedRow, RowError, whole_number

_OF_DAMAGE = (OSError, RuntimeError, KeyError, UnicodeDecodeError)  # what h5py raises, depending on where the damage is
_DIFFERENCE = 1e-2  # pixels, between the image sizes that two boxes of one image imply


class _Hdf5(PublishedRegions):
    """An HDF5 file; `needed` are the datasets that tell its layout."""

    needed: ClassVar[tuple[str, ...]] = ()

    @property
    def total_bytes(self) -> int:
        return self.path.stat().st_size

    def entries(self) -> Iterator[Entry]:
        try:
            with h5py.File(self.path, "r") as file:
                missing = [name for name in self.needed if name not in file]
                if missing:
                    raise DataError(f"{self.path}: no dataset {missing[0]!r}; {self.layout} has {', '.join(self.needed)}")
                yield from self.images(file)
        except _OF_DAMAGE as error:
            raise DataError(f"{self.path}: cannot be read as HDF5 ({error})") from error

    @abstractmethod
    def images(self, file: Any) -> Iterator[Entry]:
        """The images of the open file."""

    def _entry(self, key: str, position: int, read: Any) -> Entry:
        return Entry(key, f"{self.path}: {key!r}", position, partial(_decoded, read))


def _decoded(read: Any) -> PublishedRow:
    try:
        row: PublishedRow = read()
    except _OF_DAMAGE as error:
        raise RowError(f"cannot be read ({error})") from error
    return row


def _names(file: Any) -> Iterator[str]:
    """What is in a file; h5py gives a name that is no UTF-8 as bytes."""
    return (name if isinstance(name, str) else name.decode("utf-8", "replace") for name in file)


class BottomUpHdf5(_Hdf5):
    """`image_features` and `image_bb`, [M, R, ...], or [B, ...] with `pos_boxes` [M, 2] for the images' rows; and ours.

    The file has no names and sizes of images, unless we wrote it. Names are in a pickled dictionary beside it
    (`train36.hdf5` and `train36_imgid2idx.pkl`). Sizes follow from `spatial_features`: x2 / (x2 / width).
    """

    layout = "bottom_up_hdf5"
    needed = ("image_features", "image_bb")

    def images(self, file: Any) -> Iterator[Entry]:
        ranges_M2 = self._ranges(file)
        width = file["image_features"].dtype.itemsize * file["image_features"].shape[-1]
        for key, row in self._rows_by_key(file).items():
            if not 0 <= row < len(ranges_M2):
                raise DataError(f"{self.path}: image {key!r} is said to be row {row}; there are {len(ranges_M2)}")
            start, end = (int(bound) for bound in ranges_M2[row])
            yield self._entry(key, end * width, partial(self._row, file, row, start, end))

    def _ranges(self, file: Any) -> Array:
        if "pos_boxes" in file:
            return np.asarray(file["pos_boxes"], np.int64)
        images, boxes = file["image_bb"].shape[:2]
        ends_M = np.arange(1, images + 1) * boxes
        return np.stack([ends_M - boxes, ends_M], axis=1)

    def _rows_by_key(self, file: Any) -> dict[str, int]:
        """The row of each image's key, in the order of the rows."""
        if "image_ids" in file:
            return {str(key): row for row, key in enumerate(file["image_ids"].asstr()[:])}
        path = self.path.with_name(f"{self.path.stem}_imgid2idx.pkl")
        try:
            content = unpickled(path.read_bytes(), str(path))
            rows = {
                key.decode("latin1") if isinstance(key, bytes) else str(key): whole_number(str(row), "a row")
                for key, row in content.items()
            }
        except (OSError, AttributeError, RowError) as error:
            raise DataError(
                f"{self.path}: the names of its images are not in it, and {path.name} beside it cannot be read ({error}); "
                "expected a pickled dictionary from image id to row"
            ) from error
        return dict(sorted(rows.items(), key=lambda item: item[1]))

    def _row(self, file: Any, row: int, start: int, end: int) -> PublishedRow:
        part: Any = slice(start, end) if file["image_bb"].ndim == 2 else row
        if start == end == 0 or (end > len(file["image_bb"]) and file["image_bb"].ndim == 2):
            raise RowError(f"rows {start} to {end} of {len(file['image_bb'])}: never filled, or cut")
        boxes_R4, size = file["image_bb"][part], None
        if "image_w" in file:
            size = int(file["image_w"][row]), int(file["image_h"][row])
        elif "spatial_features" in file:
            size = _implied_size(boxes_R4, file["spatial_features"][part])
        if "class_ids" not in file:
            return PublishedRow(boxes_R4, file["image_features"][part], size)
        return PublishedRow(
            boxes_R4,
            file["image_features"][part],
            size,
            kept_ids_RK=file["class_ids"][part],
            kept_scores_RK=file["class_probabilities"][part],
            attribute_ids_R=file["attribute_ids"][part],
            attribute_scores_R=file["attribute_probabilities"][part],
        )


def _implied_size(boxes_R4: Array, spatial_R6: Array) -> tuple[int, int]:
    """The image's size, by which its boxes in pixels were divided to give those in parts of it.

    Raises:
        RowError: the boxes do not agree on one, or it is no whole number.
    """
    size = []
    for axis, name in enumerate(("width", "height")):
        with np.errstate(divide="ignore", invalid="ignore"):
            implied_R = boxes_R4[:, 2 + axis].astype(np.float64) / spatial_R6[:, 2 + axis]
        implied_R = implied_R[np.isfinite(implied_R)]
        if not len(implied_R) or np.abs(implied_R - round(float(np.median(implied_R)))).max() > _DIFFERENCE:
            shown = ", ".join(f"{value:.2f}" for value in implied_R[:3])
            raise RowError(f"image_bb and spatial_features do not imply one {name} of the image: {shown or 'all are 0'}")
        size.append(round(float(np.median(implied_R))))
    return size[0], size[1]


class NocapsHdf5(_Hdf5):
    """nocaps' extractor: a row an image, boxes and features as flat arrays of variable length. Its classes are another
    detector's (the boxes are given to it), and are not kept."""

    layout = "nocaps_hdf5"
    needed = ("image_id", "width", "height", "num_boxes", "boxes", "features")

    def images(self, file: Any) -> Iterator[Entry]:
        total = self.total_bytes
        for row, key in enumerate(file["image_id"][:]):
            yield self._entry(str(key), total * (row + 1) // len(file["image_id"]), partial(self._row, file, row))

    def _row(self, file: Any, row: int) -> PublishedRow:
        return row_of_record({name: file[name][row] for name in self.needed[1:]}, self.options)


class GroupHdf5(_Hdf5):
    """VOLTA's: a group an image, with LXMERT's fields as arrays; ids without background."""

    layout = "group_hdf5"

    def images(self, file: Any) -> Iterator[Entry]:
        total = self.total_bytes
        for number, key in enumerate(_names(file), 1):
            yield self._entry(key, total * number // len(file), partial(self._row, file, key))

    def _row(self, file: Any, key: str) -> PublishedRow:
        group = file[key]
        if not isinstance(group, h5py.Group):
            raise RowError("a dataset; expected a group of boxes, features, ...")
        return row_of_record({name: group[name][()] for name in group}, self.options)


class CaptioningHdf5(_Hdf5):
    """Meshed-memory's `coco_detections.hdf5` and its kin: `ID_features`, `ID_boxes`, `ID_cls_prob`, sometimes `ID_size`
    (height, width)."""

    layout = "captioning_hdf5"

    def images(self, file: Any) -> Iterator[Entry]:
        total = self.total_bytes
        names = [name for name in _names(file) if name.endswith("_features")]
        for number, name in enumerate(names, 1):
            key = name.removesuffix("_features")
            yield self._entry(key, total * number // len(names), partial(self._row, file, key))

    def _row(self, file: Any, key: str) -> PublishedRow:
        record = {
            name: file[f"{key}_{name}"][()] for name in ("features", "boxes", "cls_prob", "size") if f"{key}_{name}" in file
        }
        if len(size := record.pop("size", ())) == 2:
            record |= {"image_h": size[0], "image_w": size[1]}
        return row_of_record(record, self.options)


def hdf5_kind(path: Path) -> type[_Hdf5]:
    """The layout of an HDF5 file, by the names in it.

    Raises:
        DataError: it cannot be read or has none of the known names.
    """
    try:
        with h5py.File(path, "r") as file:
            for kind in (BottomUpHdf5, NocapsHdf5):
                if all(name in file for name in kind.needed):
                    return kind
            first = next(_names(file), "")
            if first and isinstance(file[first], h5py.Group) and "features" in file[first]:
                return GroupHdf5
            if first.endswith(("_features", "_boxes", "_cls_prob", "_size")):
                return CaptioningHdf5
            raise DataError(
                f"{path}: HDF5 with {', '.join(list(_names(file))[:6]) or 'nothing in it'}; no known layout of regions"
            )
    except _OF_DAMAGE as error:
        raise DataError(f"{path}: cannot be read as HDF5 ({error})") from error


def described_detector(path: Path) -> dict[str, Any]:
    """What our own HDF5 says of the detector and its names: `detector`, `class_names`, `attribute_names`; {} of others."""
    try:
        with h5py.File(path, "r") as file:
            return {
                name: json.loads(file.attrs[name])
                for name in ("detector", "class_names", "attribute_names")
                if name in file.attrs
            }
    except (*_OF_DAMAGE, ValueError) as error:
        raise DataError(f"{path}: its description cannot be read ({error})") from error
