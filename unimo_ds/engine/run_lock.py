"""One job a run folder: two that train in it would write each other's checkpoints and logs."""

import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from unimo_ds import distributed
from unimo_ds.engine.run_log import refusals
from unimo_ds.errors import TrainingError
from unimo_ds.locks import try_lock
from unimo_ds.progress import say


@contextmanager
def alone_in(folder: Path, patience: float) -> Iterator[None]:
    """Keeps other jobs out of a run folder for the length of the block: rank 0 holds the lock.

    Args:
        folder: of the run.
        patience: seconds to wait for a job that is about to end, because its launcher was killed or a rank was lost.

    Raises:
        TrainingError: another job trains in this folder; names its process.
        UnimoError: the disk refuses the folder.
    """
    if distributed.environment().rank != 0:
        yield
        return
    with refusals(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = FileIO(folder / "lock", "a+")
    with file:
        _lock(file, folder, patience)
        with suppress(OSError):  # a full disk: nobody can read who we are
            file.truncate(0)
            file.write(json.dumps({"host": platform.node(), "pid": os.getpid()}).encode())
        yield


def _lock(file: FileIO, folder: Path, patience: float) -> None:
    deadline, told = time.monotonic() + patience, False
    try:
        while not try_lock(file):
            holder = _holder(file)
            if not told:
                say(f"waiting for {holder}, which still trains in {folder}")
                told = True
            if time.monotonic() > deadline:
                raise TrainingError(
                    f"{folder}: {holder} trains in this folder. Wait for it, end it (TERM makes it save first), or choose "
                    f"another folder. If it is gone with its host, and the file system still keeps its lock: rm {folder}/lock"
                )
            time.sleep(0.1)
    except OSError as error:
        say(f"NOTE: {folder}/lock cannot be locked ({error.strerror}): see to it that no second job trains in this folder")


def _holder(file: FileIO) -> str:
    """Who has the lock, in words."""
    file.seek(0)
    try:
        content = json.loads(file.read())
        return f"process {content['pid']} on {content['host']}"
    except (ValueError, KeyError, TypeError):  # taken a moment ago, or on a full disk
        return "another process"
