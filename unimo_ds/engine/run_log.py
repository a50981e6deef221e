"""The run folder as a receipt: resolved configuration, code, packages, data, and what was measured at each step.

config.yaml         the resolved configuration, a valid input of the command that made it
receipt.json        command, git state, packages, data manifests, one entry a start
metrics.jsonl       one object a line: a logged step, or an evaluation
events.jsonl        one object a line: a step that was left out, or a roll back, with the sample ids of each rank; damage of a
                    checkpoint
tensorboard/        the same numbers as events
samples-rank*.jsonl (training.log_samples) the sample ids of every step
lock                see `unimo_ds.engine.run_lock`
checkpoints/        see `unimo_ds.engine.checkpoint`
ranks/              see `unimo_ds.engine.watch`
"""

import json
import math
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from io import FileIO
from pathlib import Path
from typing import Any

from unimo_ds.errors import UnimoError
from unimo_ds.files import replace_text
from unimo_ds.progress import say

LEFT_OUT, ROLLED_BACK, DAMAGED = "left out", "rolled back", "checkpoint damaged"  # kinds of events
_PACKAGES = ("torch", "deepspeed", "transformers", "numpy", "lmdb", "triton", "apex")
_MOST_WAITING = 1 << 24  # bytes of a log that wait for a full disk


class _Lines:
    """JSON objects, one a line, added to a file. What a full disk refuses waits, and is written before the next line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: FileIO | None = None
        self._waiting = b""
        self._alone = threading.Lock()  # events come from the check of checkpoints too

    def add(self, content: dict[str, Any]) -> None:
        """Adds a line, which other processes see when this returns.

        Raises:
            OSError: it waits, or, where too much waits already, is lost.
        """
        with self._alone:
            if len(self._waiting) < _MOST_WAITING:
                self._waiting += json.dumps(content).encode() + b"\n"
            self.write()

    def write(self) -> None:
        """Writes what waits.

        Raises:
            OSError: some of it still does.
        """
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = FileIO(self.path, "a")
        while self._waiting:  # a disk that is all but full takes a part
            self._waiting = self._waiting[self._file.write(self._waiting) :]

    def sync(self) -> None:
        """Waits until all of it is on the disk."""
        assert self._file is not None
        os.fsync(self._file)

    def close(self) -> None:
        """Closes the file.

        Raises:
            OSError: lines that waited are lost.
        """
        try:
            if self._waiting:
                self.write()
        finally:
            if self._file is not None:
                self._file.close()


class RunLog:
    """Writes the receipt and the metrics of a run; on all ranks but 0 it does nothing.

    Args:
        folder: the run folder.
        enabled: False on all ranks but 0.
    """

    def __init__(self, folder: Path, enabled: bool) -> None:
        self.folder, self.enabled = folder, enabled
        if not enabled:
            return
        self._metrics, self._events = _Lines(folder / "metrics.jsonl"), _Lines(folder / "events.jsonl")
        with refusals(folder):
            self._metrics.write()
            self._scalars = self._open_scalars()

    def _open_scalars(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter  # a second of import, on one rank only

        return SummaryWriter(str(self.folder / "tensorboard"))

    def start(self, config_yaml: str, data: dict[str, Any], world_size: int, step: int) -> None:
        """Writes the configuration and adds an entry to the receipt.

        Raises:
            UnimoError: the folder's receipt is not one of ours, or the disk is full.
        """
        if not self.enabled:
            return
        path = self.folder / "receipt.json"
        try:
            starts = list(json.loads(path.read_text(encoding="utf-8"))["starts"]) if path.exists() else []
        except (ValueError, KeyError, TypeError) as error:
            raise UnimoError(f"{path}: is not a receipt of this program ({error}); choose another run folder") from error
        starts.append(
            {
                "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "command": sys.argv,
                "from_step": step,
                "world_size": world_size,
                "host": platform.node(),
                "python": platform.python_version(),
                "packages": package_versions(),
                "git": git_state(),
                "data": data,
            }
        )
        with refusals(self.folder):
            replace_text(self.folder / "config.yaml", config_yaml)
            replace_text(path, json.dumps({"starts": starts}, indent=1))

    def write(self, values: dict[str, float | int]) -> None:
        """Adds one line; `values` holds `step`. On a full disk it waits."""
        if not self.enabled:
            return
        try:
            self._metrics.add(values)
            if self._scalars is None:
                self._scalars = self._open_scalars()
            for name, value in values.items():
                if name != "step":
                    self._scalars.add_scalar(name, value, values["step"])
        except OSError as error:
            self._scalars = None  # its thread has ended with the error: another file is begun when the disk takes lines again
            self.say(f"WARNING: {self.folder}: step {values['step']} is not yet in the metrics: {error.strerror}")

    def write_event(self, step: int, event: str, values: dict[str, Any]) -> None:
        """Adds a line to the events, on disk when this returns. On a full disk it waits."""
        if not self.enabled:
            return
        line = {"step": step, "event": event, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **values}
        line = {
            key: str(value) if isinstance(value, float) and not math.isfinite(value) else value for key, value in line.items()
        }
        try:
            self._events.add(line)
            self._events.sync()
        except OSError as error:
            self.say(f"WARNING: {self.folder}: step {step} is not yet in the events ({event}): {error.strerror}")

    def attempt(self, what: str, write: Callable[[], object]) -> None:
        """Calls `write`, which writes `what`. A disk that refuses it costs that, not the run."""
        if not self.enabled:
            return
        try:
            write()
        except OSError as error:
            self.say(f"WARNING: {self.folder}: {what} cannot be written: {error.strerror}")

    def say(self, text: str) -> None:
        """Prints for the reader of the job's log."""
        if self.enabled:
            say(f"[{time.strftime('%H:%M:%S')}] {text}")

    def close(self) -> None:
        """Flushes everything to disk. A full disk costs what is not yet there, not the run."""
        self.attempt("the end of the metrics", lambda: self._metrics.close())
        self.attempt("the end of the events", lambda: self._events.close())
        self.attempt("the end of tensorboard/", lambda: self._scalars is None or self._scalars.close())


class SampleLog:
    """The sample ids of every step of one rank, one line a step; empty without `training.log_samples`."""

    def __init__(self, folder: Path, rank: int, enabled: bool) -> None:
        self._lines = _Lines(folder / f"samples-rank{rank:04}.jsonl") if enabled else None

    def write(self, step: int, samples: list[tuple[int, int, int]]) -> None:
        """Adds the samples `(corpus, draw number, index)` of a step. On a full disk it waits."""
        if self._lines is None:
            return
        try:
            self._lines.add({"step": step, "samples": samples})
        except OSError as error:
            say(f"WARNING: {self._lines.path}: step {step} is not yet there: {error.strerror}", error=True)

    def close(self) -> None:
        """Writes what waits. A full disk costs it, not the run."""
        if self._lines is None:
            return
        try:
            self._lines.close()
        except OSError as error:
            say(f"WARNING: {self._lines.path}: the last lines are missing: {error.strerror}", error=True)


@contextmanager
def refusals(folder: Path) -> Iterator[None]:
    """A disk that refuses what a run cannot start without.

    Raises:
        UnimoError: in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise UnimoError(
            f"{folder}: the run cannot start: {error.strerror} ({error.filename or 'logs'}); free some space, or choose "
            "another folder"
        ) from error


def forget_after(folder: Path, step: int) -> None:
    """Drops the lines of steps after `step` from the logs: a resumed run will write them again.

    Lines that a kill left half written are dropped too. Roll backs are kept: the steps that they undid are left out for ever.

    Raises:
        UnimoError: the disk is full.
    """
    for path in [folder / "metrics.jsonl", folder / "events.jsonl", *folder.glob("samples-rank*.jsonl")]:
        if path.exists():
            found = path.read_text(encoding="utf-8")
            kept = "".join(line + "\n" for line in found.splitlines() if _step_of(line) <= step)
            if kept != found:
                with refusals(folder):
                    replace_text(path, kept)


def _step_of(line: str) -> float:
    """0 for a roll back, and infinite for what is no line."""
    try:
        content = json.loads(line)
        return 0 if content.get("event") == ROLLED_BACK else int(content["step"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return math.inf


def was_evaluated(folder: Path, step: int) -> bool:
    """Whether the metrics of a run hold an evaluation after `step` steps."""
    path = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    return any(line["step"] == step and any(name.startswith("eval/") for name in line) for line in lines)


def rolled_back(folder: Path) -> set[int]:
    """The steps of a run that roll backs have undone, counted from 1."""
    path = folder / "events.jsonl"
    events = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    undone = [range(event["to_step"] + 1, event["step"] + 1) for event in events if event["event"] == ROLLED_BACK]
    return {step for steps in undone for step in steps}


def package_versions() -> dict[str, str | None]:
    """Versions of the packages that decide a run's numbers; None: not installed."""
    return {name: _version(name) for name in _PACKAGES}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_state() -> dict[str, str] | None:
    """Commit and changed files of the repository this code stands in, or None outside of one."""
    here = Path(__file__).parent
    try:
        commit = _git(here, "rev-parse", "HEAD")
        return {"commit": commit, "changed": _git(here, "status", "--porcelain")}
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True).stdout.strip()
