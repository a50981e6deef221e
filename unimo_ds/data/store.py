"""The regions store: one image's regions per record, in sharded LMDB, read without copying.

On disk a store is a folder:

    manifest.json          detector identity, number of records, and each shard's counts; it is there when the store is finished
    names.json             names of classes and attributes, where they are known
    shard-00000/           one LMDB environment per writer (process, rank or array task), and the lock of its writer
    shard-00000.json       what the writer of that shard knows; merged into the manifest by `finish_store`

Where a store is made by several processes, a record lies in the shard `shard_of(key, shards)`. A reader looks there first and
then in the others, so any other division is read as well.

A value is a fixed little-endian layout whose parts start at multiples of eight bytes (LMDB starts records of more than half a
page at a multiple of 16), so that `numpy.frombuffer` can use them in place:

    header   magic u32, version u16, regions u16, width u32, height u32, feature width u16, kept classes u16,
             xxh32 checksum of the other header fields u32 (0 in records written before there was one),
             xxh3_64 checksum of all that follows u64                                                    (32 bytes)
    boxes f32 [R, 4] | features f16 [R, F] | class ids u16 [R, K] | class probabilities f16 [R, K]
    | attribute ids u16 [R] | attribute probabilities f16 [R]

No pickle anywhere. A process checks a record's checksum the first time it reads it; later reads of the same record by the
same process are free of that cost, as long as it remembers: it forgets all after `_REMEMBERED` images, so that its memory stays
flat. Environments are opened per process, after a fork, because LMDB forbids sharing them.
"""

import heapq
import json
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import lmdb
import numpy as np
import xxhash

from unimo_ds.data.shard_lock import ShardLock
from unimo_ds.errors import DamagedRecordError, StoreError
from unimo_ds.files import replace_text
from unimo_ds.regions import Regions

_MAGIC = 0x534D4E55  # "UNMS"
_VERSION = 1
_HEADER = struct.Struct("<IHHIIHHIQ")
_INITIAL_MAP = 64 << 20  # doubled whenever it is full: a fixed huge map would make sparse files look full on some systems
COMMIT_EVERY = 256
"""Records of a writer that are committed at the latest: what a kill can cost who never calls `flush`."""
_REMEMBERED = 1 << 17  # keys whose records a reader knows to be whole: about 20 MB
LONGEST_KEY = 511  # bytes; LMDB's limit
_MANIFEST, _NAMES = "manifest.json", "names.json"
REMOVE_SHARD = "Remove the shard's folder and run the extraction again."
REMOVE_FILE = "Remove this file and run the extraction again."
"""What to do of damage: what is there is not extracted again."""


def _padded(count: int) -> int:
    return -(-count // 8) * 8


def _header_checksum(fields: tuple[int, ...]) -> int:
    """Of all header fields but itself; never 0."""
    return xxhash.xxh32_intdigest(_HEADER.pack(*fields[:7], 0, fields[8])) or 1


def encode_regions(regions: Regions) -> bytes:
    """The record of one image, header and checksum included."""
    parts = (
        np.ascontiguousarray(regions.boxes_R4, "<f4"),
        np.ascontiguousarray(regions.features_RF, "<f2"),
        np.ascontiguousarray(regions.class_ids_RK, "<u2"),
        np.ascontiguousarray(regions.class_probabilities_RK, "<f2"),
        np.ascontiguousarray(regions.attribute_ids_R, "<u2"),
        np.ascontiguousarray(regions.attribute_probabilities_R, "<f2"),
    )
    body = b"".join(part.tobytes().ljust(_padded(part.nbytes), b"\0") for part in parts)
    count, width = regions.features_RF.shape
    kept = regions.class_ids_RK.shape[1]
    fields = (_MAGIC, _VERSION, count, regions.width, regions.height, width, kept, 0, xxhash.xxh3_64_intdigest(body))
    return _HEADER.pack(*fields[:7], _header_checksum(fields), fields[8]) + body


def decode_regions(value: bytes | memoryview, check: bool = True) -> Regions:
    """A view of the record `value`: the arrays share its memory and are read-only.

    Raises:
        DamagedRecordError: wrong magic, version or length, or (with `check`) a wrong checksum.
    """
    if len(value) < _HEADER.size:
        raise DamagedRecordError(f"a record of {len(value)} bytes is shorter than its header of {_HEADER.size}")
    fields = _HEADER.unpack_from(value)
    magic, version, count, width, height, features, kept, header_checksum, checksum = fields
    if magic != _MAGIC or version != _VERSION:
        raise DamagedRecordError(f"magic {magic:#x} version {version}; this program reads {_MAGIC:#x} version {_VERSION}")
    if check and header_checksum not in (0, _header_checksum(fields)):
        raise DamagedRecordError("the header's checksum does not match: at least one byte has changed since it was written")
    sizes = (count * 16, count * features * 2, count * kept * 2, count * kept * 2, count * 2, count * 2)
    starts = [_HEADER.size]
    for size in sizes:
        starts.append(starts[-1] + _padded(size))
    if starts[-1] != len(value):
        raise DamagedRecordError(f"{len(value)} bytes where the header promises {starts[-1]}")
    if check and xxhash.xxh3_64_intdigest(memoryview(value)[_HEADER.size :]) != checksum:
        raise DamagedRecordError("the checksum does not match: at least one byte has changed since it was written")
    return Regions(
        width,
        height,
        np.frombuffer(value, "<f4", count * 4, starts[0]).reshape(count, 4),
        np.frombuffer(value, "<f2", count * features, starts[1]).reshape(count, features),
        np.frombuffer(value, "<u2", count * kept, starts[2]).reshape(count, kept),
        np.frombuffer(value, "<f2", count * kept, starts[3]).reshape(count, kept),
        np.frombuffer(value, "<u2", count, starts[4]),
        np.frombuffer(value, "<f2", count, starts[5]),
    )


def shard_of(key: str, shards: int) -> int:
    """The shard, of `shards`, that image `key` belongs into: the same whatever else is stored, and for every program."""
    return _shard_of_name(key.encode(), shards)


def _shard_of_name(name: bytes, shards: int) -> int:
    return int(xxhash.xxh3_64_intdigest(name) % shards)


def shard_name(shard: int) -> str:
    """Name of a shard's folder."""
    return f"shard-{shard:05}"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: cannot be read ({error}); a regions store needs it. {REMOVE_FILE}") from error
    if not isinstance(loaded, dict):
        raise StoreError(f"{path}: holds {type(loaded).__name__}, expected a JSON object")
    return loaded


def _detector_in(content: dict[str, Any], path: Path) -> dict[str, Any]:
    detector = content.get("detector")
    if not isinstance(detector, dict):
        raise StoreError(f"{path}: has no `detector`, the identity of what made the regions. {REMOVE_FILE}")
    return detector


class RegionStoreWriter:
    """Writes one shard of a store; several processes write several shards of one folder at the same time.

    As a context manager it completes the shard, or, left by an exception, drops what is not committed yet.

    Args:
        folder: the store.
        detector: the identity of the detector (architecture, weights, preprocessing); every shard must agree.
        shard: the number of this writer's shard. Writing to an existing shard continues it.
        class_names, attribute_names: without background and "none"; the first writer's are kept, in `names.json`.
        shards: number of shards that keys are divided over by `shard_of`; 0: they are divided otherwise.

    Raises:
        StoreError: the folder already holds regions of another detector; another process writes this shard; it is damaged.
    """

    def __init__(
        self,
        folder: Path,
        detector: dict[str, Any],
        shard: int = 0,
        class_names: Sequence[str] = (),
        attribute_names: Sequence[str] = (),
        shards: int = 0,
    ) -> None:
        self.folder, self.detector, self.shard, self.shards = Path(folder), detector, shard, shards
        self._check_same_detector()
        path = self.folder / shard_name(shard)
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = ShardLock(path, shards)
        except OSError as error:
            raise StoreError(f"{path}: cannot be written: {error.strerror}. Choose another --out folder.") from error
        try:
            size = max(_INITIAL_MAP, sum(f.stat().st_size for f in path.iterdir()) * 2)
            self._env = lmdb.open(str(path), map_size=size, readahead=False, meminit=False)
        except lmdb.Error as error:
            self._lock.release()
            raise StoreError(
                f"{path}: cannot be written ({error}). A process that has read it cannot write it too; a shard that is damaged "
                "is removed with its folder and extracted again."
            ) from error
        self._pending: dict[bytes, bytes] = {}
        self._records = int(self._env.stat()["entries"])
        self._hashed_over = self._previous_divisions()
        self._write_summary(complete=False)  # the detector is on record before the first region is
        if class_names or attribute_names:
            self._write_names(class_names, attribute_names)

    def _check_same_detector(self) -> None:
        for path in sorted([*self.folder.glob("shard-*.json"), *self.folder.glob("manifest.json")]):
            theirs = _detector_in(_read_json(path), path)
            if theirs != self.detector:
                raise StoreError(
                    f"{path}: was written by another detector; {describe_difference(theirs, self.detector)}. "
                    "Choose another --out folder, or the same detector."
                )

    def _previous_divisions(self) -> list[int]:
        path = self._summary_path
        unknown = [0] if self._records else []
        return list(_read_json(path).get("hashed_over", unknown)) if path.exists() else unknown

    @property
    def _summary_path(self) -> Path:
        return self.folder / f"{shard_name(self.shard)}.json"

    def _write_summary(self, complete: bool) -> None:
        summary = {"detector": self.detector, "shard": self.shard, "records": self._records}
        replace_text(
            self._summary_path, json.dumps({**summary, "hashed_over": self._hashed_over, "complete": complete}, indent=1)
        )

    def _write_names(self, class_names: Sequence[str], attribute_names: Sequence[str]) -> None:
        path = self.folder / _NAMES
        if not path.exists():
            replace_text(path, json.dumps({"classes": list(class_names), "attributes": list(attribute_names)}, indent=1))

    def __enter__(self) -> "RegionStoreWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self._leave()

    def __contains__(self, key: str) -> bool:
        return self._value(key.encode()) is not None

    def __len__(self) -> int:
        return self._records

    def _value(self, name: bytes) -> bytes | memoryview | None:
        """The record `name`: pending, or a copy of its header's bytes."""
        if name in self._pending or not 1 <= len(name) <= LONGEST_KEY:
            return self._pending.get(name)
        with self._env.begin(buffers=True) as transaction:
            value = transaction.get(name)
            return None if value is None else bytes(value[: _HEADER.size])

    def size(self, key: str) -> tuple[int, int] | None:
        """Height and width of image `key` in this shard; None: it is not here."""
        value = self._value(key.encode())
        if value is None:
            return None
        fields = _HEADER.unpack_from(value)
        return fields[4], fields[3]

    def write(self, key: str, regions: Regions) -> None:
        """Adds the regions of image `key`; they are on disk after `flush` or `close`, or when 256 records wait.

        Raises:
            StoreError: the key is empty or longer than 511 bytes; the disk is full.
            ValueError: the key belongs into another shard.
        """
        name = key.encode()
        if not 1 <= len(name) <= LONGEST_KEY:
            raise StoreError(f"{self.folder}: image {key!r}: a key has 1 to {LONGEST_KEY} bytes, this one {len(name)}")
        if self.shards and shard_of(key, self.shards) != self.shard:
            raise ValueError(f"image {key!r} belongs into shard {shard_of(key, self.shards)}, not into {self.shard}")
        self._records += self._value(name) is None
        self._pending[name] = encode_regions(regions)
        if len(self._pending) >= COMMIT_EVERY:
            self.flush()

    def flush(self) -> None:
        """Commits what is pending, all or nothing.

        Raises:
            StoreError: the disk is full or fails.
        """
        if self._pending and self.shards not in self._hashed_over:
            self._hashed_over.append(self.shards)
            self._write_summary(complete=False)
        while self._pending:
            try:
                with self._env.begin(write=True) as transaction:
                    for name, value in self._pending.items():
                        transaction.put(name, value)
                self._pending.clear()
            except lmdb.MapFullError:
                self._env.set_mapsize(self._env.info()["map_size"] * 2)
            except lmdb.Error as error:
                raise StoreError(
                    f"{self.folder / shard_name(self.shard)}: cannot be written ({error}). What was committed before is whole."
                ) from error

    def close(self) -> None:
        """Commits, and writes the shard's own summary, which says that it is complete."""
        self.flush()
        self._write_summary(complete=True)
        self._leave()

    def _leave(self) -> None:
        self._env.close()
        self._lock.release()


def describe_difference(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """In words, the first keys in which two detector identities differ."""
    keys = [key for key in sorted({*theirs, *ours}) if theirs.get(key) != ours.get(key)]
    return "; ".join(f"{key}: {theirs.get(key)!r} there, {ours.get(key)!r} here" for key in keys[:4])


def expect_same_detector(found: dict[str, Any], wanted: dict[str, Any], what: str, whose: str) -> None:
    """Refuses `what`, regions found by the detector of identity `found`, where those of `whose` are of `wanted`.

    Raises:
        StoreError: names the keys that differ.
    """
    if found != wanted:
        raise StoreError(
            f"{what}: made by another detector than {whose}; {describe_difference(found, wanted)}. "
            "Extract the features again with the same detector, or start from a checkpoint of this one."
        )


def finish_store(folder: Path) -> dict[str, Any]:
    """Merges the shards' summaries into `manifest.json`, the mark of a finished store, and returns it.

    A manifest that says the same already is left alone: corpora that were prepared from it know it by its time.

    Raises:
        StoreError: there is no shard, one is not complete, shards were written by different detectors, or an image is in two.
    """
    folder = Path(folder)
    summaries = [_summary(path) for path in sorted(path for path in folder.glob("shard-*") if path.is_dir())]
    if not summaries:
        raise StoreError(f"{folder}: no shard-*: nothing was extracted into it yet")
    detector = summaries[0]["detector"]
    for summary in summaries[1:]:
        if summary["detector"] != detector:
            difference = describe_difference(summary["detector"], detector)
            raise StoreError(f"{folder}: shard {summary['shard']} was written by another detector; {difference}")
    divisions = list(dict.fromkeys(division for summary in summaries for division in summary.get("hashed_over", [0])))
    if len(summaries) > 1 and (len(divisions) > 1 or 0 in divisions):  # by one division, no image can be in two
        _expect_each_image_once(folder, [summary["shard"] for summary in summaries])
    manifest = {
        "format": "unimo_ds regions",
        "version": _VERSION,
        "detector": detector,
        "records": sum(summary["records"] for summary in summaries),
        "hashed_over": [division for division in divisions if division],
        "shards": [{"shard": summary["shard"], "records": summary["records"]} for summary in summaries],
    }
    path = folder / _MANIFEST
    if not path.exists() or _read_json(path) != manifest:
        replace_text(path, json.dumps(manifest, indent=1))
    return manifest


def _summary(shard: Path) -> dict[str, Any]:
    path = shard.with_name(f"{shard.name}.json")
    summary = _read_json(path)
    _detector_in(summary, path)
    if not summary.get("complete", True):
        raise StoreError(f"{shard}: is not complete: its writer still runs, or was stopped. Start it again to finish it.")
    return summary


def _expect_each_image_once(folder: Path, shards: Sequence[int]) -> None:
    before: tuple[bytes, int] = (b"", -1)
    for name, shard in heapq.merge(*[_names_in(folder, shard) for shard in shards]):
        if name == before[0]:
            raise StoreError(
                f"{folder}: image {name.decode(errors='replace')!r} is in two shards, {before[1]} and {shard}: two runs wrote "
                f"at the same time. Join them into another store: unimo-ds regions merge OUT {folder} --prefer first"
            )
        before = name, shard


def _names_in(folder: Path, shard: int) -> Iterator[tuple[bytes, int]]:
    """The keys of one shard, sorted, each with the shard's number; another process may write it meanwhile."""
    path = folder / shard_name(shard)
    try:
        with _reading(path) as environment, environment.begin(buffers=True) as transaction:
            for name in transaction.cursor().iternext(values=False):
                yield bytes(name), shard
    except lmdb.Error as error:
        raise StoreError(f"{path}: cannot be read ({error}). {REMOVE_SHARD}") from error


@contextmanager
def _reading(shard: Path) -> Iterator[Any]:
    """The environment of a shard: that of this process's readers, or one for now, so that the shard may be written after."""
    _close_inherited()
    shared = _environments.get(_environment_key(shard))
    if shared is not None:
        yield shared
        return
    with lmdb.open(str(shard), readonly=True, lock=os.access(shard, os.W_OK), readahead=False) as environment:
        yield environment


def stored_elsewhere(folder: Path, shard: int, shards: int) -> set[str]:
    """The images that belong into `shard` of `shards` and lie in other shards of the store, finished or not.

    There are some only where the store was made by another number of shards; then the keys of those are read.

    Raises:
        StoreError: a shard cannot be read.
    """
    numbers = [int(path.name.removeprefix("shard-")) for path in sorted(folder.glob("shard-*")) if path.is_dir()]
    others = [number for number in numbers if number != shard and not _divided_by(folder, number, shards)]
    keys = (name.decode() for other in others for name, _ in _names_in(folder, other))
    return {key for key in keys if shard_of(key, shards) == shard}


def _divided_by(folder: Path, number: int, shards: int) -> bool:
    """Whether shard `number` holds only what belongs into it of `shards`; without a summary it holds nothing yet."""
    path = folder / f"{shard_name(number)}.json"
    return not path.exists() or _read_json(path).get("hashed_over", [0]) in ([], [shards])


def complete_shards(folder: Path) -> None:
    """Completes shards whose writers were stopped, where nobody continues them: what was committed counts.

    Raises:
        StoreError: somebody is writing one of them.
    """
    for path in sorted(folder.glob("shard-*.json")):
        summary = _read_json(path)
        if not summary.get("complete", True):
            RegionStoreWriter(folder, _detector_in(summary, path), int(summary["shard"])).close()


_environments: dict[tuple[int, Path, int], Any] = {}


def _close_inherited() -> None:
    for inherited in [key for key in _environments if key[0] != os.getpid()]:
        _environments.pop(inherited).close()


def _environment_key(shard: Path) -> tuple[int, Path, int]:
    return os.getpid(), shard.resolve(), (shard / "data.mdb").stat().st_ino


def _environment(shard: Path) -> Any:
    """The environment of a shard in this process: LMDB allows one a process, however many stores look at it.

    A forked process first closes its copies of the parent's environments: they must not be used, and LMDB counts them as open.
    Read-only environments without a lock file share nothing with the parent, so closing a copy leaves the parent's alone.
    A store that was deleted and made anew is another file, which its inode tells.
    """
    _close_inherited()
    try:
        key = _environment_key(shard)
        if key not in _environments:
            # With readahead: a record is some fifty pages in a row, and without it each is a read of its own from a cold disk.
            _environments[key] = lmdb.open(str(shard), readonly=True, lock=False, readahead=True, max_spare_txns=4)
    except (OSError, lmdb.Error) as error:
        raise StoreError(f"{shard}: cannot be opened ({error}). {REMOVE_SHARD}") from error
    return _environments[key]


class RegionStore:
    """Reads a finished store.

    Args:
        folder: the store.

    Raises:
        StoreError: no manifest (extraction has not finished), a newer version, or a damaged one.

    Attributes:
        manifest: as `finish_store` wrote it.
        detector: the identity of the detector.
        class_names, attribute_names: without background and "none", which have index 0 in records; empty where unknown.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        path = self.folder / _MANIFEST
        if not path.exists():
            raise StoreError(
                f"{self.folder}: not a finished regions store (no manifest.json). "
                f"Run `python tools/extract_features.py IMAGES --out {self.folder}` to the end."
            )
        self.manifest = _read_json(path)
        if self.manifest.get("version") != _VERSION:
            raise StoreError(f"{path}: version {self.manifest.get('version')!r}, this program reads {_VERSION}")
        self.detector = _detector_in(self.manifest, path)
        if not all(key in self.manifest for key in ("records", "shards")):
            raise StoreError(f"{path}: has no `records` or no `shards`: it is damaged. {REMOVE_FILE}")
        self.class_names, self.attribute_names = self._names()
        self._places = {shard["shard"]: place for place, shard in enumerate(self.manifest["shards"])}
        self._hashed_over = [division for division in self.manifest.get("hashed_over", ()) if len(self._places) > 1]
        self._pid = -1
        self._transactions: list[Any] = []
        self._verified: set[str] = set()

    def _names(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        path = self.folder / _NAMES
        names = _read_json(path) if path.exists() else {}
        return tuple(names.get("classes", ())), tuple(names.get("attributes", ()))

    def __len__(self) -> int:
        return int(self.manifest["records"])

    @property
    def feature_width(self) -> int:
        """F, the width of a pooled region vector.

        Raises:
            StoreError: the detector's identity does not say it.
        """
        width = self.detector.get("feature_width")
        if not isinstance(width, int):
            raise StoreError(f"{self.folder / _MANIFEST}: `feature_width` of the detector is {width!r}, expected a number")
        return width

    def expect_detector(self, detector: dict[str, Any], whose: str) -> None:
        """Refuses a store of another detector than `whose`: features of two detectors must never be mixed.

        Raises:
            StoreError: names the keys that differ.
        """
        expect_same_detector(self.detector, detector, f"{self.folder}", whose)

    def _open(self) -> list[Any]:
        if self._pid != os.getpid():
            shards = [self.folder / shard_name(shard["shard"]) for shard in self.manifest["shards"]]
            self._transactions = [_environment(shard).begin(buffers=True) for shard in shards]
            self._verified = set()
            self._pid = os.getpid()
        return self._transactions

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pid": -1, "_transactions": [], "_verified": set()}

    def _value(self, key: str) -> memoryview:
        name = key.encode()
        if not 1 <= len(name) <= LONGEST_KEY:
            raise KeyError(key)
        transactions = self._open()
        try:
            for division in self._hashed_over:
                place = self._places.get(_shard_of_name(name, division))
                if place is not None and (value := transactions[place].get(name)) is not None:
                    return memoryview(value)
            for transaction in transactions:
                if (value := transaction.get(name)) is not None:
                    return memoryview(value)
        except lmdb.Error as error:  # a damaged page of the shard, not of the record alone
            raise DamagedRecordError(f"{self.folder}: image {key!r}: {error}. {REMOVE_SHARD}") from error
        raise KeyError(key)

    def __contains__(self, key: str) -> bool:
        try:
            self._value(key)
        except KeyError:
            return False
        return True

    def keys(self) -> Iterator[str]:
        """All image keys, shard by shard, sorted within a shard.

        Raises:
            DamagedRecordError: a page of the database, or a key, is damaged; names the store and what to do.
        """
        for transaction in self._open():
            try:
                for key in transaction.cursor().iternext(values=False):
                    yield bytes(key).decode()
            except (lmdb.Error, UnicodeDecodeError) as error:
                raise DamagedRecordError(f"{self.folder}: a key is damaged ({error}). {REMOVE_SHARD}") from error

    def get(self, key: str, check: bool = True) -> Regions:
        """The regions of image `key`, as read-only views into the memory map.

        Args:
            key: of the image.
            check: its checksum, for which the whole record is read; without it the disk is asked for no more than is used.

        Raises:
            KeyError: no such image.
            DamagedRecordError: the record's checksum or length is wrong; names store, key and what to do.
        """
        value = self._value(key)
        try:
            regions = decode_regions(value, check=check and key not in self._verified)
        except DamagedRecordError as error:
            raise DamagedRecordError(f"{self.folder}: image {key!r}: {error}. {REMOVE_SHARD}") from error
        if not check:
            return regions
        if len(self._verified) >= _REMEMBERED:
            self._verified.clear()
        self._verified.add(key)
        return regions

    def count(self, key: str) -> int:
        """Number of regions of image `key`, from the header alone."""
        return int(_HEADER.unpack_from(self._value(key))[2])
