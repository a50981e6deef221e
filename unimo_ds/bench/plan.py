"""What two ranks hold and send in a step, measured beside the plan (`unimo_ds.planning`).

Memory is the growth of a rank's resident set over what it had when its group was formed, at the peak within a step. glibc is
told to give back what is freed: what a process keeps for later (`unimo_ds.engine.memory`) is not held by anything. Bytes are
those of every collective that torch dispatches, whoever asks for it.
"""

import multiprocessing
import os
import socket
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from unimo_ds import distributed
from unimo_ds.bench import workload
from unimo_ds.config import ModelSection, ObjectivesSection, TrainingSection
from unimo_ds.engine.engine import Engine
from unimo_ds.model.unimo import UnimoModel, parameter_groups
from unimo_ds.objectives.pretraining import PretrainingModel, Totals

RANKS, PAIRS, STEPS = 2, 2, 3
SIZES = {
    "31 M": ModelSection(hidden_size=384, layers=6, heads=6),
    "128 M": ModelSection(size="base"),
}


class Measured(NamedTuple):
    """Of the rank that holds most, in bytes.

    Attributes:
        peak: within a step.
        kept: between steps.
        sent: payload of each kind of collective in a step.
    """

    peak: int
    kept: int
    sent: dict[str, int]


class _Collectives(TorchDispatchMode):
    """Counts the bytes of every collective."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "c10d":
            name = function._opname
            self.bytes[name] += _bytes(args)
        return function(*args, **(kwargs or {}))


def _bytes(arguments: Any) -> int:
    """Of the largest tensor or list of tensors: the whole that a collective joins or shares out."""
    def total(value: Any) -> int:
        if isinstance(value, torch.Tensor):
            return value.nbytes
        return sum(total(part) for part in value) if isinstance(value, list | tuple) else 0

    return max(total(argument) for argument in arguments)


def _resident(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def _rank(rank: int, port: int, model: ModelSection, training: TrainingSection, answer: Connection) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(RANKS), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ["MALLOC_TRIM_THRESHOLD_"] = "0"  # the user's setting stands
    import ctypes

    libc = ctypes.CDLL(None)
    libc.mallopt(-3, 65536)
    libc.mallopt(-1, 65536)
    torch.set_num_threads(1)
    distributed.initialise(120)
    distributed.barrier()
    tiny = ModelSection(hidden_size=8, layers=1, heads=1)
    batch = workload.packed(workload.pairs(PAIRS))
    totals = Totals(10, 10, 10, 10, 1)
    engine = Engine(lambda: PretrainingModel(UnimoModel(tiny), ObjectivesSection()), lambda module: parameter_groups(module, 0.01), training)
    for step in range(2): engine.step(step, [batch], totals)
    del engine
    import gc; gc.collect()
    before = _resident("VmRSS")

    def build() -> PretrainingModel:
        torch.manual_seed(0)
        unimo = UnimoModel(model)
        unimo.transformer.activation_checkpointing = training.activation_checkpointing
        return PretrainingModel(unimo, ObjectivesSection())

    engine = Engine(build, lambda module: parameter_groups(module, 0.01), training)
    batch = workload.packed(workload.pairs(PAIRS))
    totals = Totals(10, 10, 10, 10, 1)
    made = _resident("VmRSS")
    for step in range(STEPS - 1):
        engine.step(step, [batch], totals)
    kept = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    engine.step(STEPS - 1, [batch], totals)
    peak = _resident("VmHWM")
    with _Collectives() as collectives:
        engine.step(STEPS, [batch], totals)
    answer.send((peak - before, kept - before, made-before, before, dict(collectives.bytes), batch.positions, sum(getattr(p,'ds_numel',p.numel()) for p in engine.module.parameters())))
    distributed.leave(0)


def measure(model: ModelSection, training: TrainingSection):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["unimo_ds.bench.plan", "deepspeed"])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ends = [context.Pipe(duplex=False) for _ in range(RANKS)]
    ranks = [context.Process(target=_rank, args=(rank, port, model, training, send)) for rank, (_, send) in enumerate(ends)]
    for process in ranks:
        process.start()
    answers = [receive.recv() for receive, _ in ends]
    for process in ranks:
        process.join()
    return answers


if __name__ == "__main__":
    import sys, time
    os.environ["OMP_NUM_THREADS"] = "1"
    for size in sys.argv[1].split(","):
      for precision in sys.argv[2].split(","):
        for file in sys.argv[3].split(","):
            t = time.time()
            training = TrainingSection(steps=100, learning_rate=1e-4, precision=precision, deepspeed=Path(f"/tmp/ds5/{file}.json"))
            for a in measure(SIZES[size], training):
                n = a[6]
                print(size, precision, file, f"n {n/1e6:.1f}M peak {a[0]/1e6:.0f}MB = {a[0]/n:.2f} B/param kept {a[1]/n:.2f} made {a[2]/n:.2f} before {a[3]/1e6:.0f} pos {a[5]}", {k: round(v / n, 3) for k, v in a[4].items()}, f"{time.time()-t:.1f}s", flush=True)
