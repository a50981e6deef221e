"""`sbatch slurm/finetune.sbatch` on two nodes."""

from pathlib import Path

import pytest

from tests.cluster.slurm import Cluster
from tests.life import small_run
from tests.life.test_finetuning import MODULE, logged
from tests.tasks.small_task import write_inputs

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


def test_a_task_is_trained_to_its_end_and_scored_as_by_ranks_that_no_launcher_started(cluster: Cluster, tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path)
    config = inputs.config("by_slurm", inputs.vqa(), epochs=3)
    job = cluster.submit(tmp_path / "job.out", "--time=15", "--nodes=2", "slurm/finetune.sbatch", str(config))
    ended = cluster.wait(job, 300)
    said = (tmp_path / "job.out").read_text()
    assert ended["JobState"] == "COMPLETED" and "2 ranks" in said, said
    assert (tmp_path / "by_slurm/DONE").exists()
    small_run.run(config, 2, f"folder={tmp_path / 'by_hand'}", module=MODULE)
    for key in ("loss", "eval/dev_accuracy"):
        values = logged(tmp_path / "by_slurm", key)
        assert len(values) >= 3 and values == logged(tmp_path / "by_hand", key), said
