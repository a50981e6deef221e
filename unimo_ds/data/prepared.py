"""What is prepared once and reused: folders that are written under another name and renamed when whole."""

import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from unimo_ds.errors import DataError

T = TypeVar("T")

SHOWN_REJECTS = 5
AT_ONCE = 1000  # texts that are tokenised together


class Rejects:
    """Counts rejected records and keeps the first few reasons for the report."""

    def __init__(self) -> None:
        self.count = 0
        self.reasons: list[str] = []

    def __call__(self, reason: str) -> None:
        self.count += 1
        if len(self.reasons) < SHOWN_REJECTS:
            self.reasons.append(reason)

    def report(self, name: str, used: int) -> None:
        """Prints what was left out, if anything was."""
        if self.count:
            reasons = "".join(f"\n  {reason}" for reason in self.reasons)
            more = f"\n  and {self.count - len(self.reasons)} more" if self.count > len(self.reasons) else ""
            print(f"{name}: {self.count} records left out, {used} used:{reasons}{more}", file=sys.stderr)


def prepare_once(folder: Path, write: Callable[[Path], None]) -> Path:
    """Makes `folder` by `write`, unless it is there; a kill at any moment leaves nothing under its name."""
    if (folder / "manifest.json").exists():
        return folder
    temporary = folder.with_name(f".{folder.name}.{platform.node()}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed process of the same number, usual in containers
    temporary.mkdir(parents=True)
    try:
        write(temporary)
        temporary.rename(folder)
    except OSError:
        if not (folder / "manifest.json").exists():  # else another process was faster
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Marks a prepared folder as whole."""
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a prepared folder."""
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return manifest


def batched(items: Iterable[T], size: int = AT_ONCE) -> Iterator[list[T]]:
    """Lists of up to `size` items."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def file_state(path: Path) -> tuple[str, int, int]:
    """Place, size and time of change: files count by these, they may be huge.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    return str(path.resolve()), status.st_size, status.st_mtime_ns


class TokenFile:
    """Token ids one after another, two bytes each where the vocabulary allows it."""

    def __init__(self, path: Path, narrow: bool) -> None:
        self._file = path.open("wb")
        self._type = np.uint16 if narrow else np.uint32
        self.tokens = 0

    def append(self, ids: Sequence[int]) -> None:
        """Adds the ids of one text."""
        self._file.write(np.asarray(ids, self._type).tobytes())
        self.tokens += len(ids)

    def close(self) -> None:
        """Ends the file; an empty one gets a few bytes, because an empty file cannot be memory-mapped."""
        if not self.tokens:
            self._file.write(b"\0\0\0\0")
        self._file.close()


def open_tokens(path: Path, narrow: bool) -> npt.NDArray[Any]:
    """The ids of a `TokenFile`, memory-mapped."""
    return np.memmap(path, np.uint16 if narrow else np.uint32, mode="r")


def write_keys(folder: Path, keys: Sequence[str]) -> None:
    """Writes texts that are looked up by number: `keys.bin` and `key_offsets.npy`."""
    encoded = [key.encode() for key in keys]
    (folder / "keys.bin").write_bytes(b"".join(encoded) or b"\0")
    np.save(folder / "key_offsets.npy", np.cumsum([0, *map(len, encoded)], dtype=np.int64))


class Keys:
    """What `write_keys` wrote, memory-mapped."""

    def __init__(self, folder: Path) -> None:
        self._bytes = np.memmap(folder / "keys.bin", np.uint8, mode="r")
        self._offsets = np.load(folder / "key_offsets.npy", mmap_mode="r")

    def __getitem__(self, number: int) -> str:
        return bytes(self._bytes[self._offsets[number] : self._offsets[number + 1]]).decode()
