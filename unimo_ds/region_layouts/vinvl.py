"""VinVL's tables (Oscar+): `features.tsv` with `predictions.tsv` beside it, or a `predictions.tsv` that has the features."""

import json
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from unimo_ds.errors import DataError
from unimo_ds.region_layouts.lines import Line, read_lines
from unimo_ds.region_layouts.published import Entry, PublishedRegions
from unimo_ds.region_layouts.rows import Array, PublishedRow, RowError, floats, whole_number

_PLACES = 6  # columns behind the features: x1, y1, x2, y2, width, height, relative to the image
_CLOSE = 2e-3  # of the image's side, between these columns and the boxes


class _Vinvl(PublishedRegions):
    detector = "VinVL ResNeXt-152 C4"

    @property
    def total_bytes(self) -> int:
        return self._features_path().stat().st_size

    def _features_path(self) -> Path:
        return self.path

    def _described(self, description: Any, features_RF: Array | None) -> PublishedRow:
        """The row of a JSON description: `objects` with `rect`, `class`, `conf`, ..., and sometimes the image's size.

        Classes and attributes are names there: without --class-names and --attribute-names they are not kept.
        """
        objects = description.get("objects") if isinstance(description, dict) else description
        if not isinstance(objects, list) or not objects or not all(isinstance(one, dict) for one in objects):
            raise RowError("no list of objects")
        try:
            boxes_R4 = np.array([one["rect"] for one in objects], np.float32).reshape(len(objects), 4)
        except (KeyError, ValueError, TypeError) as error:
            raise RowError(f"an object without four numbers as `rect` ({error!r})") from error
        if features_RF is None:
            features_RF = np.concatenate([floats(str(one.get("feature", "")), "feature", 1) for one in objects])
        size = None
        if isinstance(description, dict) and "image_w" in description and "image_h" in description:
            size = (
                whole_number(str(description["image_w"]), "image_w", 1),
                whole_number(str(description["image_h"]), "image_h", 1),
            )
        classes = [(one.get("class"), one.get("conf", 0)) for one in objects]
        attributes = [
            (next(iter(one.get("attributes") or ()), None), next(iter(one.get("attr_scores") or ()), 0)) for one in objects
        ]
        class_ids_R, class_scores_R = _numbered(classes, self.options.class_names, "class")
        attribute_ids_R, attribute_scores_R = _numbered(attributes, self.options.attribute_names, "attribute")
        return PublishedRow(
            boxes_R4,
            features_RF,
            size,
            class_ids_R=class_ids_R,
            class_scores_R=class_scores_R,
            attribute_ids_R=attribute_ids_R,
            attribute_scores_R=attribute_scores_R,
        )

    @abstractmethod
    def entries(self) -> Iterator[Entry]:
        """See `PublishedRegions`."""


def _numbered(found: Sequence[tuple[Any, Any]], names: Sequence[str], what: str) -> tuple[Array | None, Array | None]:
    """Ids and probabilities of names; (None, None) where the names of the detector are not known."""
    if not names:
        return None, None
    number = {name: index for index, name in enumerate(names, 1)}
    unknown = [name for name, _ in found if name is not None and name not in number]
    if unknown:
        raise RowError(f"{what} {unknown[0]!r} is not among the {len(names)} {what} names given")
    try:
        scores_R = np.array([score if name is not None else 0 for name, score in found], np.float32)
    except (ValueError, TypeError) as error:
        raise RowError(f"a {what} without a probability ({error})") from error
    return np.array([number.get(name, 0) for name, _ in found], np.int64), scores_R


def _split(line: Line, count: int) -> list[bytes]:
    fields = line.content.split(b"\t")
    if len(fields) != count:
        cut = "" if line.whole else " (the file ends within this line: was it cut?)"
        raise RowError(f"{len(fields)} columns; expected {count}{cut}")
    return fields


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RowError(f"not JSON ({error})") from error


def _key(line: Line) -> str:
    return line.first_column(b"\t").decode("utf-8", "replace")


class VinvlFeatures(_Vinvl):
    """A folder with `features.tsv` (key, number of boxes, features with places) and `predictions.tsv`, line by line alike.

    Without `predictions.tsv` the boxes are those of the places, the image's size and the classes are not known.
    """

    layout = "vinvl_tsv"

    def _features_path(self) -> Path:
        return self.path / "features.tsv" if self.path.is_dir() else self.path

    def entries(self) -> Iterator[Entry]:
        predictions = self._features_path().with_name("predictions.tsv")
        if not predictions.exists():
            for line in read_lines(self._features_path()):
                yield Entry(_key(line), line.where, line.position, partial(self._row, line, None))
            return
        described = read_lines(predictions)
        for line in read_lines(self._features_path()):
            beside = next(described, None)
            if beside is None or _key(beside) != _key(line):
                other = "its end" if beside is None else f"{_key(beside)[:60]!r}"
                raise DataError(
                    f"{line.where}: image {_key(line)[:60]!r}, where {predictions} has {other}: they must go line by line"
                )
            yield Entry(_key(line), line.where, line.position, partial(self._row, line, beside))

    def _row(self, line: Line, beside: Line | None) -> PublishedRow:
        _, count, content = _split(line, 3)
        features_RF = floats(content, "features", whole_number(count, "the number of boxes", 1))
        if features_RF.shape[1] <= _PLACES:
            raise RowError(f"{features_RF.shape[1]} columns; expected features and {_PLACES} of places")
        places_R6 = features_RF[:, -_PLACES:]
        if beside is None:
            return PublishedRow(places_R6[:, :4], features_RF[:, :-_PLACES], None, relative=True)
        row = self._described(_parsed(_split(beside, 2)[1]), features_RF[:, :-_PLACES])
        if row.size is not None and len(row.boxes_R4) == len(features_RF):
            off = np.abs(row.boxes_R4 / np.array(row.size * 2, np.float32) - places_R6[:, :4]).max()
            if not off <= _CLOSE:
                raise RowError(f"predictions.tsv has other boxes than features.tsv (by {off:.3f} of the image's side)")
        return row


class VinvlPredictions(_Vinvl):
    """A `predictions.tsv` (key, JSON) whose objects have a `feature` each (scene_graph_benchmark's); no image size."""

    layout = "vinvl_predictions"

    def entries(self) -> Iterator[Entry]:
        for line in read_lines(self.path):
            yield Entry(_key(line), line.where, line.position, partial(self._row, line))

    def _row(self, line: Line) -> PublishedRow:
        return self._described(_parsed(_split(line, 2)[1]), None)
