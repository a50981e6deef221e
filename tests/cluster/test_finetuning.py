"""`sbatch slurm/finetune.sbatch` on two nodes."""

from pathlib import Path

import pytest

from tests.cluster.slurm import Cluster
from tests.life.test_finetuning import logged
from tests.tasks.small_task import write_inputs

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


def test_a_task_is_learned_to_its_end_and_scored(cluster: Cluster, tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path)
    config = inputs.config("sentences", inputs.sentences())
    job = cluster.submit(tmp_path / "job.out", "--time=15", "--nodes=2", "slurm/finetune.sbatch", str(config), "seed=3")
    ended = cluster.wait(job, 300)
    said = (tmp_path / "job.out").read_text()
    assert ended["JobState"] == "COMPLETED" and "2 ranks" in said, said
    assert (tmp_path / "sentences/DONE").exists()
    assert logged(tmp_path / "sentences", "eval/dev_accuracy")[-1] > 0.5, said  # of four classes
