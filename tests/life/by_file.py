"""Runs of the DeepSpeed files: each goes on from a checkpoint of zero0's run, meets a bad picture, and ends."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.life import small_run
from tests.life.bad_picture import INFINITE, spoil
from unimo_ds.engine.checkpoint_folder import checkpoint_name

STEPS, SAVED = INFINITE + 1, 4
WORLD = {"zeropp": 4}  # others: 2
# On NVMe single matrices are large enough to be moved there, and do not begin at a disk's blocks. Without dropout any number of
# ranks has the same numbers.
MODEL = ["model.hidden_size=368", "model.layers=1", "model.dropout=0", "model.attention_dropout=0"]
COMPILE = "from deepspeed.ops import op_builder; op_builder.CPUAdamBuilder().load(); op_builder.AsyncIOBuilder().load()"


def run_by_file(folder: Path, file: str) -> Path:
    """Runs `ds_configs/FILE.json` on the inputs in `folder` to the end; of all but zero0, zero0's run must be there.

    What DeepSpeed compiles for offload is compiled before, which takes minutes on a new machine. Of zeropp, the groups of ranks
    that share a node are of two.
    """
    content = json.loads((small_run.ROOT / f"ds_configs/{file}.json").read_text())
    if "zero_hpz_partition_size" in content["zero_optimization"]:
        content["zero_optimization"]["zero_hpz_partition_size"] = 2
    if "offload_optimizer" in content["zero_optimization"]:
        compiling = {**small_run.environment(), "DS_ACCELERATOR": "cpu"}
        subprocess.run([sys.executable, "-c", COMPILE], env=compiling, check=True)
    run, deepspeed = folder / f"by_{file}", folder / f"{file}.json"
    deepspeed.write_text(json.dumps(content))
    if file != "zero0":
        shutil.copytree(folder / "by_zero0", run)
        shutil.rmtree(run / "checkpoints" / checkpoint_name(STEPS))
    training = {"steps": STEPS, "checkpoint_every": SAVED, "deepspeed": str(deepspeed), "offload_folder": str(folder / "nvme")}
    config = small_run.write_config(folder, run.name, **training)
    small_run.run(config, WORLD.get(file, 2), *MODEL, *spoil(folder, INFINITE, np.inf))
    return run
