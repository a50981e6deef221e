"""Runs as processes of their own, one thread each, several at the same time; and the words that start one."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_LAUNCHERS = {"torchrun", "torch.distributed.run", "deepspeed", "deepspeed.launcher.runner", "deepspeed.launcher.launch"}
_WORDS = 4  # python, two options, and what it runs: behind them are words of the user


def without_local_rank(words: Sequence[str]) -> list[str]:
    """What a user typed: `deepspeed` gives every rank a word of its own, which the environment says as well."""
    return [word for word in words if not word.startswith("--local_rank")]


def run_to_end(module: str, words: Sequence[str], folder: Path) -> bool:
    """Starts `python -m module words` and waits for it; what it prints is added to `log.txt` in its folder.

    Returns:
        Whether the run has left the mark of its end: a teardown may fail after all work is done.
    """
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (folder / "log.txt").open("ab") as log:
        command = [sys.executable, "-m", module, *words]
        subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    return is_finished(folder)


def is_finished(folder: Path) -> bool:
    """Whether the run in `folder` has ended."""
    return (folder / "DONE").exists()


def has_ended(pid: int) -> bool:
    """Whether a process of this machine is gone, or waits to be buried; False where the system does not tell."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0]
    except OSError:
        return Path("/proc/self/stat").exists()
    return state in "ZX"


def launchers() -> list[int]:
    """The processes of torchrun or `deepspeed` that this one was started by, the nearest first."""
    found = []
    pid = os.getppid()
    while pid > 1:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8").split("\0")
            parent = int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[1])
        except OSError:
            break
        if _LAUNCHERS & {Path(word).name for word in words[:_WORDS]}:
            found.append(pid)
        pid = parent
    return found


def cores() -> int:
    """How many of them this process may use."""
    return len(os.sched_getaffinity(0))
