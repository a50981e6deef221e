"""One writer a shard: a lock (`unimo_ds.locks`) that ends with its process, and says who holds it."""

import json
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from weakref import WeakValueDictionary

from unimo_ds.errors import StoreError
from unimo_ds.locks import try_lock

_NAME = "writer.lock"
_PATIENCE = 2.0  # seconds for a holder that was just killed, or for somebody who only looks whether a shard is locked
_held: WeakValueDictionary[tuple[int, Path], "ShardLock"] = WeakValueDictionary()  # a process is not stopped by its own locks


@dataclass(frozen=True)
class Holder:
    """Who writes a shard; `shards` is the number that its run has in all, 0 where it did not say."""

    host: str
    pid: int
    shards: int

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class ShardLock:
    """Holds the lock of the shard in folder `shard` until `release`, or until this process ends.

    Args:
        shard: the shard's folder, which exists.
        shards: what the holder tells others of its run.

    Raises:
        StoreError: another process writes this shard; names its host and number.
    """

    def __init__(self, shard: Path, shards: int) -> None:
        self._key = (os.getpid(), shard.resolve())
        if self._key in _held:  # not even opened: closing a second handle would end the lock
            raise _refusal(shard, "this process")
        self._file = (shard / _NAME).open("a+", encoding="utf-8")
        deadline = time.monotonic() + _PATIENCE
        while not _lock(self._file):
            if time.monotonic() > deadline:
                holder = _read(self._file)
                self._file.close()
                raise _refusal(shard, str(holder))
            time.sleep(0.05)
        _held[self._key] = self
        self._file.truncate(0)
        self._file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "shards": shards}))
        self._file.flush()

    def release(self) -> None:
        """Lets others write."""
        _held.pop(self._key, None)
        self._file.close()


def holder_of(shard: Path) -> Holder | None:
    """Who writes the shard in folder `shard` now, this process left out; None: nobody."""
    path = shard / _NAME
    if not path.exists() or (os.getpid(), shard.resolve()) in _held:
        return None
    with path.open("a+", encoding="utf-8") as file:
        return None if _lock(file) else _read(file)


def _refusal(shard: Path, who: str) -> StoreError:
    return StoreError(
        f"{shard}: {who} is writing this shard, and a shard has one writer. Wait for that one, end it, or choose another --out."
    )


def _lock(file: IO[str]) -> bool:
    try:
        return try_lock(file)
    except OSError as error:
        raise StoreError(
            f"{file.name}: cannot be locked ({error.strerror}). Choose an --out on a file system with locks."
        ) from error


def _read(file: IO[str]) -> Holder:
    file.seek(0)
    try:
        content = json.loads(file.read())
        return Holder(content["host"], content["pid"], content["shards"])
    except (ValueError, KeyError, TypeError):  # taken a moment ago, not written yet
        return Holder("this or another node", 0, 0)
