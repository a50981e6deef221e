"""Runs as processes of their own, one thread each, several at the same time; and the words that start one."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


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


def cores() -> int:
    """How many of them this process may use."""
    return len(os.sched_getaffinity(0))
