"""One file an image: npz (MILVLG, UNITER), npy (Pythia, MMF, ViLBERT), and VL-BERT's JSON in a folder or a zip file."""

import json
import os
import zipfile
from abc import abstractmethod
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from unimo_ds.errors import DataError
from unimo_ds.region_layouts.array_files import npy_array, npz_arrays, plain_names
from unimo_ds.region_layouts.databases import uniter_row
from unimo_ds.region_layouts.published import Entry, PublishedRegions
from unimo_ds.region_layouts.records import row_of_record
from unimo_ds.region_layouts.rows import PublishedRow, RowError

_INFO = "_info.npy"


class _Folder(PublishedRegions):
    """A folder, searched recursively, or one file; a key is the path below the folder without the extension."""

    suffix: ClassVar[str]

    @property
    def total_bytes(self) -> int:
        return sum(path.stat().st_size for path in self._files())

    def _files(self) -> list[Path]:
        if self.path.is_file():
            return [self.path]
        found = (Path(folder) / name for folder, _, names in os.walk(self.path, followlinks=True) for name in names)
        return sorted(path for path in found if path.suffix == self.suffix)

    def entries(self) -> Iterator[Entry]:
        files = self._files()
        if not files:
            raise DataError(f"{self.path}: no {self.suffix} files in it")
        root = self.path if self.path.is_dir() else self.path.parent
        position = 0
        for path in files:
            position += path.stat().st_size
            key = path.relative_to(root).with_suffix("").as_posix()
            yield Entry(key, str(path), position, partial(self._read, path))

    def _read(self, path: Path) -> PublishedRow:
        try:
            return self.row(path)
        except OSError as error:
            raise RowError(f"cannot be read ({error.strerror or error})") from error

    @abstractmethod
    def row(self, path: Path) -> PublishedRow:
        """Raises RowError, OSError."""


class NpzFolder(_Folder):
    """MILVLG's `x`, `bbox`, `num_bbox`, `image_h`, `image_w`, `info` (a pickled dictionary, read as data only; its ids are
    without background), or UNITER's `norm_bb`, `features`, `conf`, `soft_labels`."""

    layout = "npz"
    suffix = ".npz"

    def row(self, path: Path) -> PublishedRow:
        arrays = npz_arrays(path.read_bytes(), path.name)
        if "norm_bb" in arrays:
            return uniter_row(arrays, self.options.class_count)
        info = arrays.pop("info", None)
        return row_of_record(arrays if info is None else plain_names(info) | arrays, self.options)


class NpyFolder(_Folder):
    """Pythia's and MMF's `NAME.npy` (features) with `NAME_info.npy` (a pickled dictionary), or all in one dictionary."""

    layout = "npy"
    suffix = ".npy"

    def _files(self) -> list[Path]:
        return [path for path in super()._files() if not path.name.endswith(_INFO)]

    def row(self, path: Path) -> PublishedRow:
        content = npy_array(path.read_bytes(), path.name)
        if isinstance(content, dict):
            return row_of_record(plain_names(content), self.options)
        beside = path.with_name(path.stem + _INFO)
        info = plain_names(npy_array(beside.read_bytes(), beside.name))
        return row_of_record({**info, "features": content}, self.options)


class VlBertJson(_Folder):
    """VL-BERT's JSON an image, arrays as base64: image_w, image_h, num_boxes, boxes, features, and for Conceptual Captions
    `classes`, the distribution."""

    layout = "vl_bert_json"
    suffix = ".json"

    def entries(self) -> Iterator[Entry]:
        if not (self.path.is_file() and zipfile.is_zipfile(self.path)):
            yield from super().entries()
            return
        position = 0
        with zipfile.ZipFile(self.path) as archive:
            for member in archive.infolist():
                if member.filename.endswith(self.suffix):
                    position += member.compress_size
                    key, where = member.filename.removesuffix(self.suffix), f"{self.path}: {member.filename}"
                    yield Entry(key, where, position, partial(self._member, archive, member))

    def _member(self, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> PublishedRow:
        try:
            return self._row_of(archive.read(member))
        except RowError:
            raise
        except Exception as error:  # zipfile and its decompressors raise many kinds on damage
            raise RowError(f"damaged in the zip file ({error})") from error

    def row(self, path: Path) -> PublishedRow:
        return self._row_of(path.read_bytes())

    def _row_of(self, content: bytes) -> PublishedRow:
        try:
            record: Any = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise RowError(f"not JSON ({error})") from error
        record = plain_names(record)
        if "classes" in record:
            record["cls_prob"] = record.pop("classes")
        return row_of_record(record, self.options)


def folder_kind(path: Path) -> type[_Folder]:
    """The layout of a folder of files, by the first known extension in it.

    Raises:
        DataError: there is none.
    """
    kinds = {kind.suffix: kind for kind in (NpzFolder, NpyFolder, VlBertJson)}
    for _, _, names in os.walk(path, followlinks=True):
        for name in names:
            if (kind := kinds.get(Path(name).suffix)) is not None:
                return kind
    raise DataError(f"{path}: neither data.mdb nor {', '.join(kinds)} files in it; say --layout NAME")
