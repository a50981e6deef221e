"""The run folder as a receipt: resolved configuration, code, packages, data, and what was measured at each step.

config.yaml         the resolved configuration, a valid input of the command that made it
receipt.json        command, git state, packages, data manifests, one entry a start
metrics.jsonl       one object a line: a logged step, or an evaluation
events.jsonl        one object a line: a step that was left out, or a roll back, with the sample ids of each rank; damage of a
                    checkpoint
tensorboard/        the same numbers as events
samples-rank*.jsonl (training.log_samples) the sample ids of every step
checkpoints/        see `unimo_ds.engine.checkpoint`
ranks/              see `unimo_ds.engine.watch`
"""

import json
import math
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from unimo_ds.errors import UnimoError
from unimo_ds.files import replace_text

LEFT_OUT, ROLLED_BACK, DAMAGED = "left out", "rolled back", "checkpoint damaged"  # kinds of events
_PACKAGES = ("torch", "deepspeed", "transformers", "numpy", "lmdb", "triton", "apex")


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
        from torch.utils.tensorboard import SummaryWriter  # a second of import, on one rank only

        folder.mkdir(parents=True, exist_ok=True)
        self._metrics = (folder / "metrics.jsonl").open("a", encoding="utf-8")
        self._events = SummaryWriter(str(folder / "tensorboard"))

    def start(self, config_yaml: str, data: dict[str, Any], world_size: int, step: int) -> None:
        """Writes the configuration and adds an entry to the receipt.

        Raises:
            UnimoError: the folder's receipt is not one of ours.
        """
        if not self.enabled:
            return
        path = self.folder / "receipt.json"
        try:
            starts = list(json.loads(path.read_text(encoding="utf-8"))["starts"]) if path.exists() else []
        except (ValueError, KeyError, TypeError) as error:
            raise UnimoError(f"{path}: is not a receipt of this program ({error}); choose another run folder") from error
        (self.folder / "config.yaml").write_text(config_yaml, encoding="utf-8")
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
        replace_text(path, json.dumps({"starts": starts}, indent=1))

    def write(self, values: dict[str, float | int]) -> None:
        """Adds one line; `values` holds `step`. A full disk costs the line, not the run."""
        if not self.enabled:
            return
        try:
            self._metrics.write(json.dumps(values) + "\n")
            self._metrics.flush()
            for name, value in values.items():
                if name != "step":
                    self._events.add_scalar(name, value, values["step"])
        except OSError as error:
            self.say(f"WARNING: {self.folder}: step {values['step']} is missing in the metrics: {error.strerror}")

    def write_event(self, step: int, event: str, values: dict[str, Any]) -> None:
        """Adds a line to the events, on disk when this returns. A full disk costs the line, not the run."""
        if not self.enabled:
            return
        line = {"step": step, "event": event, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **values}
        line = {
            key: str(value) if isinstance(value, float) and not math.isfinite(value) else value for key, value in line.items()
        }
        try:
            with (self.folder / "events.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            self.say(f"WARNING: {self.folder}: step {step} is missing in the events ({event}): {error.strerror}")

    def say(self, text: str) -> None:
        """Prints for the reader of the job's log."""
        if self.enabled:
            print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)

    def close(self) -> None:
        """Flushes everything to disk. A full disk costs what is not yet there, not the run."""
        if not self.enabled:
            return
        for log in (self._metrics, self._events):
            try:
                log.close()
            except OSError as error:
                self.say(f"WARNING: {self.folder}: the last metrics are missing: {error.strerror}")


class SampleLog:
    """The sample ids of every step of one rank, one line a step; empty without `training.log_samples`."""

    def __init__(self, folder: Path, rank: int, enabled: bool) -> None:
        self._file = None
        if enabled:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = (folder / f"samples-rank{rank:04}.jsonl").open("a", encoding="utf-8")

    def write(self, step: int, samples: list[tuple[int, int, int]]) -> None:
        """Adds the samples `(corpus, draw number, index)` of a step. A full disk costs the line, not the run."""
        if self._file is None:
            return
        try:
            self._file.write(json.dumps({"step": step, "samples": samples}) + "\n")
            self._file.flush()
        except OSError as error:
            print(f"WARNING: {self._file.name}: step {step} is missing: {error.strerror}", file=sys.stderr, flush=True)


def forget_after(folder: Path, step: int) -> None:
    """Drops the lines of steps after `step` from the logs: a resumed run will write them again.

    Lines that a kill left half written are dropped too. Roll backs are kept: the steps that they undid are left out for ever.
    """
    for path in [folder / "metrics.jsonl", folder / "events.jsonl", *folder.glob("samples-rank*.jsonl")]:
        if path.exists():
            kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
            replace_text(path, "".join(line + "\n" for line in kept))


def _step_of(line: str) -> float:
    """0 for a roll back, and infinite for what is no line."""
    try:
        content = json.loads(line)
        return 0 if content.get("event") == ROLLED_BACK else int(content["step"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return math.inf


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
