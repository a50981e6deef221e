"""`unimo-ds regions verify`: reads every record of a store and says what is wrong, by shard and key."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import numpy.typing as npt
import xxhash

from unimo_ds.data.store import REMOVE_SHARD, decode_regions, describe_difference
from unimo_ds.errors import DamagedRecordError
from unimo_ds.progress import Progress, format_duration
from unimo_ds.region_tools.shards import Advance, ShardFailure, StoreFolder, open_folder, open_shard, read_shards
from unimo_ds.regions import Regions

_REPORT_EVERY = 256  # records between two words to the parent
_KEPT = 1000  # faults of a shard that are named one by one; all are counted
_OUTSIDE = 1e-3  # of the image's side: more than the rounding of a float32 box
_SLACK = 1.0  # pixels: published boxes that count pixels from 1, or whose end is the next pixel, reach so far outside
FLAT, BESIDE = "box without area", "box up to a pixel outside"
_REMARKS = {FLAT, BESIDE}  # detectors do write such boxes, and training can use them: worth a word, no damage
_HALF_NOT_FINITE = 0x7C00  # a float16 with all bits of its exponent set is infinite or no number


@dataclass(frozen=True)
class Fault:
    """Something wrong, or worth a remark, with its kind in few words; `key` is empty where it is not of one image."""

    shard: str
    key: str
    kind: str
    detail: str

    def __str__(self) -> str:
        where = f"{self.shard}: image {self.key!r}" if self.key else self.shard
        return f"{where}: {self.detail}"


@dataclass(frozen=True)
class Verification:
    """What was found. `counts` and `remarks`: by kind, those included that are not listed in `faults`."""

    records: int
    regions: int
    faults: tuple[Fault, ...]
    counts: dict[str, int]
    remarks: dict[str, int]
    seconds: float
    bytes_read: int

    @property
    def sound(self) -> bool:
        """Nothing is wrong."""
        return not self.counts

    def text(self, most: int = 50) -> str:
        """For the reader: the faults, at most `most` of them, and a summary."""
        lines = [str(fault) for fault in self.faults[:most]]
        total = sum(self.counts.values()) + sum(self.remarks.values())
        if total > len(lines):
            lines.append(f"... and {total - len(lines):,} more")
        rate = self.bytes_read / max(self.seconds, 1e-9) / 1e6
        lines.append(
            f"{self.records:,} records with {self.regions:,} regions read in {format_duration(self.seconds)} ({rate:,.0f} MB/s)"
        )
        if self.remarks:
            lines.append(f"worth a remark, no damage: {_by_kind(self.remarks)}")
        sound = "sound: checksums, keys, geometry, probabilities and counts"
        lines.append(f"damage: {_by_kind(self.counts)}" if self.counts else sound)
        return "\n".join(lines)


def _by_kind(counts: dict[str, int]) -> str:
    return "; ".join(f"{kind}: {count:,}" for kind, count in sorted(counts.items(), key=lambda item: -item[1]))


@dataclass(frozen=True)
class _ShardReading:
    """What a reading process found in its shard; `hashes` are of its keys."""

    records: int
    regions: int
    bytes_read: int
    hashes: npt.NDArray[np.uint64]
    faults: list[Fault]
    counts: Counter[str]


def verify_store(folder: Path, processes: int = 1, show_progress: bool = True) -> Verification:
    """Reads all records of a store, finished or not: checksums, keys, geometry, probabilities, and that counts agree.

    Args:
        processes: shards that are read at the same time.

    Raises:
        StoreError: there is no store.
    """
    store = open_folder(folder)
    faults = _folder_faults(store)
    counts = Counter(fault.kind for fault in faults)
    readings: dict[str, _ShardReading] = {}
    start = time.monotonic()
    with Progress("verifying", store.records, "images", show_progress) as progress:
        for shard, reading in read_shards(_read_shard, store.shards, store.detector, processes, progress):
            if isinstance(reading, ShardFailure):
                faults.append(
                    Fault(
                        shard.name,
                        "",
                        "shard cannot be read",
                        f"{reading.reason}. {REMOVE_SHARD}",
                    )
                )
                counts["shard cannot be read"] += 1
                continue
            readings[shard.name] = reading
            faults += reading.faults
            counts += reading.counts
    remarks = {kind: counts.pop(kind) for kind in sorted(_REMARKS & counts.keys())}
    others = [*_count_faults(store, readings), *_keys_in_two_shards(store, readings)]
    return Verification(
        sum(reading.records for reading in readings.values()),
        sum(reading.regions for reading in readings.values()),
        (*others, *faults),
        dict(counts + Counter(fault.kind for fault in others)),
        remarks,
        time.monotonic() - start,
        sum(reading.bytes_read for reading in readings.values()),
    )


def _folder_faults(store: StoreFolder) -> list[Fault]:
    """What the files beside the shards say that can not be."""
    faults = []
    if store.manifest is None:
        detail = "there is none: the store is not finished. Run its extraction to the end."
        faults.append(Fault("manifest.json", "", "not finished", detail))
    for name, summary in store.summaries.items():
        if summary.get("detector") != store.detector:
            difference = describe_difference(summary.get("detector") or {}, store.detector)
            faults.append(Fault(name, "", "another detector", f"was written by another detector: {difference}"))
    for name in sorted(set(store.promised) - {shard.name for shard in store.shards}):
        detail = f"the manifest promises {store.promised[name]:,} records here, and the folder is missing"
        faults.append(Fault(name, "", "shard is missing", detail))
    for kind, names, count in (
        ("classes", store.class_names, store.detector.get("classes")),
        ("attributes", store.attribute_names, store.detector.get("attributes")),
    ):
        if names and count is not None and len(names) != count:
            detail = f"{len(names)} names of {kind} where the detector has {count}"
            faults.append(Fault("names.json", "", "names do not fit", detail))
    return faults


def _count_faults(store: StoreFolder, readings: dict[str, _ShardReading]) -> list[Fault]:
    """Shards that hold more or fewer records than the manifest says."""
    if store.manifest is None:
        return []
    faults = [
        Fault(
            name, "", "count is wrong", f"{reading.records:,} records where the manifest says {store.promised.get(name, 0):,}"
        )
        for name, reading in sorted(readings.items())
        if reading.records != store.promised.get(name, 0)
    ]
    if sum(store.promised.values()) != store.manifest["records"]:
        detail = (
            f"says {store.manifest['records']:,} records, and {sum(store.promised.values()):,} when its shards are added up"
        )
        faults.append(Fault("manifest.json", "", "count is wrong", detail))
    return faults


def _keys_in_two_shards(store: StoreFolder, readings: dict[str, _ShardReading]) -> list[Fault]:
    """Keys that more than one shard holds: found by their hashes, then looked up."""
    hashes = np.sort(np.concatenate([np.zeros(0, np.uint64), *(reading.hashes for reading in readings.values())]))
    doubled = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    if not doubled:
        return []
    holders: dict[bytes, list[str]] = {}
    shards = [shard for shard in store.shards if shard.name in readings]
    for shard, found in read_shards(_find_keys, shards, doubled, 1, Progress("looking up keys", None, "keys", enabled=False)):
        for key in [] if isinstance(found, ShardFailure) else found:
            holders.setdefault(key, []).append(shard.name)
    return [
        Fault(", ".join(names), _text(key), "key in two shards", "each of these shards holds this key; readers see the first")
        for key, names in sorted(holders.items())
        if len(names) > 1
    ]


def _find_keys(shard: Path, wanted: set[int], advance: Advance) -> list[bytes]:
    """The keys with these hashes."""
    with open_shard(shard) as transaction:
        keys = (bytes(key) for key in transaction.cursor().iternext(values=False))
        return [key for key in keys if xxhash.xxh3_64_intdigest(key) in wanted]


def _read_shard(shard: Path, detector: dict[str, Any], advance: Advance) -> _ShardReading:
    """Reads all records of a shard; damage of a page ends it, as LMDB knows no way around that page."""
    hashes: list[int] = []
    faults: list[Fault] = []
    counts: Counter[str] = Counter()
    regions = size = 0

    def note(fault: Fault) -> None:
        counts[fault.kind] += 1
        if len(faults) < _KEPT:
            faults.append(fault)

    with open_shard(shard) as transaction:
        try:
            entries = transaction.cursor().iternext()
            while chunk := [(bytes(key), value) for key, value in islice(entries, _REPORT_EVERY)]:
                for key, value in chunk:
                    hashes.append(xxhash.xxh3_64_intdigest(key))
                    size += len(value)
                    count, found = _read_record(key, value, detector)
                    regions += count
                    for kind, detail in found:
                        note(Fault(shard.name, _text(key), kind, detail))
                advance(len(chunk))
            expected = transaction.stat()["entries"]
            if expected != len(hashes):
                note(Fault(shard.name, "", "page is damaged", f"{len(hashes):,} records can be reached of {expected:,}"))
        except lmdb.Error as error:
            detail = f"{error}; {len(hashes):,} records were read before it. {REMOVE_SHARD}"
            note(Fault(shard.name, "", "page is damaged", detail))
    return _ShardReading(len(hashes), regions, size, np.array(hashes, np.uint64), faults, counts)


def _text(key: bytes) -> str:
    return key.decode(errors="backslashreplace")


def _read_record(key: bytes, value: memoryview, detector: dict[str, Any]) -> tuple[int, list[tuple[str, str]]]:
    """Number of regions, and (kind, detail) of what is wrong."""
    try:
        key.decode()
    except UnicodeDecodeError as error:
        return 0, [("key is damaged", f"the key is not UTF-8 ({error.reason} at byte {error.start})")]
    try:
        regions = decode_regions(value)
    except DamagedRecordError as error:
        return 0, [("record is damaged", f"{error}. {REMOVE_SHARD}")]
    return len(regions), check_regions(regions, detector)


def check_regions(regions: Regions, detector: dict[str, Any]) -> list[tuple[str, str]]:
    """(kind, detail) of everything in a whole record that can not be.

    Args:
        detector: the store's; its number of classes and attributes and its feature width bound what a record may hold.
    """
    found = []
    if regions.width < 1 or regions.height < 1:
        found.append(("geometry", f"the image is {regions.width}x{regions.height} pixels"))
    found += _box_faults(regions)
    width = regions.features_RF.shape[1]
    if width != detector.get("feature_width", width):
        found.append(("features", f"{width} wide, the detector's are {detector['feature_width']}"))
    not_finite = _rows((regions.features_RF.view(np.uint16) & _HALF_NOT_FINITE) == _HALF_NOT_FINITE)
    if len(not_finite):
        found.append(("features", f"{_regions(not_finite)}: infinite or not a number"))
    found += _label_faults("class", regions.class_ids_RK, regions.class_probabilities_RK, detector.get("classes"))
    kept_first = detector.get("rule") == "retry_every_class"  # before the most probable ones stands the class it was kept as
    rising = _rows(np.diff(regions.class_probabilities_RK[:, kept_first:].astype(np.float32), axis=1) > 0)
    if len(rising):
        found.append(("probabilities", f"{_regions(rising)}: class probabilities are not sorted, best first"))
    attributes = regions.attribute_ids_R[:, None], regions.attribute_probabilities_R[:, None]
    return found + _label_faults("attribute", *attributes, detector.get("attributes"))


def _box_faults(regions: Regions) -> list[tuple[str, str]]:
    boxes_R4 = regions.boxes_R4
    finite = np.isfinite(boxes_R4)
    if not finite.all():
        return [("geometry", f"{_regions(_rows(~finite))}: box is infinite or not a number")]
    found = []
    turned = _rows(boxes_R4[:, 2:] < boxes_R4[:, :2])
    if len(turned):
        found.append(("geometry", f"{_regions(turned)}: box {_numbers(boxes_R4[turned[0]])} ends before it begins"))
    flat = np.setdiff1d(_rows(boxes_R4[:, 2:] == boxes_R4[:, :2]), turned)
    if len(flat):
        found.append((FLAT, f"{_regions(flat)}: box {_numbers(boxes_R4[flat[0]])} has no area"))
    sides = np.array([regions.width, regions.height] * 2, np.float32)
    size = f"the image of {regions.width}x{regions.height}"
    excess_R4 = np.maximum(-boxes_R4, boxes_R4 - sides)
    outside = _rows(excess_R4 > np.maximum(_SLACK, _OUTSIDE * sides))
    if len(outside):
        found.append(("geometry", f"{_regions(outside)}: box {_numbers(boxes_R4[outside[0]])} lies outside {size}"))
    beside = np.setdiff1d(_rows(excess_R4 > _OUTSIDE * sides), outside)
    if len(beside):
        found.append((BESIDE, f"{_regions(beside)}: box {_numbers(boxes_R4[beside[0]])} reaches out of {size}"))
    return found


def _label_faults(
    kind: str, ids_RK: npt.NDArray[np.uint16], probabilities_RK: npt.NDArray[np.float16], count: int | None
) -> list[tuple[str, str]]:
    found = []
    wrong = _rows(~((probabilities_RK >= 0) & (probabilities_RK <= 1)))  # a NaN is neither
    if len(wrong):
        found.append(("probabilities", f"{_regions(wrong)}: {kind} probability outside 0..1"))
    unknown = _rows(ids_RK > count) if count is not None else np.zeros(0, np.int64)
    if len(unknown):
        found.append(("ids", f"{_regions(unknown)}: {kind} {int(ids_RK[unknown[0]].max())} of {count}"))
    return found


def _rows(wrong: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    return np.flatnonzero(wrong.any(axis=1))


def _regions(rows: npt.NDArray[np.int64]) -> str:
    listed = ", ".join(str(row) for row in rows[:3])
    more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
    return f"region{'s' if len(rows) > 1 else ''} {listed}{more}"


def _numbers(values: Sequence[float] | npt.NDArray[np.float32]) -> str:
    return "(" + ", ".join(f"{float(value):.1f}" for value in values) + ")"
