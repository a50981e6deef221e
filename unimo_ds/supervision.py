"""Starts a run's launcher again when it has failed, whole: an agent that replaces single ranks in place is not relied on.

The exit code of a launcher says little (1 for a mistyped key and for a lost machine alike). What the run folder says decides:
whether the run has ended, whether a checkpoint was added, whether training had begun.
"""

import json
import re
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from unimo_ds import errors
from unimo_ds.errors import ConfigError
from unimo_ds.processes import is_finished

_FORWARDED = (signal.SIGTERM, signal.SIGUSR1)  # an interrupt of the terminal reaches the launcher by itself


@dataclass(frozen=True)
class _Traces:
    """What a run folder shows, to be compared with what it showed before."""

    starts: int
    newest: str
    failure: float  # when the cause of a failure was written
    request: float  # when the run noted that it was asked to stop

    @staticmethod
    def of(folder: Path) -> "_Traces":
        receipt, latest = folder / "receipt.json", folder / "checkpoints/latest"
        starts = len(json.loads(receipt.read_text(encoding="utf-8"))["starts"]) if receipt.exists() else 0
        newest = latest.read_text(encoding="utf-8").strip() if latest.exists() else ""
        return _Traces(starts, newest, _written(folder / "ranks/failure.txt"), _written(folder / "REQUEUE"))


def _written(file: Path) -> float:
    return file.stat().st_mtime if file.exists() else 0.0


def supervise(folder: Path, command: Sequence[str], max_restarts: int) -> int:
    """Runs a launcher until the run in `folder` has ended, and starts it again where that can help.

    It can after a failure that left a new checkpoint, and once after one that left none, unless training never began (a wrong
    key, missing data). A run that was asked to stop is left to who asked.

    Args:
        folder: of the run.
        command: the launcher with its words, as typed without supervision.
        max_restarts: how often it is started again, at most.

    Returns:
        0 if the run has ended; else the launcher's exit code, also where it was asked to stop.

    Raises:
        ConfigError: the launcher cannot be started.
    """
    fruitless = restarts = 0
    while True:
        before, finished = _Traces.of(folder), is_finished(folder)
        code, asked = _run(command)
        if is_finished(folder) and (code == 0 or not finished):
            return 0
        after = _Traces.of(folder)
        # Ranks whose launcher is killed save and leave as if they had been asked to.
        if asked or (after.request > before.request and code != -signal.SIGKILL):
            return code
        named = (folder / "ranks/failure.txt").read_text(encoding="utf-8").strip() if after.failure > before.failure else ""
        cause = f"exit code {code}" + (f", {named}" if named else "")
        killed = code < 0 or code > 128
        began = after.starts > before.starts or ((named or killed) and not _is_of_the_user(named))
        fruitless = 0 if after.newest != before.newest else fruitless + 1
        if not began:
            reason = "training had not begun"
        elif fruitless > 1:
            reason = "twice in a row no checkpoint was added"
        elif restarts == max_restarts:
            reason = f"--max-restarts {max_restarts}"
        else:
            restarts += 1
            goes_on = f"from {after.newest}" if after.newest else "from the beginning"
            print(f"restart {restarts} of {max_restarts}, {goes_on}: {cause}", flush=True)
            continue
        print(f"not started again ({reason}): {cause}", flush=True)
        return code


def _is_of_the_user(cause: str) -> bool:
    """Whether the rank that the others missed had ended with an error that is the user's to mend."""
    ended = re.search(r"ended with (\w+):", cause)
    return ended is not None and hasattr(errors, ended[1])


def _run(command: Sequence[str]) -> tuple[int, bool]:
    """The exit code, and whether this process was asked to stop meanwhile; the launcher is asked too."""
    asked: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def forward(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        if process is not None and number != signal.SIGINT:
            process.send_signal(number)

    previous = {number: signal.signal(number, forward) for number in (*_FORWARDED, signal.SIGINT)}
    try:
        process = subprocess.Popen(command)
        for number in asked:  # which came before there was anybody to tell
            process.send_signal(number)
        return process.wait(), bool(asked)
    except OSError as error:
        raise ConfigError(
            f"{command[0]}: cannot be started: {error.strerror}; give the launcher with its words after --"
        ) from error
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
