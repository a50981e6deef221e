"""Every file of `ds_configs/` on two ranks: goes on from a checkpoint of zero0, leaves a bad step out, has zero0's numbers."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from torch import Tensor

from tests.life import small_run
from tests.life.bad_picture import INFINITE, events, spoil, steps_of
from unimo_ds.engine.checkpoint_folder import checkpoint_name

pytestmark = pytest.mark.life
STEPS, SAVED = INFINITE + 1, 4
FILES = sorted(path.stem for path in (small_run.ROOT / "ds_configs").glob("*.json") if path.stem != "zero0")


@pytest.fixture(scope="module")
def start(many_images: Path) -> Path:
    """A run of zero0 to the end. What DeepSpeed compiles is compiled, which takes minutes on a new machine."""
    script = "from deepspeed.ops import op_builder; op_builder.CPUAdamBuilder().load(); op_builder.AsyncIOBuilder().load()"
    subprocess.run([sys.executable, "-c", script], env={**small_run.environment(), "DS_ACCELERATOR": "cpu"}, check=True)
    run(many_images, "zero0")
    return many_images / "by_zero0"


def run(folder: Path, file: str) -> None:
    """Runs on two ranks. On NVMe single matrices are large enough to be moved there, and do not begin at a disk's blocks."""
    training = {"steps": STEPS, "checkpoint_every": SAVED, "deepspeed": str(small_run.ROOT / f"ds_configs/{file}.json")}
    config = small_run.write_config(folder, f"by_{file}", **training)
    overrides = ["model.hidden_size=368", "model.layers=2", f"training.offload_folder={folder / 'nvme'}"]
    small_run.run(config, 2, *overrides, *spoil(folder, INFINITE, np.inf))


def state(run: Path) -> dict[str, Tensor]:
    """Weights and moments at the end."""
    checkpoint = run / "checkpoints" / checkpoint_name(STEPS)
    return {name: tensor for path in checkpoint.glob("*.safetensors") for name, tensor in load_file(path).items()}


@pytest.mark.parametrize("file", FILES)
def test_every_file_goes_on_from_zero0_to_zero0s_numbers(start: Path, file: str) -> None:
    folder, ours = start.parent, start.with_name(f"by_{file}")
    shutil.copytree(start, ours)
    shutil.rmtree(ours / "checkpoints" / checkpoint_name(STEPS))
    run(folder, file)
    (event,) = events(ours)
    assert (event["step"], event["event"], event["cause"]) == (INFINITE, "left out", "its loss is nan")
    assert event["loss"] == "nan" and len(event["samples"]) == 2
    drawn = sorted((corpus, number) for rank in event["samples"] for corpus, number, _ in rank)
    assert drawn == small_run.samples(ours)[INFINITE]
    assert steps_of(ours) == [step for step in range(1, STEPS + 1) if step != INFINITE]
    saved = json.loads((ours / "checkpoints" / checkpoint_name(STEPS) / "state.json").read_text())
    assert (saved["step"], saved["guards"]["updates"]) == (STEPS, STEPS - 1)
    theirs = state(start)
    for name, tensor in state(ours).items():
        scale = float(theirs[name].abs().max())
        np.testing.assert_allclose(tensor, theirs[name], rtol=0, atol=1e-4 * scale, err_msg=name)
    moved = list((folder / "nvme").rglob("*.swp")) if file == "zero3_nvme" else None
    assert moved is None or len(moved) >= 6  # of each rank: weights and two moments
