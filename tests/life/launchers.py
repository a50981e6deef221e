"""What a user types to start two ranks: by `deepspeed`, `torchrun`, `srun`, or python alone."""

import os
import subprocess
import sys
from pathlib import Path

from tests.life import small_run

LAUNCHERS = ("deepspeed", "torchrun", "srun", "python")
BIN = Path(sys.executable).parent


def commands(launcher: str, module: str, *words: str) -> list[tuple[list[str], dict[str, str]]]:
    """The processes that two ranks of a module are started by, each with its variables; of `srun` there are the variables."""
    port = str(small_run.free_port())
    worker = [module, *words]
    if launcher == "deepspeed":
        started = [str(BIN / "deepspeed"), "--num_gpus", "2", "--master_port", port, "--module", *worker]
        return [(started, {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"})]
    if launcher == "torchrun":
        run = ["--nproc_per_node", "2", "--master_port", port, "-m", *worker]
        return [([sys.executable, "-m", "torch.distributed.run", *run], {})]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    if launcher == "srun":
        job = {"SLURM_NTASKS": "2", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_LOCALID": "0"}
        ranks = [{**meeting, **job, "SLURM_PROCID": str(rank)} for rank in range(2)]
    else:
        ranks = [{**meeting, "WORLD_SIZE": "2", "RANK": str(rank)} for rank in range(2)]
    return [([sys.executable, "-m", *worker], variables) for variables in ranks]


def start_by(launcher: str, module: str, *words: str) -> list[subprocess.Popen[str]]:
    """Starts them, each in a process group of its own."""
    return [
        subprocess.Popen(
            command,
            cwd=small_run.ROOT,
            env={**small_run.environment(), **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        for command, variables in commands(launcher, module, *words)
    ]
