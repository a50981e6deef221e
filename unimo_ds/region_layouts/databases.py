"""Regions in LMDB: UNITER's (msgpack or npz values, boxes relative to the image) and ViLBERT's, VOLTA's and MMF's (pickles)."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import lmdb
import numpy as np

from unimo_ds.errors import DataError
from unimo_ds.region_layouts.array_files import npz_arrays, plain_names, unpickled
from unimo_ds.region_layouts.published import Entry, PublishedRegions
from unimo_ds.region_layouts.records import row_of_record
from unimo_ds.region_layouts.rows import Array, PublishedRow, RowError, with_background

_LISTS = (b"__keys__", b"keys")  # entries that are no images: the list of all keys


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The environment at `path`, to be read in the order of its keys.

    Raises:
        DataError: no database, a damaged one, or one that was cut: LMDB would end the process at the first missing page.
    """
    try:
        with lmdb.open(str(path), readonly=True, lock=False) as env:
            size, used = (path / "data.mdb").stat().st_size, _used_bytes(env)
            if size < used:
                raise DataError(f"{path / 'data.mdb'}: was cut: {size:,} bytes of {used:,}; fetch it again")
            yield env
    except (lmdb.Error, OSError) as error:
        raise DataError(f"{path}: cannot be read as LMDB ({error}); expected a folder with data.mdb") from error


def _used_bytes(env: Any) -> int:
    return (int(env.info()["last_pgno"]) + 1) * int(env.stat()["psize"])


class _Database(PublishedRegions):
    @property
    def total_bytes(self) -> int:
        with _opened(self.path) as env:
            return _used_bytes(env)

    def entries(self) -> Iterator[Entry]:
        position = 0
        with _opened(self.path) as env, env.begin(buffers=True) as transaction:
            for name, value in transaction.cursor():
                position += len(value)
                if bytes(name) not in _LISTS:
                    key = self.key_of(bytes(name).decode("utf-8", "replace"))
                    yield Entry(key, f"{self.path}: {key!r}", position, partial(self.row, key, value))

    def key_of(self, name: str) -> str:
        return name

    def row(self, key: str, value: memoryview) -> PublishedRow:
        raise NotImplementedError


class UniterDatabase(_Database):
    """UNITER's image database: `features`, `norm_bb` (x1 y1 x2 y2 w h, relative), `conf`, `soft_labels` (background first).

    Keys are names of npz files; they are stored without `.npz`. The image's size is not there.
    """

    layout = "uniter_lmdb"

    def entries(self) -> Iterator[Entry]:
        self._counts = self._read_counts()
        return super().entries()

    def _read_counts(self) -> dict[str, int]:
        """How many boxes of each image count: from `nbb_*.json` beside a database `feat_*`, where it is."""
        path = self.path.parent / f"{self.path.name.replace('feat_', 'nbb_', 1).removesuffix('_compressed')}.json"
        if not self.path.name.startswith("feat_") or not path.is_file():
            return {}
        try:
            counts = json.loads(path.read_text(encoding="utf-8"))
            return {str(name): int(count) for name, count in counts.items()}
        except (OSError, ValueError, AttributeError) as error:
            raise DataError(f"{path}: cannot be read as numbers of boxes by image ({error})") from error

    def key_of(self, name: str) -> str:
        return name.removesuffix(".npz")

    def row(self, key: str, value: memoryview) -> PublishedRow:
        content = bytes(value)
        arrays = npz_arrays(content, "the value") if content[:2] == b"PK" else plain_names(_unpacked(content))
        count = self._counts.get(f"{key}.npz")
        return uniter_row(
            {name: array[:count] if np.ndim(array) else array for name, array in arrays.items()}, self.options.class_count
        )


def uniter_row(arrays: dict[str, Any], class_count: int) -> PublishedRow:
    """The row of one image as UNITER's npz files have it.

    Raises:
        RowError: an array is missing or is none.
    """
    for name in ("norm_bb", "features"):
        if not isinstance(arrays.get(name), np.ndarray):
            raise RowError(f"no array {name!r}; found {', '.join(arrays) or 'nothing'}")
    boxes_R6: Array = arrays["norm_bb"]
    if boxes_R6.ndim != 2 or boxes_R6.shape[1] not in (4, 6):
        raise RowError(f"norm_bb has the shape {boxes_R6.shape}; expected 6 columns: x1, y1, x2, y2, w, h")
    distribution_RN = arrays.get("soft_labels")
    return PublishedRow(
        boxes_R6[:, :4],
        arrays["features"],
        None,
        relative=True,
        distribution_RN=None if distribution_RN is None else with_background(distribution_RN, class_count),
    )


def _unpacked(content: bytes) -> Any:
    """A msgpack value with arrays as `msgpack_numpy` writes them, decoded without that package, which unpickles objects."""
    try:
        import msgpack
    except ImportError as error:
        raise DataError("UNITER's uncompressed databases need the package msgpack: pip install msgpack") from error
    try:
        return msgpack.unpackb(content, raw=False, strict_map_key=False, object_hook=_array_of)
    except RowError:
        raise
    except Exception as error:  # msgpack has a family of exceptions, and numpy's join it on damaged arrays
        raise RowError(f"not a readable msgpack value ({type(error).__name__}: {error})") from error


def _array_of(fields: dict[Any, Any]) -> Any:
    """msgpack_numpy's map of an array: nd (whether it is one), type, kind, shape, data."""
    plain = {name.decode() if isinstance(name, bytes) else name: value for name, value in fields.items()}
    if "nd" not in plain or "data" not in plain:
        return fields
    kind, type_name = plain.get("kind", b""), plain["type"]
    if kind not in (b"", "") or np.dtype(type_name).hasobject:
        raise RowError(f"holds an array of {type_name!r}; only numbers are read")
    array = np.frombuffer(plain["data"], np.dtype(type_name))
    return array.reshape(plain["shape"]) if plain["nd"] else array[0]


class VilbertDatabase(_Database):
    """ViLBERT's, VOLTA's and MMF's database: a pickled dictionary an image, unpickled as data only."""

    layout = "vilbert_lmdb"

    def row(self, key: str, value: memoryview) -> PublishedRow:
        return row_of_record(plain_names(unpickled(value, "the value")), self.options)


def database_kind(path: Path) -> type[_Database]:
    """Which of the two databases `path` is, by its first image.

    Raises:
        DataError: it cannot be opened, is empty, or neither.
    """
    with _opened(path) as env, env.begin(buffers=True) as transaction:
        values = (bytes(value[:2]) for name, value in transaction.cursor() if bytes(name) not in _LISTS)
        first = next(values, b"")
    if not first:
        raise DataError(f"{path}: an empty database")
    if first == b"PK" or 0x80 < first[0] <= 0x8F or first[0] == 0xDE:  # npz, or one of msgpack's maps
        return UniterDatabase
    if first[:1] in (b"\x80", b"("):  # pickle's protocols 2 and later, and 0
        return VilbertDatabase
    raise DataError(f"{path}: its values start with {first!r}, neither npz or msgpack (UNITER) nor pickle (ViLBERT)")
