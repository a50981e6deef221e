"""`unimo-ds supervise` over a real launcher, a rank of which is killed."""

import json
import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.life import small_run
from tests.life.launchers import BIN
from unimo_ds.chaos.lives import commands

pytestmark = pytest.mark.life
STEPS, EVERY = 24, 6


def test_a_killed_rank_is_a_restart_that_changes_no_bit(inputs: Path) -> None:
    whole, supervised = (
        small_run.write_config(inputs, name, steps=STEPS, checkpoint_every=EVERY) for name in ("unsupervised", "supervised")
    )
    small_run.run(whole, 2)
    folder = inputs / "supervised"
    ((launcher, variables),) = commands("torchrun", 2, "unimo_ds.pretrain", str(supervised))
    words = [str(BIN / "unimo-ds"), "supervise", str(folder), "--max-restarts", "2", "--", *launcher]
    environment = {**small_run.environment(), **variables}
    piped: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    process = subprocess.Popen(words, env=environment, **piped)
    try:
        deadline = time.monotonic() + 120
        while len(small_run.metrics(folder)) < EVERY + 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(json.loads((folder / "ranks/rank-0001.json").read_text())["pid"], signal.SIGKILL)
        (output,) = small_run.finish([process])
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0 and (folder / "DONE").exists(), output
    assert output.count("restart 1 of 2, from step-") == 1 and "restart 2" not in output, output
    assert len(json.loads((folder / "receipt.json").read_text())["starts"]) == 2
    assert small_run.losses(folder) == small_run.losses(inputs / "unsupervised")
