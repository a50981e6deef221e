"""`sbatch slurm/pretrain.sbatch` on two nodes: to the end, put back by the time limit, and cancelled."""

import shutil
import time
from pathlib import Path

import pytest

from tests.cluster.slurm import Cluster
from tests.life import small_run
from tests.life.small_run import ROOT
from unimo_ds.engine.checkpoint_folder import find_checkpoint, read_state

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
BATCH = "slurm/pretrain.sbatch"
STEPS = 1000  # longer than the time limit of the job that is put back


def weights(run: Path) -> bytes:
    checkpoint = find_checkpoint(run / "checkpoints")
    assert checkpoint is not None and read_state(checkpoint)["step"] == STEPS
    return (checkpoint / "model.safetensors").read_bytes()


def test_a_job_that_its_time_limit_ends_goes_on_and_ends_with_the_same_weights(cluster: Cluster, inputs: Path) -> None:
    rare = {"steps": STEPS, "checkpoint_every": 10_000, "log_every": 10, "candidates": True}
    configs = {name: small_run.write_config(inputs, name, **rare) for name in ("whole", "limited")}
    whole = cluster.submit(inputs / "whole.out", "--time=15", BATCH, str(configs["whole"]))
    ended = cluster.wait(whole, 400)
    said = (inputs / "whole.out").read_text()
    assert ended["JobState"] == "COMPLETED" and ended["NumNodes"] == "2", said
    assert ended["Restarts"] == "0" and "2 ranks" in said and (inputs / "whole/DONE").exists()

    limited = cluster.submit(inputs / "limited.out", "--time=2", "--signal=B:USR1@60", BATCH, str(configs["limited"]))
    ended = cluster.wait(limited, 600)
    said = (inputs / "limited.out").read_text()
    assert ended["JobState"] == "COMPLETED" and int(ended["Restarts"]) >= 1, said
    assert "asked to stop (SIGUSR1)" in said and "requeue: the run goes on" in said and "resumed at step" in said
    assert weights(inputs / "limited") == weights(inputs / "whole")


def test_a_cancelled_job_saves(cluster: Cluster, inputs: Path) -> None:
    config = small_run.write_config(inputs, "cancelled", steps=100_000, checkpoint_every=100_000)
    job = cluster.submit(inputs / "cancelled.out", "--time=15", BATCH, str(config))
    deadline = time.monotonic() + 120
    while len(small_run.metrics(inputs / "cancelled")) < 5:
        assert time.monotonic() < deadline, (inputs / "cancelled.out").read_text()
        time.sleep(0.2)
    cluster.command("scancel", str(job))
    assert cluster.wait(job, 60)["JobState"] == "CANCELLED"
    said = (inputs / "cancelled.out").read_text()
    checkpoint = find_checkpoint(inputs / "cancelled/checkpoints")
    assert checkpoint is not None and read_state(checkpoint)["step"] >= 5, said
    assert "requeue" not in said


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
    (repository / "unimo_ds/pretrain.py").write_text("raise SystemExit('edited code')")
    (repository / "slurm/common.sh").write_text("exit 3")
    cluster.command("scontrol", "release", str(job))
    assert cluster.wait(job, 200)["JobState"] == "COMPLETED", (inputs / "waiting.out").read_text()
    assert (inputs / "waiting/DONE").read_text() == "3\n"
