"""`unimo-ds regions merge`: shards of one store, or several stores of one detector, into one store of so many shards."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import lmdb
import numpy as np
import numpy.typing as npt
import xxhash

from unimo_ds.data.store import (
    REMOVE_SHARD,
    RegionStore,
    RegionStoreWriter,
    decode_regions,
    describe_difference,
    encode_regions,
    finish_store,
    shard_of,
)
from unimo_ds.errors import ConfigError, DamagedRecordError, StoreError
from unimo_ds.files import replace_text
from unimo_ds.progress import Progress
from unimo_ds.region_tools.shards import Advance, ShardFailure, StoreFolder, open_folder, open_shard, read_shards
from unimo_ds.regions import Regions

_WORK = "merge.work"  # in the merged store: a digest of what is merged, by which a rerun knows its own
_COMMIT_BYTES = 128 << 20  # of records that wait in all writers together
_NAMED = 5  # keys that are named of those that clash


@dataclass(frozen=True)
class Merged:
    """What was done. `written`: by this call; `doubled`: records left out because an earlier one has their key."""

    records: int
    written: int
    doubled: int
    shards: int

    def text(self, out: Path) -> str:
        """For the reader."""
        rest = self.records - self.written
        before = f", {rest:,} of them by an earlier call" if self.written and rest else ""
        done = f"{self.records:,} records in {self.shards} shards{before}" if self.written else "merged already"
        doubled = f"; {self.doubled:,} records left out whose key came before" if self.doubled else ""
        return f"{out}: {done}{doubled}"


@dataclass(frozen=True)
class _Source:
    """One shard of a store that is merged, with the hashes of its keys in their order."""

    store: StoreFolder
    shard: Path
    hashes: npt.NDArray[np.uint64]


def merge_stores(
    out: Path,
    folders: Sequence[Path],
    shards: int = 1,
    prefer_first: bool = False,
    show_progress: bool = True,
) -> Merged:
    """Merges all shards of all `folders` into the store `out`; a call that was killed is continued by the same call.

    Args:
        out: the store to write; new, or begun by the same merge.
        folders: finished stores, or those whose shards are complete.
        shards: of the new store.
        prefer_first: of records with one key and different content the first is taken, in the order of `folders` and of
            their shards.

    Raises:
        ConfigError: `out` is one of the sources.
        StoreError: a source cannot be used, is of another detector, or has another record under the same key; `out` holds
            something else.
        DamagedRecordError: a record of a source; names it.
    """
    stores = [_open_source(Path(folder), Path(out)) for folder in dict.fromkeys(Path(folder).resolve() for folder in folders)]
    _expect_one_detector(stores)
    sources = _read_keys(stores, show_progress)
    doubled = _doubled(sources)
    digest = _digest(sources, shards, prefer_first)
    _expect_same_work(Path(out), digest)
    first, left_out = _first_of(sources, doubled, prefer_first)
    records = sum(len(source.hashes) for source in sources) - left_out
    if (Path(out) / "manifest.json").exists():
        _expect_records(len(RegionStore(out)), records, Path(out))
        return Merged(records, 0, left_out, shards)
    _mark(Path(out), digest)
    with Progress("merging", records, "images", show_progress) as progress:
        written = _copy(Path(out), sources, first, shards, progress)
    manifest = finish_store(Path(out))
    _expect_records(manifest["records"], records, Path(out))
    return Merged(records, written, left_out, shards)


def _open_source(folder: Path, out: Path) -> StoreFolder:
    if folder == out.resolve():
        raise ConfigError(f"{out}: is to be merged into itself; choose another folder to write")
    store = open_folder(folder)
    for shard in store.shards:
        summary = store.summaries.get(shard.name)
        if summary is None or not summary.get("complete", True):
            raise StoreError(f"{shard}: is not complete: its writer still runs, or was stopped. Finish that store first.")
    gone = sorted(set(store.promised) - {shard.name for shard in store.shards})
    if gone or not store.shards:
        raise StoreError(f"{folder}: {', '.join(gone) or 'every shard'} is missing. `unimo-ds regions verify` says more.")
    return store


def _expect_one_detector(stores: Sequence[StoreFolder]) -> None:
    first = stores[0]
    for store in stores:
        for name, summary in store.summaries.items():
            if summary["detector"] != first.detector:
                difference = describe_difference(summary["detector"], first.detector)
                raise StoreError(f"{store.folder / name}: was made by another detector than {first.folder}; {difference}")
        for kind in ("class_names", "attribute_names"):
            ours, theirs = getattr(first, kind), getattr(store, kind)
            if ours and theirs and ours != theirs:
                place = next((i for i, pair in enumerate(zip(ours, theirs, strict=False)) if len(set(pair)) > 1), len(ours))
                raise StoreError(
                    f"{store.folder / 'names.json'}: has other {kind.replace('_', ' ')} than {first.folder}, from number "
                    f"{place + 1} on; names of one detector are equal, so one of the files is wrong"
                )


def _read_keys(stores: Sequence[StoreFolder], show_progress: bool) -> list[_Source]:
    """The hashes of all keys, shard by shard."""
    sources = []
    known = [store.records for store in stores]
    total = None if None in known else sum(count for count in known if count is not None)
    with Progress("reading keys", total, "keys", show_progress) as progress:
        for store in stores:
            found = dict(read_shards(_hash_keys, store.shards, None, 1, progress))
            for shard in store.shards:
                hashes = found[shard]
                if isinstance(hashes, ShardFailure):
                    raise StoreError(f"{shard}: cannot be read ({hashes.reason}). {REMOVE_SHARD}")
                sources.append(_Source(store, shard, hashes))
    return sources


def _hash_keys(shard: Path, common: None, advance: Advance) -> npt.NDArray[np.uint64]:
    with open_shard(shard) as transaction:
        hashes = np.fromiter(
            (xxhash.xxh3_64_intdigest(bytes(key)) for key in transaction.cursor().iternext(values=False)), np.uint64
        )
    advance(len(hashes))
    return hashes


def _doubled(sources: Sequence[_Source]) -> set[int]:
    """Hashes of keys that occur more than once."""
    hashes = np.sort(np.concatenate([source.hashes for source in sources]))
    return set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())


def _digest(sources: Sequence[_Source], shards: int, prefer_first: bool) -> str:
    """Names the work: which records, in which order, into how many shards."""
    digest = xxhash.xxh3_128(json.dumps([sources[0].store.detector, shards, prefer_first], sort_keys=True).encode())
    for source in sources:
        digest.update(source.hashes.tobytes())
    return digest.hexdigest()


def _expect_same_work(out: Path, digest: str) -> None:
    mark = out / _WORK
    if mark.exists() and mark.read_text(encoding="utf-8") == digest:
        return
    if mark.exists():
        raise StoreError(
            f"{out}: was begun as a merge of other stores, or into another number of shards; choose another folder"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise StoreError(f"{out}: is there already and not empty; merge into a new folder")


def _mark(out: Path, digest: str) -> None:
    out.mkdir(parents=True, exist_ok=True)
    replace_text(out / _WORK, digest)


def _first_of(sources: Sequence[_Source], doubled: set[int], prefer_first: bool) -> tuple[dict[bytes, int], int]:
    """Of each key that occurs more than once, the source whose record is taken; and how many records are not.

    Raises:
        StoreError: records of one key differ, and the first is not to be preferred.
    """
    first: dict[bytes, tuple[int, int]] = {}  # key -> source, hash of the record
    clashes: list[str] = []
    left_out = 0
    for number, source in enumerate(sources):
        if not doubled.intersection(source.hashes.tolist()):
            continue
        for key, value in _records(source):
            if xxhash.xxh3_64_intdigest(key) not in doubled:
                continue
            content = xxhash.xxh3_64_intdigest(encode_regions(_decode(source, key, value)))  # headers may be older
            taken, before = first.setdefault(key, (number, content))
            left_out += taken != number
            if before != content:
                clashes.append(f"{key.decode(errors='replace')!r} in {sources[taken].shard} and in {source.shard}")
    if clashes and not prefer_first:
        more = f", and {len(clashes) - _NAMED:,} more" if len(clashes) > _NAMED else ""
        raise StoreError(
            f"images with the same key and different regions: {'; '.join(clashes[:_NAMED])}{more}. "
            "Say --prefer first to take the first of each, or give one of the stores other keys."
        )
    return {key: number for key, (number, _) in first.items()}, left_out


def _records(source: _Source) -> Iterator[tuple[bytes, memoryview]]:
    """All records of a shard, as views that are valid until the next one is asked for."""
    try:
        with open_shard(source.shard) as transaction:
            for key, value in transaction.cursor().iternext():
                yield bytes(key), value
    except lmdb.Error as error:
        raise StoreError(f"{source.shard}: cannot be read ({error}). `unimo-ds regions verify` says more.") from error


def _decode(source: _Source, key: bytes, value: memoryview) -> Regions:
    try:
        return decode_regions(value)
    except DamagedRecordError as error:
        name = key.decode(errors="backslashreplace")
        raise DamagedRecordError(f"{source.shard}: image {name!r}: {error}. {REMOVE_SHARD}") from error


def _copy(out: Path, sources: Sequence[_Source], first: dict[bytes, int], shards: int, progress: Progress) -> int:
    """Copies what is not there yet; returns how many records."""
    store = sources[0].store
    classes, attributes = (
        next((names for source in sources if (names := getattr(source.store, kind))), ())
        for kind in ("class_names", "attribute_names")
    )
    written = waiting = 0
    with ExitStack() as stack:
        writers = [
            stack.enter_context(RegionStoreWriter(out, store.detector, shard, classes, attributes, shards))
            for shard in range(shards)
        ]
        for number, source in enumerate(sources):
            for name, value in _records(source):
                if first.get(name, number) != number:
                    continue
                key = name.decode()
                writer = writers[shard_of(key, shards)]
                progress.advance()
                if key in writer:
                    continue
                writer.write(key, _decode(source, name, value))
                written += 1
                waiting += len(value)
                if waiting >= _COMMIT_BYTES:
                    for each in writers:
                        each.flush()
                    waiting = 0
    return written


def _expect_records(found: int, expected: int, out: Path) -> None:
    if found != expected:
        raise StoreError(f"{out}: holds {found:,} records where {expected:,} were to be merged; remove it and merge again")
