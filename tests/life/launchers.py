"""What a user types to start two ranks: by `deepspeed`, `torchrun`, `srun`, or python alone."""

import subprocess
import sys
from pathlib import Path

from tests.life import small_run
from unimo_ds.chaos.lives import commands

LAUNCHERS = ("deepspeed", "torchrun", "srun", "python")
BIN = Path(sys.executable).parent


def start_by(launcher: str, module: str, *words: str) -> list[subprocess.Popen[str]]:
    """Starts them, each in a process group of its own."""
    return [
        subprocess.Popen(
            command,
            cwd=small_run.ROOT,
            env={**small_run.environment(), **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        for command, variables in commands(launcher, 2, module, *words)
    ]


def call(words: list[str], **variables: str) -> str:
    """Runs a command to its end; what it printed.

    Raises:
        AssertionError: it failed, with that.
    """
    done = subprocess.run(
        words, cwd=small_run.ROOT, env={**small_run.environment(), **variables}, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
