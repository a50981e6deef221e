"""Regions as files for other tools: bottom-up attention's table, LXMERT's table, HDF5.

Shape suffixes: R regions of an image, B regions of all images, M images, F feature width, K kept classes.
"""

import base64
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from unimo_ds.errors import DataError
from unimo_ds.regions import BACKGROUND, Regions

Images = Iterable[tuple[str, Regions]]


@dataclass(frozen=True)
class Extent:
    """How much there is to write: M images, B boxes in all, F columns, K classes; and what HDF5 says of the store."""

    images: int
    boxes: int
    feature_width: int
    kept_classes: int
    description: dict[str, Any]


def write_bottom_up(images: Images, path: Path, extent: Extent) -> None:
    """bottom-up-attention's six columns. Classes and attributes are lost.

    Raises:
        DataError: a key that a table cannot hold.
    """
    _write_table(
        path,
        (
            (
                _key(key, path),
                regions.width,
                regions.height,
                len(regions),
                _floats(regions.boxes_R4),
                _floats(regions.features_RF),
            )
            for key, regions in images
        ),
    )


def write_lxmert(images: Images, path: Path, extent: Extent) -> None:
    """LXMERT's ten columns: of the classes the best one that is not the background. A probability of 0 stands for none.

    Raises:
        DataError: a key that a table cannot hold.
    """
    _write_table(path, (_lxmert_row(_key(key, path), regions) for key, regions in images))


def _lxmert_row(key: str, regions: Regions) -> tuple[Any, ...]:
    ids_R, scores_R = best_classes(regions)
    attribute_scores_R = np.where(regions.attribute_ids_R == 0, 0, regions.attribute_probabilities_R)
    return (
        key,
        regions.height,
        regions.width,
        _integers(np.maximum(ids_R.astype(np.int64) - 1, 0)),
        _floats(scores_R),
        _integers(np.maximum(regions.attribute_ids_R.astype(np.int64) - 1, 0)),
        _floats(attribute_scores_R),
        len(regions),
        _floats(regions.boxes_R4),
        _floats(regions.features_RF),
    )


def best_classes(regions: Regions) -> tuple[Any, Any]:
    """The id and probability of each region's best class that is not the background, (0, 0) where none was kept."""
    ids_RK, scores_RK = regions.class_ids_RK, regions.class_probabilities_RK
    if not ids_RK.shape[1]:
        return np.zeros(len(regions), np.uint16), np.zeros(len(regions), np.float16)
    best_R1 = (ids_RK != BACKGROUND).argmax(axis=1)[:, None]
    ids_R = np.take_along_axis(ids_RK, best_R1, axis=1)[:, 0]
    return ids_R, np.where(ids_R == BACKGROUND, 0, np.take_along_axis(scores_RK, best_R1, axis=1)[:, 0])


def write_hdf5(images: Images, path: Path, extent: Extent) -> None:
    """BAN's datasets, so that its kin can read them, and all else that a store holds: nothing is lost.

    image_features f4 [B, F], image_bb f4 [B, 4], spatial_features f4 [B, 6], pos_boxes i4 [M, 2] (first row, row after the
    last); image_ids text [M], image_w and image_h i4 [M]; class_ids u2 and class_probabilities f2 [B, K], attribute_ids u2 and
    attribute_probabilities f2 [B]; attributes `detector`, `class_names`, `attribute_names` as JSON.
    """
    count_M, count_B = extent.images, extent.boxes
    with _replacing(path) as temporary, h5py.File(temporary, "w") as file:
        for name, value in extent.description.items():
            file.attrs[name] = json.dumps(value)
        per_box = {
            "image_features": ((count_B, extent.feature_width), "<f4"),
            "image_bb": ((count_B, 4), "<f4"),
            "spatial_features": ((count_B, 6), "<f4"),
            "class_ids": ((count_B, extent.kept_classes), "<u2"),
            "class_probabilities": ((count_B, extent.kept_classes), "<f2"),
            "attribute_ids": ((count_B,), "<u2"),
            "attribute_probabilities": ((count_B,), "<f2"),
        }
        for name, (shape, kind) in per_box.items():
            file.create_dataset(name, shape, kind)
        file.create_dataset("image_ids", (count_M,), h5py.string_dtype())
        for name in ("image_w", "image_h"):
            file.create_dataset(name, (count_M,), "<i4")
        file.create_dataset("pos_boxes", (count_M, 2), "<i4")
        start = 0
        for number, (key, regions) in enumerate(images):
            end = start + len(regions)
            _fill(file, slice(start, end), regions)
            file["image_ids"][number] = key
            file["image_w"][number], file["image_h"][number] = regions.width, regions.height
            file["pos_boxes"][number] = start, end
            start = end


def _fill(file: Any, rows: slice, regions: Regions) -> None:
    file["image_features"][rows] = regions.features_RF
    file["image_bb"][rows] = regions.boxes_R4
    scale = np.array([regions.width, regions.height] * 2, np.float32)
    relative_R4 = regions.boxes_R4 / scale
    sides_R2 = relative_R4[:, 2:] - relative_R4[:, :2]
    file["spatial_features"][rows] = np.concatenate([relative_R4, sides_R2], axis=1)
    if regions.class_ids_RK.shape[1]:
        file["class_ids"][rows] = regions.class_ids_RK
        file["class_probabilities"][rows] = regions.class_probabilities_RK
    file["attribute_ids"][rows] = regions.attribute_ids_R
    file["attribute_probabilities"][rows] = regions.attribute_probabilities_R


WRITERS: dict[str, Callable[[Images, Path, Extent], None]] = {
    "tsv": write_bottom_up,
    "lxmert": write_lxmert,
    "hdf5": write_hdf5,
}


def _key(key: str, path: Path) -> str:
    if any(letter in key for letter in "\t\r\n"):
        raise DataError(f"{path}: image {key!r}: a table cannot hold a key with a tab or a line break; write HDF5")
    return key


def _floats(values: Any) -> str:
    return base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode()


def _integers(values: Any) -> str:
    return base64.b64encode(np.ascontiguousarray(values, "<i8").tobytes()).decode()


def _write_table(path: Path, rows: Iterable[tuple[Any, ...]]) -> None:
    with _replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        for row in rows:
            file.write("\t".join(map(str, row)) + "\n")


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A file beside `path` that takes its place when all went well: a kill leaves no half of a file under the name."""
    if path.is_dir():
        raise DataError(f"{path}: is a folder; name the file to write")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()
