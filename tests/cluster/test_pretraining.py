"""`sbatch slurm/pretrain.sbatch` on two nodes: to the end, put back by the time limit, cancelled, a rank killed or asleep."""

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.slurm import Cluster
from tests.life import small_run
from tests.life.small_run import ROOT
from tests.life.test_kill_and_resume import STEPS, without_dropout
from unimo_ds.engine.checkpoint_folder import find_checkpoint, read_state

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]
BATCH = "slurm/pretrain.sbatch"
SECONDS = 90  # of the run that is put back: its signal comes after 60 at most, and the machine may become faster


def weights(run: Path, steps: int) -> bytes:
    checkpoint = find_checkpoint(run / "checkpoints")
    assert checkpoint is not None and read_state(checkpoint)["step"] == steps
    return (checkpoint / "model.safetensors").read_bytes()


def wait_for_lines(run: Path, count: int) -> float:
    """Waits for lines of the log; when they were there."""
    deadline = time.monotonic() + 240
    while len(small_run.metrics(run)) < count:
        assert time.monotonic() < deadline, f"{run}: {len(small_run.metrics(run))} of {count} lines after 4 minutes"
        time.sleep(0.05)
    return time.monotonic()


def steps_that_take(cluster: Cluster, inputs: Path, seconds: float) -> int:
    """How many steps two nodes make in a time, as fast as they are now."""
    config = small_run.write_config(inputs, "pace", steps=50, candidates=True)
    job = cluster.submit(inputs / "pace.out", "--time=15", BATCH, str(config))
    first, last = wait_for_lines(inputs / "pace", 10), wait_for_lines(inputs / "pace", 50)
    assert cluster.wait(job, 60)["JobState"] == "COMPLETED"
    return int(seconds / (last - first) * 40)


def test_a_job_that_its_time_limit_ends_goes_on_and_ends_with_the_same_weights(cluster: Cluster, inputs: Path) -> None:
    steps = steps_that_take(cluster, inputs, SECONDS)
    rare = {"steps": steps, "checkpoint_every": 100_000, "log_every": 10, "candidates": True}
    configs = {name: small_run.write_config(inputs, name, **rare) for name in ("whole", "limited")}
    whole = cluster.submit(inputs / "whole.out", "--time=15", BATCH, str(configs["whole"]))
    ended = cluster.wait(whole, 400)
    said = (inputs / "whole.out").read_text()
    assert ended["JobState"] == "COMPLETED" and ended["NumNodes"] == "2", said
    assert ended["Restarts"] == "0" and "2 ranks" in said and (inputs / "whole/DONE").exists()

    limited = cluster.submit(inputs / "limited.out", "--time=2", "--signal=B:USR1@60", BATCH, str(configs["limited"]))
    wait_for_lines(inputs / "limited", 1)
    configs["limited"].write_text("no: configuration")  # a job that is put back keeps its own
    ended = cluster.wait(limited, 600)
    said = (inputs / "limited.out").read_text()
    assert ended["JobState"] == "COMPLETED" and int(ended["Restarts"]) >= 1, said
    assert "asked to stop (SIGUSR1)" in said and "requeue: the run goes on" in said and "resumed at step" in said
    assert weights(inputs / "limited", steps) == weights(inputs / "whole", steps)


@pytest.fixture(scope="module")
def by_hand(inputs: Path) -> list[dict[str, float]]:
    """The curve of two ranks that no launcher started."""
    small_run.run(comparable(inputs, "by_hand"), 2)
    return small_run.losses(inputs / "by_hand")


def comparable(inputs: Path, run: str, **training: Any) -> Path:
    config = small_run.write_config(inputs, run, candidates=True, steps=STEPS, **training)
    without_dropout(config)
    return config


def test_a_cancelled_job_saves_and_goes_on_on_one_node_at_another_zero_stage(
    cluster: Cluster, inputs: Path, by_hand: list[dict[str, float]]
) -> None:
    config = comparable(inputs, "cancelled", checkpoint_every=100_000)
    job = cluster.submit(inputs / "cancelled.out", "--time=15", "--cpus-per-task=2", BATCH, str(config))
    wait_for_lines(inputs / "cancelled", 5)
    assert "CPUs=4 " in cluster.command("scontrol", "show", "step", f"{job}.0")
    cluster.command("scancel", str(job))
    assert cluster.wait(job, 60)["JobState"] == "CANCELLED"
    said = (inputs / "cancelled.out").read_text()
    checkpoint = find_checkpoint(inputs / "cancelled/checkpoints")
    assert checkpoint is not None, said
    saved = read_state(checkpoint)["step"]
    assert 5 <= saved < STEPS and "requeue" not in said and "restart" not in said, said

    stage = f"training.deepspeed={ROOT / 'ds_configs/zero1.json'}"
    job = cluster.submit(inputs / "cancelled.out", "--time=15", "--nodes=1", BATCH, str(config), stage)
    assert cluster.wait(job, 200)["JobState"] == "COMPLETED", (inputs / "cancelled.out").read_text()
    said = (inputs / "cancelled.out").read_text()
    assert f"resumed at step {saved}" in said and "1 ranks, ZeRO stage 1" in said
    curve = small_run.losses(inputs / "cancelled")
    assert curve[:saved] == by_hand[:saved] and len(curve) == STEPS
    for ours, theirs in zip(curve, by_hand, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)


def test_a_killed_rank_is_named_and_the_job_goes_on_in_its_allocation(
    cluster: Cluster, inputs: Path, by_hand: list[dict[str, float]]
) -> None:
    config, run = comparable(inputs, "killed", checkpoint_every=8), inputs / "killed"
    job = cluster.submit(inputs / "killed.out", "--time=15", BATCH, str(config))
    wait_for_lines(run, 12)
    os.kill(json.loads((run / "ranks/rank-0001.json").read_text())["pid"], signal.SIGKILL)
    ended = cluster.wait(job, 200)
    said = (inputs / "killed.out").read_text()
    assert ended["JobState"] == "COMPLETED" and ended["Restarts"] == "0", said
    assert re.search(r"restart 1 of 3, from step-000000(08|16|24|32): exit code \d+, .*a rank has ended: rank 1 \(", said), said
    assert small_run.losses(run) == by_hand


def test_a_rank_that_sleeps_is_named_and_brings_the_step_down(cluster: Cluster, inputs: Path) -> None:
    config = small_run.write_config(inputs, "sleeps", steps=100_000, timeouts={"start_up": 30, "step": 8})
    script = f'source slurm/common.sh; srun --kill-on-bad-exit=1 "$PYTHON" -m tests.life.faulty_worker sleeps {config}'
    job = cluster.submit(inputs / "sleeps.out", "--time=15", "--nodes=2", f"--wrap=exec bash -c '{script}'")
    wait_for_lines(inputs / "sleeps", 5)
    assert cluster.wait(job, 60)["JobState"] == "FAILED"
    said = (inputs / "sleeps.out").read_text()
    assert "after step 5, step did not end within" in said and "at sleeping (life/faulty_worker.py:" in said


def test_a_waiting_job_keeps_code_and_configuration(cluster: Cluster, inputs: Path, tmp_path: Path) -> None:
    """Both are spoilt while it is held back."""
    repository = tmp_path / "repository"
    for name in ("unimo_ds", "slurm", "ds_configs"):
        shutil.copytree(ROOT / name, repository / name)
    config = small_run.write_config(inputs, "waiting", steps=3)
    said = cluster.command(
        "slurm/submit.sh", "--parsable", "--hold", f"--output={inputs}/waiting.out", BATCH, str(config), folder=repository
    )
    job = int(said.split()[-1])
    config.write_text("no: configuration")
    for name in ("pretrain", "doctor/command", "supervision", "cli"):
        (repository / f"unimo_ds/{name}.py").write_text("raise SystemExit('edited code')")
    (repository / "slurm/common.sh").write_text("exit 3")
    cluster.command("scontrol", "release", str(job))
    assert cluster.wait(job, 200)["JobState"] == "COMPLETED", (inputs / "waiting.out").read_text()
    assert (inputs / "waiting/DONE").read_text() == "3\n"
