"""What a GPU holds, part by part, in each phase of a step, as DeepSpeed 0.19 and this project hold it.

The phases differ in what they add to what is always there; the one that adds most decides. `unimo_ds.bench.plan` measures the
same on two CPU ranks; what the formulas know that textbooks do not was found there:

- Without ZeRO all gradients are copied once for their all-reduce, and in bf16 once more in float32 for the update.
- ZeRO 1 and 2 find the gradient's norm in float64, one parameter at a time.
- The word table, tied to the language head, has two gradients before it has one.
- ZeRO 3 keeps gathered weights from forward to backward as far as `stage3_max_reuse_distance` reaches: in our files, all.

Letters: N parameters, E those of the word table, W ranks, p bytes of a weight.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

from unimo_ds.config import ModelSection
from unimo_ds.errors import ConfigError
from unimo_ds.kernels.contrastive_over_ranks import MOST_GATHERED_BYTES
from unimo_ds.kernels.counts import CHUNK
from unimo_ds.planning.workload import Work

FRAMEWORK_BYTES = 1.5e9  # assumed: CUDA's context, NCCL's channels, workspaces of the libraries
USABLE = 0.92  # assumed: of the memory; the rest is lost between the allocator's blocks
_ELSEWHERE = ("cpu", "nvme")
_UNSHARDED_BUCKET = 500_000_000  # elements that are reduced at once without ZeRO; DeepSpeed's own, no key sets it


@dataclass(frozen=True)
class Zero:
    """What a DeepSpeed file says of memory and messages; the defaults are DeepSpeed's.

    Attributes:
        stage: 0 to 3.
        bucket: elements that are reduced at once.
        overlap: whether gradients are reduced while others are made.
        reuse: ZeRO-3 keeps gathered weights that are used again within so many elements.
        float32_gradients: whether gradients are summed in float32.
        optimizer_at, weights_at: where they live: `none` (on the GPU), `cpu` or `nvme`.
        sub_group: elements of the optimizer that are read from NVMe at once.
    """

    stage: int
    bucket: int = 500_000_000
    overlap: bool = False
    reuse: int = 1_000_000_000
    float32_gradients: bool = False
    optimizer_at: str = "none"
    weights_at: str = "none"
    sub_group: int = 1_000_000_000

    @classmethod
    def read(cls, content: dict[str, Any]) -> "Zero":
        """From the content of a DeepSpeed file.

        Raises:
            ConfigError: it puts something where DeepSpeed cannot.
        """
        section = content.get("zero_optimization", {})
        places = {key: section.get(key, {}).get("device", "none") for key in ("offload_optimizer", "offload_param")}
        for key, place in places.items():
            if place not in ("none", *_ELSEWHERE):
                raise ConfigError(f"zero_optimization.{key}.device = {place!r}: allowed are none, {', '.join(_ELSEWHERE)}")
        stage = int(section.get("stage", 0))
        return cls(
            stage=stage,
            bucket=int(section.get("reduce_bucket_size", cls.bucket)),
            overlap=bool(section.get("overlap_comm", stage == 3)),
            reuse=int(section.get("stage3_max_reuse_distance", cls.reuse)),
            float32_gradients=content.get("data_types", {}).get("grad_accum_dtype") == "fp32",
            optimizer_at=places["offload_optimizer"],
            weights_at=places["offload_param"],
            sub_group=int(section.get("sub_group_size", cls.sub_group)),
        )

    def kept(self, parameters: int) -> int:
        """Gathered weights that ZeRO-3 keeps from forward to backward: a weight's way there and back is twice its depth."""
        return min(parameters, self.reuse // 2)


class Size(NamedTuple):
    """Numbers of parameters: of the model, and of its word table, the largest of all."""

    parameters: int
    word_table: int


@dataclass(frozen=True)
class Memory:
    """Of one rank, in bytes.

    Attributes:
        parts: what lies on the GPU in the phase that needs most.
        phase: which that is.
        host, disk: what is offloaded there.
    """

    parts: dict[str, float]
    phase: str
    host: float = 0.0
    disk: float = 0.0

    @property
    def total(self) -> float:
        """On the GPU."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Stream:
    """What a rank holds of a micro-batch, in bytes, and `batches` of all those of its step, which are moved there at once."""

    activations: float = 0.0
    logits: float = 0.0
    contrastive: float = 0.0
    batches: float = 0.0


def stream_of(work: Work, model: ModelSection, itemsize: int, checkpointing: bool, ranks: int, micro_batches: int) -> Stream:
    """Of a rank's micro-batch with `work` in it.

    A layer keeps for its backward pass 16 vectors of a position (its input, queries, keys and values, attended, two sums before
    LayerNorms, one behind, twice four of the feed-forward layer) and a byte a number for two dropouts; with checkpointing
    its input only, and one layer at a time the rest.
    """
    width = model.hidden_size
    whole = width * (16 * itemsize + 2 * (model.dropout > 0)) + 4 * model.heads
    layers = model.layers * width * itemsize + whole if checkpointing else model.layers * whole
    features = work.vectors * model.feature_width  # float16 as they come, and in the type of the weights as they are projected
    columns = work.matrix * ranks * width * (2 * 4 + 4)
    return Stream(
        activations=work.positions * (layers + 4 * width * itemsize) + features * itemsize,
        logits=min(work.words * model.vocabulary_size, CHUNK) * itemsize,
        contrastive=min(columns, MOST_GATHERED_BYTES),  # beyond it the ranks pass them round
        batches=micro_batches * features * 2,
    )


def memory_of(size: Size, zero: Zero, ranks: int, itemsize: int, stream: Stream, several: bool = False) -> Memory:
    """What a rank holds at the peak of a step, the framework not counted.

    Args:
        size: of the model.
        zero: the DeepSpeed file.
        ranks: W.
        itemsize: p, bytes of a weight.
        stream: of a micro-batch.
        several: whether a step has more than one micro-batch: the gradients of the first are there when the next one runs.
    """
    always, host, disk = _always(size, zero, ranks, itemsize)
    phase, extra = max(_phases(size, zero, ranks, itemsize, stream, several).items(), key=lambda each: sum(each[1].values()))
    parts = {key: always.get(key, 0.0) + extra.get(key, 0.0) for key in (*always, *(key for key in extra if key not in always))}
    return Memory(parts, phase, host, disk)


def _always(size: Size, zero: Zero, ranks: int, itemsize: int) -> tuple[dict[str, float], float, float]:
    """What lies on the GPU between steps, and what in host memory and on disk."""
    count = size.parameters
    shared = count / ranks
    weights = itemsize * (shared if zero.stage == 3 else count)
    states = {"masters": 4 * shared, "moments": 8 * shared}
    if zero.stage == 0:
        states = {"masters": 0.0 if itemsize == 4 else 4.0 * count, "moments": 8.0 * count}
    gradients = (4 if zero.float32_gradients else itemsize) * shared if zero.stage == 3 else 0.0
    elsewhere = dict.fromkeys(_ELSEWHERE, 0.0)
    if zero.weights_at in elsewhere:
        elsewhere[zero.weights_at] += weights
        weights = 0.0
    if zero.optimizer_at in elsewhere:
        elsewhere[zero.optimizer_at] += sum(states.values())
        elsewhere[zero.optimizer_at] += 4 * shared  # gradients wait for the update in float32
        if zero.optimizer_at == "nvme":
            # They are summed in host memory; of a sub-group weights, moments and gradients are read.
            elsewhere["cpu"] += (4 if zero.float32_gradients else itemsize) * shared + 4 * 4 * min(zero.sub_group, shared)
        states, gradients = dict.fromkeys(states, 0.0), 0.0
    buckets = float(itemsize * zero.bucket) if zero.stage == 3 else 0.0
    return {"weights": weights, **states, "gradients": gradients, "buckets": buckets}, elsewhere["cpu"], elsewhere["nvme"]


def _phases(size: Size, zero: Zero, ranks: int, itemsize: int, stream: Stream, several: bool) -> dict[str, dict[str, float]]:
    """What each phase adds."""
    count, table = itemsize * size.parameters, itemsize * size.word_table
    shared = count / ranks
    buckets = float(itemsize * zero.bucket * (2 if zero.overlap else 1)) if zero.stage in (1, 2) else 0.0
    partial = {0: count, 1: count, 2: shared, 3: 0.0}[zero.stage]
    forward = {
        "activations": stream.activations + stream.batches,
        "logits and CMCL": stream.logits + stream.contrastive,
        "gathered weights": float(itemsize * max(zero.kept(size.parameters), size.word_table)) if zero.stage == 3 else 0.0,
        "gradients": partial if several else 0.0,
        "being made": float(table),  # the word table's gradient by the language head, the first of all
    }
    if zero.stage == 3:
        # The table is still gathered while its two gradients become one, which is then copied to be reduced.
        backward = {"gathered weights": float(table), "being made": 2.0 * table + table / ranks}
    else:
        backward = {"gradients": partial, "being made": float(table if zero.stage < 2 else 2 * table), "buckets": buckets}
    return {"forward": forward, "backward": backward, "update": _update(size, zero, ranks, itemsize)}


def _update(size: Size, zero: Zero, ranks: int, itemsize: int) -> dict[str, float]:
    count, shared = itemsize * size.parameters, itemsize * size.parameters / ranks
    whole, part = 4.0 * size.parameters, 4.0 * size.parameters / ranks
    if zero.stage == 0:
        copied = min(count, itemsize * _UNSHARDED_BUCKET)
        return {"gradients": float(count), "being made": float(max(copied, whole if itemsize < 4 else 0.0))}
    if zero.stage == 3 or zero.optimizer_at != "none":
        return {} if zero.float32_gradients or zero.optimizer_at != "none" else {"being made": part}
    norm = 8.0 * min(size.word_table, size.parameters / ranks)
    return {"gradients": shared, "being made": max(norm, shared + (part if itemsize < 4 else 0.0))}
