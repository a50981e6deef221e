"""A store's folder as it lies on disk, finished or not, and tasks that read whole shards in processes of their own.

Shards are read in other processes for three reasons: they are read in parallel; LMDB opens a file once a process; and a
shard that was cut short (a full disk, a broken copy) kills the process that reads behind its end.
"""

import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import lmdb

from unimo_ds.data.store import REMOVE_FILE, shard_name
from unimo_ds.errors import StoreError
from unimo_ds.progress import Progress

Advance = Callable[[int], None]
Task = Callable[[Path, Any, Advance], Any]
"""Reads one shard, given its folder and what is the same for all; says how many records it has read since it last said so."""


@dataclass(frozen=True)
class ShardFailure:
    """Why a task could not read a shard to its end."""

    reason: str


@dataclass(frozen=True)
class StoreFolder:
    """What lies in a store's folder.

    Attributes:
        manifest: None while the store is not finished.
        shards: the folders of its shards, whether or not the manifest knows them.
        summaries: of each shard that has one, by the shard's name.
        class_names, attribute_names: without background and "none"; empty where they are not known.
    """

    folder: Path
    manifest: dict[str, Any] | None
    shards: tuple[Path, ...]
    summaries: dict[str, dict[str, Any]]
    class_names: tuple[str, ...]
    attribute_names: tuple[str, ...]

    @property
    def detector(self) -> dict[str, Any]:
        """The identity of its detector; empty while nothing says which it is."""
        sources = [self.manifest or {}, *self.summaries.values()]
        return next((source["detector"] for source in sources if isinstance(source.get("detector"), dict)), {})

    @property
    def promised(self) -> dict[str, int]:
        """Number of records of each shard according to the manifest."""
        listed = (self.manifest or {}).get("shards", [])
        return {shard_name(entry["shard"]): int(entry["records"]) for entry in listed}

    @property
    def records(self) -> int | None:
        """Records in all by what was written down; None while a shard is in the making."""
        if self.manifest is not None:
            return int(self.manifest["records"])
        complete = [summary["records"] for summary in self.summaries.values() if summary.get("complete", True)]
        return sum(complete) if len(complete) == len(self.shards) else None


def open_folder(folder: Path) -> StoreFolder:
    """Looks into a store's folder; no record is read.

    Raises:
        StoreError: no store is there, or one of its JSON files cannot be read.
    """
    folder = Path(folder)
    shards = tuple(sorted(path for path in folder.glob("shard-*") if path.is_dir()))
    manifest = _read_json(folder / "manifest.json", ("detector", "records", "shards"))
    if not shards and manifest is None:
        what = "holds no shard-* folder and no manifest.json" if folder.is_dir() else "no such folder"
        raise StoreError(f"{folder}: {what}; expected a regions store, as tools/extract_features.py writes it with --out")
    summaries = {path.name: _read_json(path.with_name(f"{path.name}.json"), ("detector", "records")) for path in shards}
    names = _read_json(folder / "names.json") or {}
    return StoreFolder(
        folder,
        manifest,
        shards,
        {name: summary for name, summary in summaries.items() if summary is not None},
        tuple(names.get("classes", ())),
        tuple(names.get("attributes", ())),
    )


def _read_json(path: Path, expected: Sequence[str] = ()) -> dict[str, Any] | None:
    """The object in a JSON file, which has the keys `expected`; None where there is no file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: cannot be read ({error}); expected JSON") from error
    if not isinstance(content, dict):
        raise StoreError(f"{path}: holds {type(content).__name__}, expected a JSON object")
    if absent := [key for key in expected if key not in content]:
        raise StoreError(f"{path}: has no `{'`, no `'.join(absent)}`: it is damaged. {REMOVE_FILE}")
    return content


@contextmanager
def open_shard(shard: Path) -> Iterator[Any]:
    """A transaction of a shard, for reading; safe while another process writes it, if the lock file may be written."""
    lock = shard / "lock.mdb"
    environment = lmdb.open(
        str(shard),
        readonly=True,
        create=False,
        lock=lock.exists() and os.access(lock, os.W_OK),
        readahead=True,
        max_spare_txns=1,
    )
    try:
        size, info = (shard / "data.mdb").stat().st_size, environment.info()
        expected = (info["last_pgno"] + 1) * environment.stat()["psize"]
        if size < expected:
            raise lmdb.CorruptedError(f"data.mdb has {size:,} bytes where {expected:,} are in use: it was cut short")
        with environment.begin(buffers=True) as transaction:
            yield transaction
    finally:
        environment.close()


def read_shards(
    task: Task, shards: Sequence[Path], common: Any, processes: int, progress: Progress
) -> Iterator[tuple[Path, Any | ShardFailure]]:
    """Runs `task` on every shard, at most `processes` at a time; yields each shard with its result, in order of finishing.

    Args:
        task: a function of a module, so that another process finds it.
        common: its second argument; is sent to every process.
    """
    context = multiprocessing.get_context("spawn")
    waiting = list(reversed(shards))
    running: dict[Connection, tuple[BaseProcess, Path]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                shard = waiting.pop()
                ours, theirs = context.Pipe(duplex=False)
                running[ours] = _start(context, (task, shard, common, theirs)), shard
                theirs.close()
            for connection in wait(list(running)):
                assert isinstance(connection, Connection)
                process, shard = running[connection]
                try:
                    message = connection.recv()
                except EOFError:
                    process.join()
                    message = ShardFailure(f"its reading process ended with {_ending(process.exitcode)}")
                if isinstance(message, int):
                    progress.advance(message)
                    continue
                del running[connection]
                connection.close()
                process.join()
                yield shard, message
    finally:
        for process, _ in running.values():
            process.terminate()


def _start(context: SpawnContext, arguments: tuple[Any, ...]) -> BaseProcess:
    process = context.Process(target=_run, args=arguments, daemon=True)
    process.start()
    return process


def _run(task: Task, shard: Path, common: Any, connection: Connection) -> None:
    """The body of a reading process. An interrupt from the keyboard is for the parent, which then ends this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        result = task(shard, common, connection.send)
    except (lmdb.Error, OSError) as error:
        result = ShardFailure(f"{type(error).__name__}: {error}")
    connection.send(result)


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"signal {signal.Signals(-code).name}: the file is damaged, or memory ran out"
    return f"exit code {code}"
