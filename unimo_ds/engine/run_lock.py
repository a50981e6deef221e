"""One job a run folder: two that train in it would write each other's checkpoints and logs."""

import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from unimo_ds import distributed
from unimo_ds.errors import TrainingError
from unimo_ds.locks import try_lock
from unimo_ds.progress import say


@contextmanager
def alone_in(folder: Path, patience: float) -> Iterator[None]:
    """Keeps other jobs out of a run folder for the length of the block: rank 0 holds the lock.

    Args:
        folder: of the run.
        patience: seconds to wait for a job that is about to end, because its launcher was killed or a rank was lost. A lock of
            another host, whose job gives no sign of life meanwhile, is what a host that crashed has left.

    Raises:
        TrainingError: another job trains in this folder; names its process.
    """
    if distributed.environment().rank != 0:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+", encoding="utf-8") as file:
        _lock(file, folder, patience)
        with suppress(OSError):  # a full disk: nobody can read who we are
            file.truncate(0)
            file.write(json.dumps({"host": platform.node(), "pid": os.getpid()}))
            file.flush()
        yield


def _lock(file: IO[str], folder: Path, patience: float) -> None:
    deadline, seen = time.monotonic() + patience, ""
    try:
        while not try_lock(file):
            holder, host = _holder(file)
            if not seen:
                say(f"waiting for {holder}, which still trains in {folder}")
                seen = _signs_of_life(folder)
            if time.monotonic() > deadline:
                if host == platform.node() or seen != _signs_of_life(folder):
                    raise TrainingError(
                        f"{folder}: {holder} trains in this folder. Wait for it, end it (TERM makes it save first), or choose "
                        "another folder."
                    )
                say(f"NOTE: {holder} has given no sign of life for {patience:.0f} s: the lock of a host that is gone")
                return
            time.sleep(0.1)
    except OSError as error:
        say(f"NOTE: {file.name} cannot be locked ({error.strerror}): see to it that no second job trains in this folder")


def _holder(file: IO[str]) -> tuple[str, str | None]:
    """Who has the lock, in words, and on which host."""
    file.seek(0)
    try:
        content = json.loads(file.read())
        return f"process {content['pid']} on {content['host']}", str(content["host"])
    except (ValueError, KeyError, TypeError):  # taken a moment ago, or on a full disk
        return "another process", None


def _signs_of_life(folder: Path) -> str:
    """Changes every few seconds (`unimo_ds.engine.watch`), or with each line of the log where there is one rank."""
    signs = []
    for path in (folder / "ranks/rank-0000.json", folder / "metrics.jsonl"):
        with suppress(OSError):
            signs.append(f"{path.stat().st_mtime_ns} {path.stat().st_size}")
    return f"seen: {signs}"
