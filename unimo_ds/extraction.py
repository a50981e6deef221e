"""Images to a regions store, by any number of processes that need not know each other.

A hash of its key says which shard an image belongs into, so that further images change nothing for the others. Each process
writes a shard of its own and commits every batch: a kill costs the batch that was at work. A shard that is done leaves a mark
with a digest of the work; whoever finds all marks of that work in place merges the shards into a finished store. No process
group is needed, so a Slurm array, `srun`, or two local processes do equally well, and one that died is simply started again.
"""

import fcntl
import hashlib
import json
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import xxhash
from pydantic import ValidationError

from unimo_ds import distributed
from unimo_ds.data.prepared import file_state
from unimo_ds.data.shard_lock import holder_of
from unimo_ds.data.store import (
    COMMIT_EVERY,
    LONGEST_KEY,
    RegionStoreWriter,
    complete_shards,
    finish_store,
    shard_name,
    shard_of,
    stored_elsewhere,
)
from unimo_ds.errors import ConfigError, DataError, StoreError, UnimoError
from unimo_ds.failures import Failure, count_kinds, read_failures, write_failures
from unimo_ds.files import replace_text
from unimo_ds.regions import Regions
from unimo_ds.vision.detector import Detector
from unimo_ds.vision.detector_file import PACKAGED, load_detector
from unimo_ds.vision.extract import REFUSED, end_with_parent, extract
from unimo_ds.vision.image_sources import Item, find_images

_RECORD = "extraction.json"  # which work the manifest is the end of


@dataclass(frozen=True)
class ExtractionPlan:
    """What to extract, with which detector, to where.

    Attributes:
        images: a folder of images or tars, a JSON list (COCO, Karpathy, plain), a tar, or several; see `find_images`.
        out: the store's folder; an unfinished store is continued, a finished one takes the images that it has not.
        images_root: with a JSON file, the folder that its file names are relative to.
        detector, conventions, class_names, attribute_names: as `load_detector` takes them.
        selection: what to change of the detector's selection, keys of `SelectionConfig` (`min_boxes`, ...).
        batch: images that run together.
        workers: decoding processes of each process.
        shards, shard: number of calls in all and the number of this one, each with all the ranks that its launcher starts;
            None: one call.
        processes: local processes to start, each with one thread and a shard of its own.
    """

    images: Path | tuple[Path, ...]
    out: Path
    images_root: Path | None = None
    detector: str = "world"
    conventions: str | None = None
    class_names: Path | None = None
    attribute_names: Path | None = None
    selection: dict[str, Any] = field(default_factory=dict)
    batch: int = 8
    workers: int = 1
    shards: int | None = None
    shard: int | None = None
    processes: int = 1


@dataclass(frozen=True)
class ExtractionResult:
    """What this call did.

    Attributes:
        images: that are listed, for all shards together.
        extracted: by this call.
        failures: of this call's shards, those of earlier calls that are as they were included.
        finished: when the store is whole: every shard of it, not only this call's.
        speaks: of all calls that find the store finished, this one is to report on it (and to verify it).
    """

    images: int
    extracted: int
    failures: tuple[Failure, ...]
    finished: bool
    speaks: bool


@dataclass(frozen=True)
class _Work:
    """What there is to do.

    Attributes:
        images: number of all listed.
        digest: names the work: the listed keys, the detector, its settings. Marks of other work do not count.
        shares: the images of each of this call's shards.
        unusable: images whose names a store cannot hold.
    """

    images: int
    digest: str
    shares: dict[int, list[Item]]
    unusable: list[Failure]


def extract_features(plan: ExtractionPlan) -> ExtractionResult:
    """Extracts this process's share of the images, on `plan.processes` local processes.

    Raises:
        DataError: see `find_images`; or not one of the images could be read.
        StoreError: the store was made by another detector, or is being made by another number of processes.
        ConfigError: a wrong selection, batch or shard number.
        CheckpointError: no such detector, or a damaged one.
        UnimoError: the system ended a process.
    """
    if not 1 <= plan.batch <= COMMIT_EVERY or plan.workers < 0:
        raise ConfigError(f"--batch {plan.batch} --workers {plan.workers}: wants 1 to {COMMIT_EVERY}, and 0 or more")
    shards, own = distributed.own_shards(plan.shards, plan.shard, plan.processes)
    work = _list_work(plan, shards, own)
    if _is_finished(plan.out, work):
        failures = _reports(plan.out) if 0 in own else []
        return ExtractionResult(work.images, 0, tuple(failures), finished=True, speaks=0 in own)
    left = [shard for shard in own if not _is_done(plan.out, shard, shards, work)]
    extracted = sum(_run(plan, work, left, shards))
    finished, speaks = _finish(plan.out, work, shards)
    failures = [failure for shard in own for failure in read_failures(_report(plan.out, shard))]
    return ExtractionResult(work.images, extracted, tuple(failures), finished, speaks)


def _list_work(plan: ExtractionPlan, shards: int, own: Sequence[int]) -> _Work:
    shares: dict[int, list[Item]] = {shard: [] for shard in own}
    unusable: list[Failure] = []
    count = total = 0
    for item in find_images(plan.images, plan.images_root):
        count += 1
        name = item.key.encode(errors="surrogateescape")
        total += xxhash.xxh3_128_intdigest(name)  # a sum: the order of the list does not matter
        reason = _why_unusable(item.key)
        if reason:
            unusable.append(Failure(item.key, item.place, reason))
        elif (shard := shard_of(item.key, shards)) in shares:
            shares[shard].append(item)
    settings = [_fingerprint(plan), plan.conventions, sorted(plan.selection.items()), count, total % 2**128]
    return _Work(count, hashlib.sha256(repr(settings).encode()).hexdigest(), shares, unusable)


def _why_unusable(key: str) -> str:
    try:
        length = len(key.encode())
    except UnicodeEncodeError:
        return "unusable name: it is not UTF-8"
    return f"unusable name: {length} bytes, a store's longest key has {LONGEST_KEY}" if length > LONGEST_KEY else ""


def _fingerprint(plan: ExtractionPlan) -> list[tuple[str, int, int]]:
    """Tells whether the detector is still the same without loading it: its files' places, sizes and times."""
    named = [Path(plan.detector), PACKAGED / f"{plan.detector}.safetensors", plan.class_names, plan.attribute_names]
    files = [file for path in named if path for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    return [file_state(file) for file in files if file.is_file()]


def _is_finished(out: Path, work: _Work) -> bool:
    """Whether an earlier run, by whatever number of processes, finished this work."""
    try:
        done = json.loads((out / _RECORD).read_text(encoding="utf-8"))["work"] == work.digest
        listed = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["shards"]
        whole = all((out / shard_name(shard["shard"]) / "data.mdb").exists() for shard in listed)
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return done and whole and not any(_worth_another_try(path) for path in out.glob("failures-*.jsonl"))


def _is_done(out: Path, shard: int, shards: int, work: _Work) -> bool:
    mark = _mark(out, shard)
    done = mark.exists() and mark.read_text(encoding="utf-8") == _mark_of(work, shards)
    whole = (out / shard_name(shard) / "data.mdb").exists()
    return done and whole and not _worth_another_try(_report(out, shard))


def _worth_another_try(report: Path) -> bool:
    """Whether an image that failed has changed since; what the detector refused may find more memory now."""
    if not report.exists():
        return False
    reported = report.stat().st_mtime_ns
    for failure in read_failures(report):
        try:
            status = os.stat(failure.path.removesuffix(f":{failure.key}"))
        except (OSError, ValueError):
            continue
        if failure.kind == REFUSED or max(status.st_mtime_ns, status.st_ctime_ns) >= reported:
            return True
    return False


def _reports(out: Path) -> list[Failure]:
    return [failure for path in sorted(out.glob("failures-*.jsonl")) for failure in read_failures(path)]


def _report(out: Path, shard: int) -> Path:
    return out / f"failures-{shard:05}.jsonl"


def _mark(out: Path, shard: int) -> Path:
    return out / f"shard-{shard:05}.done"


def _mark_of(work: _Work, shards: int) -> str:
    return f"{work.digest} {shards}"


def _run(plan: ExtractionPlan, work: _Work, left: Sequence[int], shards: int) -> Iterator[int]:
    """Extracts the shards `left`; yields how many images each got."""
    if plan.processes == 1:
        yield from (_extract_shard(plan, work, shard, shards) for shard in left)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max(len(left), 1), mp_context=context, initializer=_begin_local_process) as pool:
        futures = [pool.submit(_extract_shard, plan, _only(work, shard), shard, shards) for shard in left]
        try:
            for future in futures:
                yield future.result()
        except BrokenProcessPool as error:
            raise UnimoError(
                "one of the local processes was ended by the system, most often for want of memory. What was extracted is "
                "kept. Start again, with fewer --processes if memory is short."
            ) from error


def _only(work: _Work, shard: int) -> _Work:
    return _Work(work.images, work.digest, {shard: work.shares[shard]}, work.unusable)


def _begin_local_process() -> None:
    torch.set_num_threads(1)
    end_with_parent()


def _extract_shard(plan: ExtractionPlan, work: _Work, shard: int, shards: int) -> int:
    """Extracts the images of one shard, leaves its report and its mark, and returns how many were extracted."""
    detector = _open_detector(plan, shard)
    _refuse_other_runs(plan.out, shards)
    elsewhere = stored_elsewhere(plan.out, shard, shards)
    share = [item for item in work.shares[shard] if item.key not in elsewhere]
    names = detector.class_names, detector.attribute_names
    with RegionStoreWriter(plan.out, detector.identity(), shard, *names, shards=shards) as writer:
        for outdated in (plan.out / _RECORD, _mark(plan.out, shard)):
            outdated.unlink(missing_ok=True)

        def write(batch: list[tuple[str, Regions]]) -> None:
            for key, regions in batch:
                writer.write(key, regions)
            writer.flush()

        before = len(writer)
        show = shard % plan.processes == 0 and distributed.environment().rank == 0
        failures = extract(share, detector, write, writer.size, batch=plan.batch, workers=plan.workers, show_progress=show)
        extracted = len(writer) - before
    write_failures(failures + (work.unusable if shard == 0 else []), _report(plan.out, shard))
    _mark(plan.out, shard).write_text(_mark_of(work, shards), encoding="utf-8")
    return extracted


def _open_detector(plan: ExtractionPlan, shard: int) -> Detector:
    """On this rank's GPU; local processes take one after the other."""
    detector = load_detector(plan.detector, plan.conventions, plan.class_names, plan.attribute_names)
    device = distributed.device()
    if device.type == "cuda":
        number = distributed.environment().local_rank * plan.processes + shard % plan.processes
        device = torch.device("cuda", number % torch.cuda.device_count())
    try:
        return detector.with_selection(**plan.selection).to(device)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, each['loc'])) or 'selection'}: {each['msg']}" for each in error.errors())
        raise ConfigError(f"selection {plan.selection}: {problems}") from error


def _refuse_other_runs(out: Path, shards: int) -> None:
    """Another number of processes divides the images otherwise: two such runs at once would extract images twice."""
    for path in sorted(out.glob("shard-*")):
        holder = holder_of(path) if path.is_dir() else None
        if holder is not None and holder.shards != shards:
            raise StoreError(
                f"{path}: {holder} is writing this store as one of {holder.shards} processes, now there are {shards}. "
                f"Wait for that run or end it, then continue with any number; or start {holder.shards} in all."
            )


def _finish(out: Path, work: _Work, shards: int) -> tuple[bool, bool]:
    """Merges the shards if all are done; of several processes that see that at once, one after the other looks.

    Returns:
        Whether the store is finished, and whether it was this call that finished it.

    Raises:
        DataError: not one of the images could be read.
    """
    with (out / "finish.lock").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        marks = [_mark(out, shard) for shard in range(shards)]
        if not all(mark.exists() and mark.read_text(encoding="utf-8") == _mark_of(work, shards) for mark in marks):
            return False, False
        if _is_finished(out, work):
            return True, False
        _remove_outdated(out, shards)
        failures = _reports(out)
        if len(failures) >= work.images:
            raise DataError(
                f"not one of the {work.images:,} images could be read: {count_kinds(failures)}. "
                f"The first: {failures[0].path}: {failures[0].reason}. All are in {out}/failures-*.jsonl"
            )
        complete_shards(out)
        finish_store(out)
        replace_text(out / _RECORD, json.dumps({"work": work.digest}))
    return True, True


def _remove_outdated(out: Path, shards: int) -> None:
    """Marks and reports of earlier runs by more processes: their images were tried again by this one."""
    for path in [*out.glob("failures-*.jsonl"), *out.glob("shard-*.done")]:
        if int(path.stem.rpartition("-")[2]) >= shards:
            path.unlink(missing_ok=True)
