"""Images to a regions store, by any number of processes that need not know each other.

Each process takes every n-th image and writes a shard of its own. A shard that is done leaves a mark with a digest of
the work; whoever finds all marks of that work in place merges the shards into a finished store. No process group is
needed, so a Slurm array, `srun`, or two local processes do equally well, and one that died is simply started again.
"""

import fcntl
import hashlib
import json
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from unimo_ds import distributed
from unimo_ds.data.store import LONGEST_KEY, RegionStore, RegionStoreWriter, finish_store
from unimo_ds.errors import ConfigError, DataError, StoreError
from unimo_ds.vision.coco import read_json
from unimo_ds.vision.detector import Detector
from unimo_ds.vision.detector_file import load_detector
from unimo_ds.vision.extract import Failure, Item, extract, write_failures

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_RECORD = "extraction.json"  # how many shards the store was made by; changed only when it is finished


@dataclass(frozen=True)
class ExtractionPlan:
    """What to extract, with which detector, to where.

    Attributes:
        images: a folder (searched recursively), or a COCO JSON file (its `images`) or JSON list of file names.
        out: the store's folder; an unfinished store is continued.
        images_root: with a JSON file, the folder that its file names are relative to.
        detector: name of a packaged detector, or a detector file.
        selection: what to change of the detector's selection, keys of `SelectionConfig` (`min_boxes`, ...).
        batch, workers: images that run together, and decoding processes; neither changes results.
        shards, shard: number of processes in all and the number of this one; None: from the launcher's environment.
        processes: local processes to start, each with one thread and a shard of its own.
    """

    images: Path
    out: Path
    images_root: Path | None = None
    detector: str = "world"
    selection: dict[str, Any] = field(default_factory=dict)
    batch: int = 8
    workers: int = 1
    shards: int | None = None
    shard: int | None = None
    processes: int = 1


@dataclass(frozen=True)
class ExtractionResult:
    """What this call did; `finished` when the store is whole: every shard of it, not only this call's."""

    images: int
    extracted: int
    failures: tuple[Failure, ...]
    finished: bool


def list_images(source: Path, root: Path | None = None) -> list[Item]:
    """(key, path) of every image; the key is the path below the root, with `/` and extension: COCO's `file_name`.

    Raises:
        DataError: no such folder or file, nothing in it, a JSON file without `root`, a key that is too long.
    """
    source = Path(source)
    if source.is_dir():
        found = (Path(folder) / name for folder, _, names in os.walk(source, followlinks=True) for name in names)
        keys = sorted(p.relative_to(source).as_posix() for p in found if p.suffix.lower() in SUFFIXES)
        root = source
    elif source.is_file():
        if root is None:
            raise DataError(f"{source}: a list of images needs --images-root, the folder its names are relative to")
        keys = _listed_names(source)
    else:
        raise DataError(f"{source}: no such folder or file of images")
    if not keys:
        raise DataError(f"{source}: no images found; looked for {', '.join(SUFFIXES)} or the `images` of a JSON file")
    for key in keys:
        if len(key.encode()) > LONGEST_KEY:
            raise DataError(f"{source}: {key!r} is longer than {LONGEST_KEY} bytes, a store's longest key")
    return [(key, root / key) for key in keys]


def _listed_names(path: Path) -> list[str]:
    """The distinct file names of a COCO file's `images`, or of a plain list, in their order."""
    content = read_json(path)
    listed = content.get("images") if isinstance(content, dict) else content
    names = [entry.get("file_name") if isinstance(entry, dict) else entry for entry in listed or []]
    for name in names:
        if not isinstance(name, str):
            raise DataError(f"{path}: {name!r} is no file name; expected a list of names, or `images` with a `file_name` each")
    return [str(name) for name in dict.fromkeys(names)]


def extract_features(plan: ExtractionPlan) -> ExtractionResult:
    """Extracts this process's share of the images, on `plan.processes` local processes.

    Raises:
        DataError: see `list_images`.
        StoreError: the store was made by another detector or is being made by another number of processes.
        ConfigError: a wrong selection or shard number.
        CheckpointError: no such detector, or a damaged one.
    """
    shards, own = distributed.own_shards(plan.shards, plan.shard, plan.processes)
    items = list_images(plan.images, plan.images_root)
    if len(own) == 1:
        outcomes = [_extract_shard(plan, items, own[0], shards)]
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(len(own), mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            futures = [pool.submit(_extract_shard, plan, items, shard, shards) for shard in own]
            outcomes = [future.result() for future in futures]
    finished = _finish(plan.out, _work_digest(items, shards), shards)
    failures = tuple(failure for _, found in outcomes for failure in found)
    return ExtractionResult(len(items), sum(count for count, _ in outcomes), failures, finished)


def _extract_shard(plan: ExtractionPlan, items: Sequence[Item], shard: int, shards: int) -> tuple[int, list[Failure]]:
    """Extracts every `shards`-th image from `shard`; returns the number extracted and the failures."""
    detector = _open_detector(plan)
    share = items[shard::shards]
    known = _keys_in_other_shards(plan.out, detector, shards)
    if not (plan.out / _RECORD).exists():
        _record_shards(plan.out, shards)
    with RegionStoreWriter(plan.out, detector.identity(), shard) as writer:
        before = len(writer)
        failures = extract(
            share,
            detector,
            writer.write,
            lambda key: key in known or key in writer,
            batch=plan.batch,
            workers=plan.workers,
            show_progress=shard == 0,
        )
        extracted = len(writer) - before
    write_failures(failures, plan.out / f"failures-{shard:05}.jsonl")
    _mark(plan.out, shard).write_text(_work_digest(items, shards), encoding="utf-8")
    return extracted, failures


def _open_detector(plan: ExtractionPlan) -> Detector:
    try:
        return load_detector(plan.detector).with_selection(**plan.selection).to(distributed.device())
    except ValidationError as error:
        raise ConfigError(f"selection {plan.selection}: {error}") from error


def _keys_in_other_shards(out: Path, detector: Detector, shards: int) -> set[str]:
    """What is stored already, when a finished store is continued by another number of shards; otherwise nothing.

    With the same number every image is looked for in the shard that will write it, so the others need not be read.

    Raises:
        StoreError: the store is another detector's; or it is unfinished and was begun by another number of shards,
            which would extract images twice.
    """
    record = out / _RECORD
    before = read_json(record)["shards"] if record.exists() else shards
    if before == shards:
        return set()
    if not (out / "manifest.json").exists():
        raise StoreError(
            f"{out}: was begun by {before} processes, now there are {shards}. "
            f"Continue with {before} in all (--shards, --processes), or choose another --out."
        )
    RegionStore(out).expect_detector(detector.identity(), "this extraction")
    # In a process of its own: LMDB opens a file once a process, and the writer needs it next. Forked, because it is quick
    # and the child does nothing but read.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        return pool.submit(_stored_keys, out).result()


def _stored_keys(out: Path) -> set[str]:
    return set(RegionStore(out).keys())


def _record_shards(out: Path, shards: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    temporary = out / f".extraction.{os.getpid()}"
    temporary.write_text(json.dumps({"shards": shards}), encoding="utf-8")
    temporary.replace(out / _RECORD)


def _work_digest(items: Sequence[Item], shards: int) -> str:
    """Names the work: marks of an earlier run over other images or with other shards do not count."""
    return hashlib.sha256("\n".join([str(shards), *(key for key, _ in items)]).encode()).hexdigest()


def _mark(out: Path, shard: int) -> Path:
    return out / f"shard-{shard:05}.done"


def _finish(out: Path, digest: str, shards: int) -> bool:
    """Merges the shards if all are done; of several processes that see that at once, one after the other does it."""
    with (out / "finish.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        marks = [_mark(out, shard) for shard in range(shards)]
        if not all(mark.exists() and mark.read_text(encoding="utf-8") == digest for mark in marks):
            return False
        finish_store(out)
        _record_shards(out, shards)
    return True
