"""`sbatch slurm/finetune.sbatch` on two nodes."""

from pathlib import Path

import pytest

from tests.cluster.slurm import Cluster
from tests.cluster.test_arrays import wait_until_there
from tests.life import small_run
from tests.life.test_finetuning import MODULE, logged
from tests.tasks.small_task import write_inputs

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


def test_a_task_is_trained_to_its_end_though_the_time_was_up_while_the_doctor_looked(cluster: Cluster, tmp_path: Path) -> None:
    """With the losses and scores of ranks that no launcher started."""
    inputs = write_inputs(tmp_path)
    config = inputs.config("by_slurm", inputs.vqa(), epochs=3)
    words = ["--time=15", "--nodes=2", "--export=ALL,DOCTOR=yes", "slurm/finetune.sbatch", str(config)]
    job = cluster.submit(tmp_path / "job.out", *words)
    wait_until_there(tmp_path / "by_slurm", "snapshots/job-*")
    cluster.command("scancel", "--batch", "--signal=USR1", str(job))
    ended = cluster.wait(job, 300)
    said = (tmp_path / "job.out").read_text()
    assert ended["JobState"] == "COMPLETED" and ended["Restarts"] == "1" and "2 ranks" in said, said
    assert said.count("unimo-ds doctor: ") == 2 and "requeue: the run goes on" in said
    assert (tmp_path / "by_slurm/DONE").exists()
    small_run.run(config, 2, f"folder={tmp_path / 'by_hand'}", module=MODULE)
    for key in ("loss", "eval/dev_accuracy"):
        values = logged(tmp_path / "by_slurm", key)
        assert len(values) >= 3 and values == logged(tmp_path / "by_hand", key), said
