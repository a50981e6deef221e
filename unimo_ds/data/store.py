"""The regions store: one image's regions per record, in sharded LMDB, read without copying.

On disk a store is a folder:

    manifest.json          detector identity, feature width, number of records, and each shard's counts
    shard-00000/           one LMDB environment per writer (process, rank or array task)
    shard-00000.json       what the writer of that shard knows; merged into the manifest by `finish_store`

A value is a fixed little-endian layout whose parts start at multiples of eight bytes (LMDB starts records of more than half a
page at a multiple of 16), so that `numpy.frombuffer` can use them in place:

    header   magic u32, version u16, regions u16, width u32, height u32, feature width u16, kept classes u16,
             xxh32 checksum of the other header fields u32 (0 in records written before there was one),
             xxh3_64 checksum of all that follows u64                                                    (32 bytes)
    boxes f32 [R, 4] | features f16 [R, F] | class ids u16 [R, K] | class probabilities f16 [R, K]
    | attribute ids u16 [R] | attribute probabilities f16 [R]

No pickle anywhere. A process checks a record's checksum the first time it reads it; later reads of the same record by the
same process are free of that cost. Environments are opened per process, after a fork, because LMDB forbids sharing them.
"""

import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import lmdb
import numpy as np
import xxhash

from unimo_ds.errors import DamagedRecordError, StoreError
from unimo_ds.regions import Regions

_MAGIC = 0x534D4E55  # "UNMS"
_VERSION = 1
_HEADER = struct.Struct("<IHHIIHHIQ")
_INITIAL_MAP = 64 << 20  # doubled whenever it is full: a fixed huge map would make sparse files look full on some systems
_COMMIT_EVERY = 256  # records a kill can cost
LONGEST_KEY = 511  # bytes; LMDB's limit


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


def _shard_name(shard: int) -> str:
    return f"shard-{shard:05}"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: cannot be read ({error}); a regions store needs it") from error
    if not isinstance(loaded, dict):
        raise StoreError(f"{path}: holds {type(loaded).__name__}, expected a JSON object")
    return loaded


def _write_json(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    os.replace(temporary, path)


class RegionStoreWriter:
    """Writes one shard of a store; several processes write several shards of one folder at the same time.

    Args:
        folder: the store.
        detector: the identity of the detector (architecture, weights, preprocessing); every shard must agree.
        shard: the number of this writer's shard. Writing to an existing shard continues it.

    Raises:
        StoreError: the folder already holds regions of another detector.
    """

    def __init__(self, folder: Path, detector: dict[str, Any], shard: int = 0) -> None:
        self.folder, self.detector, self.shard = Path(folder), detector, shard
        self._check_same_detector()
        path = self.folder / _shard_name(shard)
        path.mkdir(parents=True, exist_ok=True)
        size = max(_INITIAL_MAP, sum(f.stat().st_size for f in path.iterdir()) * 2)
        self._env = lmdb.open(str(path), map_size=size, readahead=False, meminit=False)
        with self._env.begin() as transaction:
            self._known = {bytes(key) for key in transaction.cursor().iternext(values=False)}
        self._pending: dict[bytes, bytes] = {}

    def _check_same_detector(self) -> None:
        for path in sorted(self.folder.glob("*.json")):
            theirs = _read_json(path).get("detector", self.detector)
            if theirs != self.detector:
                raise StoreError(
                    f"{path}: was written by another detector; {describe_difference(theirs, self.detector)}. "
                    "Choose another --out folder, or the same detector."
                )

    def __enter__(self) -> "RegionStoreWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __contains__(self, key: str) -> bool:
        return key.encode() in self._known

    def __len__(self) -> int:
        return len(self._known)

    def write(self, key: str, regions: Regions) -> None:
        """Adds the regions of image `key`; they are on disk after at most 256 records, or `close`.

        Raises:
            StoreError: the key is empty or longer than 511 bytes.
        """
        name = key.encode()
        if not 1 <= len(name) <= LONGEST_KEY:
            raise StoreError(f"{self.folder}: image {key!r}: a key has 1 to {LONGEST_KEY} bytes, this one {len(name)}")
        self._pending[name] = encode_regions(regions)
        self._known.add(name)
        if len(self._pending) >= _COMMIT_EVERY:
            self.flush()

    def flush(self) -> None:
        """Commits what is pending."""
        while self._pending:
            try:
                with self._env.begin(write=True) as transaction:
                    for name, value in self._pending.items():
                        transaction.put(name, value)
                self._pending.clear()
            except lmdb.MapFullError:
                self._env.set_mapsize(self._env.info()["map_size"] * 2)

    def close(self) -> None:
        """Commits and writes the shard's own summary."""
        self.flush()
        summary = {"detector": self.detector, "shard": self.shard, "records": len(self._known)}
        _write_json(self.folder / f"{_shard_name(self.shard)}.json", summary)
        self._env.close()


def describe_difference(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """In words, the first keys in which two detector identities differ."""
    keys = [key for key in sorted({*theirs, *ours}) if theirs.get(key) != ours.get(key)]
    return "; ".join(f"{key}: {theirs.get(key)!r} there, {ours.get(key)!r} here" for key in keys[:4])


def finish_store(folder: Path) -> dict[str, Any]:
    """Merges the shards' summaries into `manifest.json`, the mark of a complete store, and returns it.

    Raises:
        StoreError: there is no shard, or shards were written by different detectors.
    """
    folder = Path(folder)
    summaries = [_read_json(path) for path in sorted(folder.glob("shard-*.json"))]
    if not summaries:
        raise StoreError(f"{folder}: no shard-*.json: nothing was extracted into it yet")
    detector = summaries[0]["detector"]
    for summary in summaries[1:]:
        if summary["detector"] != detector:
            difference = describe_difference(summary["detector"], detector)
            raise StoreError(f"{folder}: shard {summary['shard']} was written by another detector; {difference}")
    manifest = {
        "format": "unimo_ds regions",
        "version": _VERSION,
        "detector": detector,
        "records": sum(summary["records"] for summary in summaries),
        "shards": [{"shard": summary["shard"], "records": summary["records"]} for summary in summaries],
    }
    _write_json(folder / "manifest.json", manifest)
    return manifest


_environments: dict[tuple[int, Path, int], Any] = {}


def _environment(shard: Path) -> Any:
    """The environment of a shard in this process: LMDB allows one a process, however many stores look at it.

    A forked process first closes its copies of the parent's environments: they must not be used, and LMDB counts them as open.
    Read-only environments without a lock file share nothing with the parent, so closing a copy leaves the parent's alone.
    A store that was deleted and made anew is another file, which its inode tells.
    """
    for inherited in [key for key in _environments if key[0] != os.getpid()]:
        _environments.pop(inherited).close()
    try:
        key = (os.getpid(), shard.resolve(), (shard / "data.mdb").stat().st_ino)
        if key not in _environments:
            _environments[key] = lmdb.open(str(shard), readonly=True, lock=False, readahead=False, max_spare_txns=4)
    except (OSError, lmdb.Error) as error:
        raise StoreError(f"{shard}: cannot be opened ({error}). Extract this shard again.") from error
    return _environments[key]


class RegionStore:
    """Reads a finished store.

    Args:
        folder: the store.

    Raises:
        StoreError: no manifest (extraction has not finished), or a newer version.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / "manifest.json").exists():
            raise StoreError(
                f"{self.folder}: not a finished regions store (no manifest.json). "
                f"Run `python tools/extract_features.py IMAGES --out {self.folder}` to the end."
            )
        self.manifest = _read_json(self.folder / "manifest.json")
        if self.manifest.get("version") != _VERSION:
            raise StoreError(
                f"{self.folder / 'manifest.json'}: version {self.manifest.get('version')!r}, this program reads {_VERSION}"
            )
        self.detector: dict[str, Any] = self.manifest["detector"]
        self._pid = -1
        self._transactions: list[Any] = []
        self._verified: set[str] = set()

    def __len__(self) -> int:
        return int(self.manifest["records"])

    @property
    def feature_width(self) -> int:
        """F, the width of a pooled region vector."""
        return int(self.detector["feature_width"])

    def expect_detector(self, detector: dict[str, Any], whose: str) -> None:
        """Refuses a store of another detector than `whose`: features of two detectors must never be mixed.

        Raises:
            StoreError: names the keys that differ.
        """
        if detector != self.detector:
            raise StoreError(
                f"{self.folder}: made by another detector than {whose}; {describe_difference(self.detector, detector)}. "
                "Extract the features again with the same detector, or start from a checkpoint of this one."
            )

    def _open(self) -> list[Any]:
        if self._pid != os.getpid():
            shards = [self.folder / _shard_name(shard["shard"]) for shard in self.manifest["shards"]]
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
        for transaction in self._open():
            try:
                value = transaction.get(name)
            except lmdb.Error as error:  # a damaged page of the shard, not of the record alone
                raise DamagedRecordError(f"{self.folder}: image {key!r}: {error}. Extract this store again.") from error
            if value is not None:
                return memoryview(value)
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
                raise DamagedRecordError(f"{self.folder}: a key is damaged ({error}). Extract this store again.") from error

    def get(self, key: str) -> Regions:
        """The regions of image `key`, as read-only views into the memory map.

        Raises:
            KeyError: no such image.
            DamagedRecordError: the record's checksum is wrong; names store, key and what to do.
        """
        value = self._value(key)
        try:
            regions = decode_regions(value, check=key not in self._verified)
        except DamagedRecordError as error:
            raise DamagedRecordError(f"{self.folder}: image {key!r}: {error}. Extract this image again.") from error
        self._verified.add(key)
        return regions

    def count(self, key: str) -> int:
        """Number of regions of image `key`, from the header alone."""
        return int(_HEADER.unpack_from(self._value(key))[2])
