"""Object annotations in COCO's instances format, with an optional `attribute_id` per object and a list `attributes`.

Shape suffix: n objects of one image.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unimo_ds.errors import DataError


@dataclass(frozen=True)
class Objects:
    """The objects of one image.

    Attributes:
        file_name: as the annotation file has it.
        boxes_n4: float32 `x1, y1, x2, y2` in pixels of the image on disk.
        labels_n: int64, position of the category in `Annotations.class_names`, counted from 1.
        attributes_n: int64, likewise in `attribute_names`; 0 where the object has none.
    """

    file_name: str
    boxes_n4: npt.NDArray[np.float32]
    labels_n: npt.NDArray[np.int64]
    attributes_n: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Annotations:
    """One annotation file: the names, in order of their ids, and the images in order of the file."""

    class_names: tuple[str, ...]
    attribute_names: tuple[str, ...]
    images: tuple[Objects, ...]


def read_annotations(path: Path) -> Annotations:
    """Reads an instances file.

    Raises:
        DataError: the file cannot be read, or a key or an id that it needs is missing; names it.
    """
    content = read_json(path)
    try:
        class_of = {c["id"]: i for i, c in enumerate(sorted(content["categories"], key=lambda c: c["id"]), start=1)}
        listed = content.get("attributes", [])
        attribute_of = {a["id"]: i for i, a in enumerate(sorted(listed, key=lambda a: a["id"]), start=1)}
        objects: dict[Any, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
        for annotation in content["annotations"]:
            objects[annotation["image_id"]].append(annotation)
        return Annotations(
            _names(content["categories"]),
            _names(listed),
            tuple(_objects(i["file_name"], objects[i["id"]], class_of, attribute_of) for i in content["images"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not a COCO instances file: {error!r} (key or id) is missing or malformed") from error


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        DataError: it cannot be read or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error})") from error


def _names(items: list[dict[str, Any]]) -> tuple[str, ...]:
    return tuple(item["name"] for item in sorted(items, key=lambda item: item["id"]))


def _objects(name: str, annotations: list[dict[str, Any]], class_of: dict[Any, int], attribute_of: dict[Any, int]) -> Objects:
    boxes_n4 = np.array([a["bbox"] for a in annotations], np.float32).reshape(-1, 4)
    boxes_n4[:, 2:] += boxes_n4[:, :2]
    labels = [class_of[a["category_id"]] for a in annotations]
    attributes = [attribute_of.get(a.get("attribute_id"), 0) for a in annotations]
    return Objects(name, boxes_n4, np.array(labels, np.int64), np.array(attributes, np.int64))
