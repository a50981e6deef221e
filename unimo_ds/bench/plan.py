"""What two CPU ranks hold and send in a step of the real engine, beside what `unimo_ds.planning` says of them.

Memory is the growth of a rank's resident set, at its peak within a step, over what it had after a step of a model of nearly
nothing: libraries are not counted. glibc is told to give back what is freed, for what a process keeps for later
(`unimo_ds.engine.memory`) is held by nothing. Buckets are small enough for a small model to fill them, since a CPU's memory
counts when it is touched, a GPU's when it is asked for. Bytes are those of every collective that torch dispatches, whoever
asks for it.
"""

import ctypes
import gc
import json
import multiprocessing
import os
import socket
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from unimo_ds import distributed
from unimo_ds.bench import workload
from unimo_ds.config import ModelSection, ObjectivesSection, TrainingSection
from unimo_ds.engine.engine import Engine, deepspeed_config
from unimo_ds.model.unimo import UnimoModel, parameter_groups
from unimo_ds.objectives.pretraining import PretrainingModel, Totals
from unimo_ds.planning.memory import Memory, Zero, memory_of, stream_of
from unimo_ds.planning.plan import model_size
from unimo_ds.planning.traffic import Traffic, traffic_of
from unimo_ds.planning.workload import Work

RANKS, PAIRS, MICRO_BATCHES, BUCKET = 2, 2, 2, 5_000_000
MODELS = {
    "33 M": ModelSection(hidden_size=384, layers=6, heads=6),
    "129 M": ModelSection(size="base"),
}
_NEARLY_NOTHING = ModelSection(hidden_size=8, layers=1, heads=1)
_COLLECTIVES = {"allreduce_": "all_reduce", "_allgather_base_": "all_gather", "_reduce_scatter_base_": "reduce_scatter"}
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _AT_ONCE = -1, -3, 1 << 16


@dataclass(frozen=True)
class Beside:
    """A measurement and its plan.

    Attributes:
        peak: bytes that were held, by the rank that held most.
        memory: what was planned.
        counted: bytes of each collective in a step of two micro-batches.
        traffic: what was planned.
    """

    peak: int
    memory: Memory
    counted: dict[str, int]
    traffic: Traffic

    @property
    def off(self) -> float:
        """By what share the plan is over (or under) what was held."""
        return self.memory.total / self.peak - 1


class _Collectives(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of every collective: of its largest argument, the whole that is joined or shared out."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "c10d":
            self.bytes[_COLLECTIVES.get(function._opname, function._opname)] += max(map(_bytes, args))
        return function(*args, **(kwargs or {}))


def _bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.nbytes
    return sum(map(_bytes, value)) if isinstance(value, list | tuple) else 0


def measure(model: ModelSection, training: TrainingSection) -> Beside:
    """Starts two ranks of the run's engine; `training.deepspeed` is taken with small buckets."""
    content = deepspeed_config(training)
    section = content.get("zero_optimization", {})
    small = {key: BUCKET for key in section if key.endswith("bucket_size")}
    own = {key: content[key] for key in ("data_types",) if key in content}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "deepspeed.json"
        file.write_text(json.dumps({**own, "zero_optimization": {**section, **small}}), encoding="utf-8")
        training = training.model_copy(update={"deepspeed": file})
        answers = _run_ranks(model, training)
        zero = Zero.read(deepspeed_config(training))
    batch = workload.packed(workload.pairs(PAIRS))
    work = Work(positions=batch.positions, vectors=len(batch.features_RF), words=len(batch.language_rows_M))
    itemsize = 2 if training.precision == "bf16" else 4
    size = model_size(model, ObjectivesSection())
    stream = stream_of(work, model, itemsize, training.activation_checkpointing, RANKS, micro_batches=1)
    if itemsize == 2:  # a CPU multiplies bf16 by way of float32, also the word table and its gradient, one after the other
        stream = replace(stream, logits=stream.logits + 4 * size.word_table)
    return Beside(
        max(peak for peak, _ in answers),
        memory_of(size, zero, RANKS, itemsize, stream),
        answers[0][1],
        traffic_of(size, zero, itemsize, MICRO_BATCHES, model.layers),
    )


def _run_ranks(model: ModelSection, training: TrainingSection) -> list[tuple[int, dict[str, int]]]:
    context = multiprocessing.get_context("forkserver")  # imports once, and forks before any thread is started
    context.set_forkserver_preload([__name__, "deepspeed"])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pipes = [context.Pipe(duplex=False) for _ in range(RANKS)]
    ranks = [context.Process(target=_rank, args=(rank, port, model, training, pipes[rank][1])) for rank in range(RANKS)]
    for process in ranks:
        process.start()
    for _, end in pipes:
        end.close()  # ours; a rank that dies then closes its pipe
    try:
        return [receiving.recv() for receiving, _ in pipes]
    finally:
        for process in ranks:
            process.join()


def _rank(rank: int, port: int, model: ModelSection, training: TrainingSection, answer: Connection) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": RANKS, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in place.items()})
    _give_back_freed_memory()
    torch.set_num_threads(1)
    distributed.initialise(120)
    batch, totals = workload.packed(workload.pairs(PAIRS)), Totals(10, 10, 10, 10, 1)
    _engine(_NEARLY_NOTHING, training).step(0, [batch], totals)
    gc.collect()
    before = _resident("VmRSS")
    engine = _engine(model, training)
    for step in range(2):  # the first makes the moments, and lets ZeRO-3 learn the order of the layers
        engine.step(step, [batch], totals)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts again
    engine.step(2, [batch], totals)
    peak = _resident("VmHWM") - before
    with _Collectives() as collectives:
        engine.step(3, [batch] * MICRO_BATCHES, totals)
    answer.send((peak, dict(collectives.bytes)))
    distributed.leave(0)


def _give_back_freed_memory() -> None:
    os.environ["MALLOC_TRIM_THRESHOLD_"] = str(_AT_ONCE)  # read at a process's start, so it only tells that the user has chosen
    libc = ctypes.CDLL(None)
    for option in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
        libc.mallopt(option, _AT_ONCE)


def _engine(model: ModelSection, training: TrainingSection) -> Engine:
    def build() -> PretrainingModel:
        torch.manual_seed(0)
        unimo = UnimoModel(model)
        unimo.transformer.activation_checkpointing = training.activation_checkpointing
        return PretrainingModel(unimo, ObjectivesSection())

    return Engine(build, lambda module: parameter_groups(module, training.weight_decay), training)


def _resident(field: str) -> int:
    """Bytes by a line of the kernel's report on this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024


def training_at(stage: int, precision: str) -> TrainingSection:
    """A run's section at a ZeRO stage, with the project's own DeepSpeed file."""
    content = {"steps": 100, "learning_rate": 1e-4, "precision": precision, "deepspeed": f"ds_configs/zero{stage}.json"}
    return TrainingSection.model_validate(content)


def table(precisions: list[str]) -> str:
    """Every stage at every size, in Markdown."""
    lines = [
        "| parameters | precision | ZeRO | held, MB | planned, MB | off | peak in | counted, MB | planned, MB |",
        "|---|---|--:|--:|--:|--:|---|--:|--:|",
    ]
    for name, model in MODELS.items():
        for precision in precisions:
            for stage in range(4):
                beside = measure(model, training_at(stage, precision))
                counted = sum(beside.counted.values())
                planned = beside.traffic.all_reduce + beside.traffic.all_gather + beside.traffic.reduce_scatter
                lines.append(
                    f"| {name} | {precision} | {stage} | {beside.peak / 1e6:,.0f} | {beside.memory.total / 1e6:,.0f} "
                    f"| {beside.off:+.1%} | {beside.memory.phase} | {counted / 1e6:,.1f} | {planned / 1e6:,.1f} |"
                )
    return "\n".join(lines)
