"""A rank that never joins, sleeps, is stopped or killed: the others end soon, and one of them says which it was."""

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.life import small_run
from tests.life.launchers import LAUNCHERS, start_by
from tests.life.ranks import Process

pytestmark = pytest.mark.life
START_UP, STEP = 20, 8  # seconds; ranks may start some seconds apart on a busy machine


def write_config(inputs: Path, run: str) -> Path:
    return small_run.write_config(inputs, run, steps=100_000, timeouts={"start_up": START_UP, "step": STEP})


@pytest.fixture
def started() -> Iterator[list[Process]]:
    """Where a test puts its processes; what is left of them, and of what they started, is killed."""
    processes: list[Process] = []
    yield processes
    for process in processes:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        process.communicate(timeout=60)


def verdict(run: Path, seconds: float) -> str:
    """What the first rank that gave up has said, within so many seconds."""
    path, deadline = run / "ranks/failure.txt", time.monotonic() + seconds
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert path.exists(), [path.read_text() for path in (run / "ranks").glob("*.json")]
    time.sleep(0.2)
    return path.read_text()


def wait_for_step(run: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while len(small_run.metrics(run)) < step:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("fault", ["absent", "sleeps"])
def test_every_launcher_has_the_rank_named(inputs: Path, started: list[Process], launcher: str, fault: str) -> None:
    run = inputs / f"{fault}_{launcher}"
    started += start_by(launcher, "tests.life.faulty_worker", fault, str(write_config(inputs, run.name)))
    if fault == "absent":
        said = verdict(run, 60 + START_UP)
        where = "rank 1 on node 1 of node[1-2]" if launcher == "srun" else "rank 1 on node 0"
        assert "1 of 2 ranks did not join within" in said and where in said
    else:
        wait_for_step(run, 5)
        said = verdict(run, 2 * STEP)
        assert "after step 5, step did not end within" in said and f"training.timeouts.step = {STEP}" in said
        assert "does not go on while the others wait: rank 1 (" in said and "at sleeping (life/faulty_worker.py:" in said
        if launcher not in ("deepspeed", "torchrun"):  # which end rank 1 as soon as rank 0 has given up
            started[1].wait(timeout=STEP)
            assert "in sleeping" in (run / "ranks/rank-0001.stacks").read_text()
    output = started[0].communicate(timeout=60)[0]
    assert started[0].returncode != 0
    if launcher in ("deepspeed", "torchrun"):
        assert output.count(said.strip()) == 1, output


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_rank_is_named_by_the_other(inputs: Path, started: list[Process], rank: int) -> None:
    run = inputs / f"stopped_{rank}"
    started += small_run.start(write_config(inputs, run.name), 2)
    wait_for_step(run, 4)
    started[rank].send_signal(signal.SIGSTOP)
    output = started[1 - rank].communicate(timeout=3 * STEP)[0]
    assert started[1 - rank].returncode == 1
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert f"no sign of life for {STEP} s of rank {rank} (" in line
    # Steps are shorter than the time between two signs of life: the last one may be from any phase since the first step.
    assert re.search(rf"pid {started[rank].pid}\), last seen in (first_step|step|save) after step \d+, at ", line), line
    assert "Traceback" not in output


def test_a_killed_rank_ends_the_others_at_once_and_is_named(inputs: Path, started: list[Process]) -> None:
    run = inputs / "killed"
    started += small_run.start(write_config(inputs, run.name), 2)
    wait_for_step(run, 4)
    started[1].send_signal(signal.SIGKILL)
    output = started[0].communicate(timeout=STEP)[0]
    assert started[0].returncode == 1
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert "a rank has ended: rank 1 (" in line and f"pid {started[1].pid})" in line
    assert "Traceback" not in output
    assert "Traceback" in (run / "ranks/rank-0000.traceback").read_text()
