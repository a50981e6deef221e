"""Tables of regions, one line an image, arrays as base64: bottom-up attention, LXMERT, and the original UNIMO's three.

Boxes are float32 x1, y1, x2, y2 in pixels of the image on disk; features are float32.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar, TypeVar

from unimo_ds.errors import DataError
from unimo_ds.region_layouts.lines import Line, read_lines
from unimo_ds.region_layouts.published import Entry, PublishedRegions
from unimo_ds.region_layouts.rows import (
    Array,
    PublishedRow,
    ReadOptions,
    RowError,
    floats,
    integers,
    whole_number,
    with_background,
)

_SAMPLE = 64  # lines that tell the order of width and height
_PREFIX = 9  # characters before the number in an image id of UNIMO's captions

Fields = Sequence[bytes]
T = TypeVar("T")


class _Table(PublishedRegions):
    """A text file with one image a line.

    Attributes:
        separator: between the columns.
        columns: their names, of which the first is the image's key.
    """

    separator: ClassVar[bytes] = b"\t"
    columns: ClassVar[tuple[str, ...]]
    most_columns: ClassVar[int | None] = None  # where a layout may have further ones

    @property
    def total_bytes(self) -> int:
        return self.path.stat().st_size

    def entries(self) -> Iterator[Entry]:
        for line in read_lines(self.path):
            first = line.first_column(self.separator)
            try:
                key = self.key_of(first.decode("utf-8"))
                decode = partial(self._decode, line)
            except (UnicodeDecodeError, RowError) as error:
                key, decode = first[:80].decode("utf-8", "replace"), partial(_fail, f"column {self.columns[0]}: {error}")
            yield Entry(key, line.where, line.position, decode)

    def key_of(self, field: str) -> str:
        if not field.strip():
            raise RowError("empty")
        return field.strip()

    def _decode(self, line: Line) -> PublishedRow:
        fields = line.content.split(self.separator)
        try:
            if not len(self.columns) <= len(fields) <= (self.most_columns or len(self.columns)):
                raise RowError(f"{len(fields)} columns; expected {len(self.columns)}: {', '.join(self.columns)}")
            return self.row(fields)
        except RowError as error:
            if line.whole:
                raise
            raise RowError(f"{error} (the file ends within this line: was it cut?)") from error

    @abstractmethod
    def row(self, fields: Fields) -> PublishedRow:
        """Raises RowError."""


def _fail(reason: str) -> PublishedRow:
    raise RowError(reason)


def _size(width: bytes, height: bytes) -> tuple[int, int]:
    return whole_number(width, "image width", 1), whole_number(height, "image height", 1)


def _boxes_and_features(count: bytes, boxes: bytes, features: bytes) -> tuple[int, Array, Array]:
    number = whole_number(count, "num_boxes", 1)
    return number, floats(boxes, "boxes", number, 4), floats(features, "features", number)


class BottomUpTable(_Table):
    """bottom-up-attention's `generate_tsv.py`: 36 boxes or 10 to 100, no classes."""

    layout = "bottom_up_tsv"
    columns = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")

    def row(self, fields: Fields) -> PublishedRow:
        _, boxes_R4, features_RF = _boxes_and_features(*fields[3:6])
        return PublishedRow(boxes_R4, features_RF, _size(fields[1], fields[2]))


class LxmertTable(_Table):
    """LXMERT's `*_obj36.tsv`, and VOLTA's with the whole class distribution behind it.

    Ids are without background and "none". A probability of exactly 0, which no softmax gives, means that there is no
    class or attribute: extractors without an attribute head write zeros.
    """

    layout = "lxmert_tsv"
    columns = (
        "img_id",
        "img_h",
        "img_w",
        "objects_id",
        "objects_conf",
        "attrs_id",
        "attrs_conf",
        "num_boxes",
        "boxes",
        "features",
    )
    most_columns = 13  # VOLTA's: cls_prob, attrs, classes

    def row(self, fields: Fields) -> PublishedRow:
        count, boxes_R4, features_RF = _boxes_and_features(*fields[7:10])
        class_scores_R = floats(fields[4], "objects_conf", count, 1).reshape(-1)
        attribute_scores_R = floats(fields[6], "attrs_conf", count, 1).reshape(-1)
        distribution_RN = None
        if len(fields) > len(self.columns):
            distribution_RN = with_background(floats(fields[10], "cls_prob", count), self.options.class_count)
        return PublishedRow(
            boxes_R4,
            features_RF,
            _size(fields[2], fields[1]),
            distribution_RN=distribution_RN,
            class_ids_R=(integers(fields[3], "objects_id", count) + 1) * (class_scores_R != 0),
            class_scores_R=class_scores_R,
            attribute_ids_R=(integers(fields[5], "attrs_id", count) + 1) * (attribute_scores_R != 0),
            attribute_scores_R=attribute_scores_R,
        )


class UnimoTable(_Table):
    """The original UNIMO's image features for retrieval: the whole class distribution, background first.

    Its reader for training takes the second column for the width, its reader for testing for the height;
    `UnimoTableHeightFirst` is the latter.
    """

    layout = "unimo_tsv"
    columns = ("img_filename", "image_w", "image_h", "number_box", "boxes", "image_embeddings", "probs")

    def row(self, fields: Fields) -> PublishedRow:
        count, boxes_R4, features_RF = _boxes_and_features(*fields[3:6])
        distribution_RN = with_background(floats(fields[6], "probs", count), self.options.class_count)
        return PublishedRow(boxes_R4, features_RF, self.size_of(fields), distribution_RN=distribution_RN)

    def size_of(self, fields: Fields) -> tuple[int, int]:
        return _size(fields[1], fields[2])


class UnimoTableHeightFirst(UnimoTable):
    """The same with height and width the other way round."""

    layout = "unimo_tsv_hw"
    source = "unimo_tsv"
    columns = ("img_filename", "image_h", "image_w", "number_box", "boxes", "image_embeddings", "probs")

    def size_of(self, fields: Fields) -> tuple[int, int]:
        return _size(fields[2], fields[1])


def caption_image(image_id: str) -> str:
    """The image's number, which is its key, in an image id of UNIMO's captions.

    Raises:
        RowError: nothing stands behind the prefix.
    """
    if len(image_id) <= _PREFIX:
        raise RowError(f"{image_id!r}; expected {_PREFIX} characters and the image's number")
    return image_id[_PREFIX:]


class UnimoCaptions(_Table):
    """The original UNIMO's captions with their image in every line; height before width; 9 characters before the number."""

    layout = "unimo_captions"
    repeats = True
    separator = b";"
    columns = (
        "image_id",
        "caption_id",
        "token_ids",
        "sent_ids",
        "pos_ids",
        "seg_labels",
        "node_attr_b",
        "node_attr_e",
        "image_h",
        "image_w",
        "number_box",
        "boxes",
        "probs",
        "attr_probs",
        "image_embeddings",
        "label",
    )

    def key_of(self, field: str) -> str:
        return caption_image(field)

    def row(self, fields: Fields) -> PublishedRow:
        count, boxes_R4, features_RF = _boxes_and_features(fields[10], fields[11], fields[14])
        attribute_ids_R = attribute_scores_R = distribution_RN = None
        if fields[12]:
            distribution_RN = with_background(floats(fields[12], "probs", count), self.options.class_count)
        if fields[13]:
            attributes_RA = with_background(floats(fields[13], "attr_probs", count), self.options.attribute_count)
            attribute_ids_R, attribute_scores_R = attributes_RA.argmax(axis=1), attributes_RA.max(axis=1)
        return PublishedRow(
            boxes_R4,
            features_RF,
            _size(fields[9], fields[8]),
            distribution_RN=distribution_RN,
            attribute_ids_R=attribute_ids_R,
            attribute_scores_R=attribute_scores_R,
        )


class UnimoEntailment(_Table):
    """The original UNIMO's SNLI-VE examples with their image in every line; width before height; no classes."""

    layout = "unimo_entailment"
    repeats = True
    separator = b";"
    columns = (
        "image_id",
        "data_id",
        "label",
        "token_ids",
        "sent_ids",
        "pos_ids",
        "unused_1",
        "image_w",
        "image_h",
        "number_box",
        "boxes",
        "image_embeddings",
        "unused_2",
        "unused_3",
    )

    def row(self, fields: Fields) -> PublishedRow:
        _, boxes_R4, features_RF = _boxes_and_features(*fields[9:12])
        return PublishedRow(boxes_R4, features_RF, _size(fields[7], fields[8]))


def unimo_order(path: Path) -> type[UnimoTable]:
    """Which of the two orders of width and height a file of seven columns has: the one in which boxes lie in their images.

    Raises:
        DataError: the first lines fit both or neither: the user must say it.
    """
    outside = {UnimoTable: 0, UnimoTableHeightFirst: 0}
    tried = 0
    for _, line in zip(range(_SAMPLE), read_lines(path), strict=False):
        for kind in outside:
            fields = line.content.split(b"\t")
            if len(fields) != len(kind.columns):
                continue
            try:
                row = kind(path, ReadOptions()).row(fields)
            except RowError:
                continue
            assert row.size is not None  # this layout has it
            tried += 1
            outside[kind] += bool((row.boxes_R4[:, 2:].max(axis=0) > [size + 1.0 for size in row.size]).any())
    fitting = [kind for kind, count in outside.items() if not count]
    if len(fitting) == 1:
        return fitting[0]
    names = " or ".join(kind.layout for kind in outside)
    if not tried:
        raise DataError(f"{path}: none of its first lines has the columns {', '.join(UnimoTable.columns)}; say --layout NAME")
    which = "both orders" if fitting else "neither order"
    raise DataError(f"{path}: the boxes of its first lines fit {which} of width and height; say --layout {names}")
