"""The plan of a run on some GPUs: what each will hold and send, how long a step takes, and how much disk the run fills."""

from dataclasses import dataclass, replace
from math import log2
from pathlib import Path

import torch

from unimo_ds.config import ModelSection, ObjectivesSection, RunConfig
from unimo_ds.engine.engine import deepspeed_config
from unimo_ds.model.unimo import UnimoModel
from unimo_ds.objectives.pretraining import PretrainingModel
from unimo_ds.planning.gpus import Gpu
from unimo_ds.planning.memory import FRAMEWORK_BYTES, USABLE, Memory, Size, Zero, memory_of, stream_of
from unimo_ds.planning.traffic import Traffic, traffic_of
from unimo_ds.planning.workload import Lengths, Work, lengths_of, micro_batches, step_flops, step_work

# Assumed, since no GPU was at hand: wishes for packed streams of this kind, to be replaced by a first run's own speed.
PRODUCTS_SHARE = 0.35  # of the peak rate, of a stream that is long enough
HALF_RATE_POSITIONS = 2000  # of a rank's stream, at which it reaches half of that
LINK_SHARE = 0.7  # of the link's rate
MESSAGE_SECONDS = 10e-6  # of a collective for each doubling of the ranks
HIDDEN_SHARE = 2 / 3  # of a step's operations, its backward pass, behind which messages can hide

KEPT_CLASSES = 16  # of a region in a store, where nothing else is said
SCALES = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True)
class Cluster:
    """Some nodes of some GPUs each."""

    gpu: Gpu
    nodes: int
    gpus: int

    @property
    def ranks(self) -> int:
        """One a GPU."""
        return self.nodes * self.gpus

    @property
    def link(self) -> float:
        """Bytes a second that a rank can send to the next one of a ring: the slowest link of it decides."""
        return self.gpu.network if self.nodes > 1 else self.gpu.link


@dataclass(frozen=True)
class Case:
    """A run with one choice of ZeRO, checkpointing and cluster.

    Attributes:
        zero, recomputed, cluster: the choice.
        micro_batches: of a step.
        positions: of a rank's micro-batch, on average.
        memory: of a GPU, without the framework.
        traffic: of a step.
        flops: of a step, over all ranks.
        products_seconds, messages_seconds: of a step, each alone.
        seconds: of a step, messages hidden behind the backward pass where they can be.
        busy: share of the ranks that have any sample.
    """

    zero: Zero
    recomputed: bool
    cluster: Cluster
    micro_batches: int
    positions: float
    memory: Memory
    traffic: Traffic
    flops: float
    products_seconds: float
    messages_seconds: float
    seconds: float
    busy: float

    @property
    def needed(self) -> float:
        """Bytes of a GPU, with the framework."""
        return self.memory.total + FRAMEWORK_BYTES

    @property
    def fits(self) -> bool:
        """Whether the GPU has them."""
        return self.needed <= USABLE * self.cluster.gpu.memory


@dataclass(frozen=True)
class Disk:
    """Bytes on disk.

    Attributes:
        weights, moments: of one checkpoint.
        kept: of all checkpoints that are kept.
        features: of each corpus's regions store, where the number of its images is known.
    """

    weights: int
    moments: int
    kept: int
    features: dict[str, float]


@dataclass(frozen=True)
class Plan:
    """All that is planned of a run.

    Attributes:
        config: the run.
        size: its parameters.
        lengths: of each corpus's samples.
        work: of a step.
        case: the run as configured.
        choices: other stages, offload and checkpointing on the same cluster, by name.
        scales: the run as configured on other numbers of GPUs.
        disk: what it writes and reads.
    """

    config: RunConfig
    size: Size
    lengths: dict[str, Lengths]
    work: Work
    case: Case
    choices: dict[str, Case]
    scales: list[Case]
    disk: Disk

    @property
    def days(self) -> float:
        """To the last step, without evaluation, saves and restarts."""
        return self.case.seconds * self.config.training.steps / 86400


def model_size(model: ModelSection, objectives: ObjectivesSection) -> Size:
    """Counted on the model itself, made without memory."""
    with torch.device("meta"):
        module = PretrainingModel(UnimoModel(model), objectives)
    return Size(sum(p.numel() for p in module.parameters()), model.vocabulary_size * model.hidden_size)


def checkpoint_bytes(parameters: int) -> tuple[int, int]:
    """Weights and moments of one checkpoint, in float32 whatever the run computes in."""
    return 4 * parameters, 8 * parameters


def make_plan(config: RunConfig, cluster: Cluster) -> Plan:
    """Plans a run.

    Raises:
        ConfigError: its DeepSpeed file cannot be read.
    """
    zero, recomputed = Zero.read(deepspeed_config(config.training)), config.training.activation_checkpointing
    lengths = {corpus.name: lengths_of(corpus, config.data) for corpus in config.data.corpora}
    size, work = model_size(config.model, config.objectives), step_work(config, lengths)

    def case(zero: Zero, recomputed: bool, cluster: Cluster) -> Case:
        return plan_case(config, size, work, zero, recomputed, cluster)

    def ours(name: str) -> Zero:
        choice = {"deepspeed": Path(f"ds_configs/{name}.json"), "offload_folder": Path("nowhere")}  # a plan writes nothing
        return Zero.read(deepspeed_config(config.training.model_copy(update=choice)))

    placed = {f"ZeRO {stage}": ours(f"zero{stage}") for stage in range(4)}
    if zero.optimizer_at == zero.weights_at == "none":
        placed[f"ZeRO {zero.stage}"] = zero  # the run's own file in place of ours
    placed |= {"ZeRO 3, offload to host": ours("zero3_offload"), "ZeRO 3, offload to NVMe": ours("zero3_nvme")}
    choices = {
        f"{name}{', recomputed' if again else ''}": case(choice, again, cluster)
        for again in (False, True)
        for name, choice in placed.items()
    }
    scales = [
        case(zero, recomputed, replace(cluster, nodes=-(-ranks // cluster.gpus), gpus=min(cluster.gpus, ranks)))
        for ranks in SCALES
    ]
    return Plan(config, size, lengths, work, case(zero, recomputed, cluster), choices, scales, _disk(config, size, lengths))


def plan_case(config: RunConfig, size: Size, work: Work, zero: Zero, recomputed: bool, cluster: Cluster) -> Case:
    """One choice. The global step stays what the configuration says: more ranks share it, none gets more."""
    model, data = config.model, config.data
    itemsize = 2 if config.training.precision == "bf16" else 4
    parts = micro_batches(work.positions, cluster.ranks, data.positions_per_micro_batch)
    mine = work * (1 / (parts * min(cluster.ranks, work.samples)))
    # Streams are even on the average; one may be longer, and never than the budget.
    fullest = mine * min(2.0, data.positions_per_micro_batch / mine.positions)
    stream = stream_of(fullest, model, itemsize, recomputed, cluster.ranks, parts)
    memory = memory_of(size, zero, cluster.ranks, itemsize, stream, several=parts > 1)
    traffic = traffic_of(size, zero, itemsize, parts, model.layers)
    flops = step_flops(work, model, recomputed)
    share = PRODUCTS_SHARE * mine.positions / (mine.positions + HALF_RATE_POSITIONS)
    busy = min(1.0, work.samples / cluster.ranks)
    products = flops / (cluster.ranks * busy * cluster.gpu.machine.rate(itemsize) * share)
    messages = traffic.sent(cluster.ranks) / (cluster.link * LINK_SHARE)
    messages += traffic.messages * log2(cluster.ranks) * MESSAGE_SECONDS
    hidden = HIDDEN_SHARE * products if zero.overlap and zero.stage >= 2 else 0.0
    seconds = products + max(0.0, messages - hidden)
    return Case(zero, recomputed, cluster, parts, mine.positions, memory, traffic, flops, products, messages, seconds, busy)


def _disk(config: RunConfig, size: Size, lengths: dict[str, Lengths]) -> Disk:
    weights, moments = checkpoint_bytes(size.parameters)
    region = 2 * config.model.feature_width + 4 * 4 + 2 * 2 * KEPT_CLASSES + 2 * 2  # as `unimo_ds.regions` types them
    features = {name: found.images * found.regions * region for name, found in lengths.items() if found.images}
    return Disk(weights, moments, (weights + moments) * config.training.keep_checkpoints, features)
