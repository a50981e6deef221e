"""Extraction through every launcher: each rank writes a shard of its own, and one store comes out."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.life import small_run
from tests.life.launchers import BIN, call
from tests.vision.conftest import save_picture
from unimo_ds.data.store import RegionStore, shard_of

pytestmark = pytest.mark.life
IMAGES = 12


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("launched") / "images"
    for number in range(IMAGES):
        save_picture(folder / f"{number}.png", number)
    return folder


@pytest.fixture(scope="module")
def by_one_process(images: Path) -> RegionStore:
    out = images.parent / "one"
    call([sys.executable, "tools/extract_features.py", str(images), "--out", str(out)])
    return RegionStore(out)


def assert_same_store(out: Path, expected: RegionStore, shards: int = 2) -> None:
    store = RegionStore(out)
    assert [shard["shard"] for shard in store.manifest["shards"]] == list(range(shards))
    assert store.manifest["hashed_over"] == [shards] and len(store) == IMAGES
    for shard in store.manifest["shards"]:
        assert shard["records"] == sum(shard_of(key, shards) == shard["shard"] for key in expected.keys())
    for key in expected.keys():
        ours, theirs = store.get(key), expected.get(key)
        np.testing.assert_allclose(ours.boxes_R4, theirs.boxes_R4, atol=1e-3)
        np.testing.assert_allclose(ours.features_RF.astype("f4"), theirs.features_RF.astype("f4"), atol=2e-3, rtol=2e-3)


def test_deepspeed_which_appends_an_argument_of_its_own(images: Path, by_one_process: RegionStore) -> None:
    out = images.parent / "deepspeed"
    port = str(small_run.free_port())
    words = [str(BIN / "deepspeed"), "--num_gpus", "2", "--master_port", port, "tools/extract_features.py", str(images)]
    printed = call([*words, "--out", str(out)], PATH=f"{BIN}{os.pathsep}{os.environ['PATH']}")
    assert "(finished)" in printed and "--local_rank=1" in printed
    assert_same_store(out, by_one_process)


def test_torchrun(images: Path, by_one_process: RegionStore) -> None:
    out = images.parent / "torchrun"
    port = str(small_run.free_port())
    run = ["--nproc_per_node", "2", "--master_port", port, "tools/extract_features.py", str(images), "--out", str(out)]
    assert "(finished)" in call([sys.executable, "-m", "torch.distributed.run", *run])
    assert_same_store(out, by_one_process)


def test_tasks_of_srun_in_an_array(images: Path, by_one_process: RegionStore) -> None:
    """Two elements of two tasks each, one after the other, as slurm/extract_features.sbatch starts them."""
    out = images.parent / "srun"
    words = [sys.executable, "tools/extract_features.py", str(images), "--out", str(out), "--shards", "2"]
    outputs = []
    for element in range(2):
        tasks = [
            subprocess.Popen(
                [*words, "--shard", str(element)],
                cwd=small_run.ROOT,
                env={**small_run.environment(), "SLURM_NTASKS": "2", "SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for task in range(2)
        ]
        outputs += small_run.finish(tasks)
        assert [task.returncode for task in tasks] == [0, 0], "\n".join(outputs)
    assert sum("(finished)" in output for output in outputs[2:]) >= 1
    assert not any("(finished)" in output for output in outputs[:2])
    assert_same_store(out, by_one_process, shards=4)


def test_verify_compares_with_reference_features_and_its_answer_is_the_exit_code(
    images: Path, by_one_process: RegionStore
) -> None:
    words = [
        sys.executable,
        "tools/extract_features.py",
        str(images),
        "--out",
        str(images.parent / "fewer"),
        "--max-boxes",
        "11",
    ]
    golden = str(by_one_process.folder)
    assert "the same" in call([*words[:3], "--out", golden, "--verify", golden])
    answer = subprocess.run(
        [*words, "--min-boxes", "11", "--verify", golden],
        cwd=small_run.ROOT,
        env=small_run.environment(),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert answer.returncode == 1 and "(finished)" in answer.stdout and "Traceback" not in answer.stderr, answer
    assert "not the same" in answer.stdout or "differ" in answer.stdout
