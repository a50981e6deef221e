"""A plan in words and tables for people, and as plain values for programs."""

import textwrap
from collections.abc import Sequence
from typing import Any

from unimo_ds.planning.gpus import Gpu
from unimo_ds.planning.memory import FRAMEWORK_BYTES, USABLE
from unimo_ds.planning.plan import (
    HALF_RATE_POSITIONS,
    LINK_SHARE,
    PRODUCTS_SHARE,
    Case,
    Plan,
)
from unimo_ds.planning.workload import DEFAULT_CAPTION_TOKENS, DEFAULT_REGIONS

_WIDTH = 120
_STAGES = ("ZeRO 0", "ZeRO 1", "ZeRO 2", "ZeRO 3")


def as_text(plan: Plan) -> str:
    """For people; tables fit 120 columns."""
    sections = [_run(plan), _memory(plan), _step(plan), _choices(plan), _scales(plan), _disk(plan), _assumptions(plan)]
    return "\n\n".join(sections)


def as_values(plan: Plan) -> dict[str, Any]:
    """For programs: bytes, seconds and counts."""
    return {
        "parameters": plan.size.parameters,
        "step": {**vars(plan.work), "flops": plan.case.flops},
        "run": {**_case_values(plan.case), "days": plan.days, "steps": plan.config.training.steps},
        "choices": {name: _case_values(case) for name, case in plan.choices.items()},
        "scales": [_case_values(case) for case in plan.scales],
        "disk": vars(plan.disk),
        "lengths": {name: vars(lengths) for name, lengths in plan.lengths.items()},
    }


def _case_values(case: Case) -> dict[str, Any]:
    return {
        "stage": case.zero.stage,
        "optimizer_at": case.zero.optimizer_at,
        "weights_at": case.zero.weights_at,
        "recomputed": case.recomputed,
        "nodes": case.cluster.nodes,
        "gpus": case.cluster.gpus,
        "memory": {**case.memory.parts, "framework": FRAMEWORK_BYTES},
        "memory_needed": case.needed,
        "memory_of_gpu": case.cluster.gpu.memory,
        "fits": case.fits,
        "host_memory": case.memory.host,
        "nvme": case.memory.disk,
        "micro_batches": case.micro_batches,
        "positions_per_micro_batch": case.positions,
        "traffic": vars(case.traffic),
        "sent": case.traffic.sent(case.cluster.ranks),
        "products_seconds": case.products_seconds,
        "messages_seconds": case.messages_seconds,
        "seconds": case.seconds,
        "busy_ranks": case.busy,
    }


def _run(plan: Plan) -> str:
    case, config, work = plan.case, plan.config, plan.work
    cluster = case.cluster
    lines = [
        f"{config.folder}: {plan.size.parameters / 1e6:.1f} M parameters, {config.training.precision}, {_name(case)}, on "
        f"{cluster.nodes} x {cluster.gpus} {cluster.gpu.machine.name}",
        f"A step: {work.samples:,.0f} samples, {work.tokens:,.0f} text tokens, {work.vectors:,.0f} region vectors, "
        f"{work.positions:,.0f} positions of all streams,",
        f"  {work.words:,.0f} words to predict, {work.attended:,.0f} pairs of attention a head, {work.matrix:,.0f} pairs in "
        "CMCL's matrix",
        f"  {case.micro_batches} micro-batch{'es' * (case.micro_batches > 1)} of {case.positions:,.0f} positions a rank "
        f"(data.positions_per_micro_batch = {config.data.positions_per_micro_batch:,})",
    ]
    guessed = [name for name, lengths in plan.lengths.items() if not lengths.prepared]
    if guessed:
        lines += _wrapped(
            f"lengths are defaults ({DEFAULT_CAPTION_TOKENS} tokens a caption, {DEFAULT_REGIONS} regions, full texts) for "
            f"{', '.join(guessed)}; `unimo-ds prepare` replaces them by those of the data"
        )
    return "\n".join(lines)


def _memory(plan: Plan) -> str:
    stages = [plan.choices[name + ", recomputed" * plan.case.recomputed] for name in _STAGES]
    parts = list(dict.fromkeys(part for case in stages for part in case.memory.parts))
    rows = [[part, *(_gb(case.memory.parts.get(part, 0.0)) for case in stages)] for part in parts]
    rows += [
        ["framework (assumed)", *(_gb(FRAMEWORK_BYTES) for _ in stages)],
        ["all", *(_gb(case.needed) for case in stages)],
        ["at the peak of", *(case.memory.phase for case in stages)],
        [f"fits {_limit(plan.case.cluster.gpu)}", *(_yes(case.fits) for case in stages)],
    ]
    return f"Memory of a GPU by part, GB{_recomputed(plan.case)}:\n" + _table(["", *_STAGES], rows)


def _step(plan: Plan) -> str:
    case, steps = plan.case, plan.config.training.steps
    cluster, traffic, ranks = case.cluster, case.traffic, case.cluster.ranks
    share = case.flops / ranks / case.seconds / cluster.gpu.machine.flops
    where = "network" if cluster.nodes > 1 else "links of the node"
    fed = plan.work.vectors * plan.config.model.feature_width * 2 / ranks / case.seconds
    lines = [f"Time of a step, expected: {_seconds(case.seconds)}; {steps:,} steps take {plan.days:.1f} days"]
    lines += _wrapped(
        f"products {_seconds(case.products_seconds)}: {case.flops / 1e15:,.2f} PFLOP, {case.flops / ranks / 1e12:,.1f} TFLOP a "
        f"rank; the step reaches {share:.0%} of the peak"
    )
    lines += _wrapped(
        f"messages {_seconds(case.messages_seconds)}: a rank sends {_gb(traffic.sent(ranks))} GB over the {where} at "
        f"{cluster.link * LINK_SHARE / 1e9:.0f} GB/s: all-reduce {_gb(traffic.all_reduce)}, all-gather "
        f"{_gb(traffic.all_gather)}, reduce-scatter {_gb(traffic.reduce_scatter)} GB; "
        f"{_seconds(case.seconds - case.products_seconds)} not hidden behind the backward pass"
    )
    lines += _wrapped(f"data: each rank's loader must read {fed / 1e6:,.0f} MB of regions a second")
    return "\n".join(lines)


def _choices(plan: Plan) -> str:
    rows = [
        [
            name,
            _gb(case.needed),
            _yes(case.fits),
            _gb(case.memory.host * case.cluster.gpus),
            _gb(case.memory.disk * case.cluster.gpus),
            _gb(case.traffic.sent(case.cluster.ranks)),
            _seconds(case.seconds),
        ]
        for name, case in plan.choices.items()
    ]
    head = ["what if", "GPU, GB", "fits", "host a node, GB", "NVMe a node, GB", "sent, GB", "a step"]
    return (
        "The same GPUs otherwise used. Offload is of weights and optimizer to host memory, or of the optimizer to NVMe; times\n"
        "know nothing of the way there and back:\n" + _table(head, rows)
    )


def _scales(plan: Plan) -> str:
    first = plan.scales[0]
    rows = [
        [
            f"{case.cluster.ranks:,}",
            f"{case.cluster.nodes:,}",
            _gb(case.needed),
            str(case.micro_batches),
            f"{case.positions:,.0f}",
            f"{case.busy:.0%}",
            _seconds(case.seconds),
            f"{case.seconds * plan.config.training.steps / 86400:,.1f}",
            f"{first.seconds * first.cluster.ranks / (case.seconds * case.cluster.ranks):.0%}",
        ]
        for case in plan.scales
    ]
    head = ["GPUs", "nodes", "GPU, GB", "micro-batches", "positions", "busy", "a step", "days", "efficiency"]
    return (
        "On paper, as configured. The global step is fixed by data.corpora.*.per_step, and more ranks share it (strong\n"
        "scaling); for weak scaling raise per_step with the ranks, and a step keeps its time but for the messages. With less\n"
        "than one micro-batch a rank, streams get short and products slow; with fewer samples than ranks, the rest idle:\n"
        + _table(head, rows)
    )


def _disk(plan: Plan) -> str:
    disk = plan.disk
    line = (
        f"Disk: a checkpoint {_gb(disk.weights + disk.moments)} GB (weights {_gb(disk.weights)}, moments {_gb(disk.moments)}); "
        f"{plan.config.training.keep_checkpoints} kept, {_gb(disk.kept)} GB, and one more while it is written"
    )
    stores = [f"  regions of {name}: {_gb(amount)} GB" for name, amount in disk.features.items()]
    return "\n".join([line, *(stores or ["  regions: not known before `unimo-ds prepare`"])])


def _assumptions(plan: Plan) -> str:
    gpu = plan.case.cluster.gpu
    return "\n".join(
        _wrapped(
            f"No GPU was ever timed for these numbers. Assumed: {PRODUCTS_SHARE:.0%} of {gpu.machine.flops / 1e12:,.0f} "
            f"TFLOP/s for long streams, half of that at {HALF_RATE_POSITIONS:,} positions a rank; {LINK_SHARE:.0%} of "
            f"{gpu.link / 1e9:.0f} GB/s in a node and of {gpu.network / 1e9:.1f} GB/s a GPU between nodes; {1 - USABLE:.0%} of "
            "the memory lost between blocks. Memory and bytes were measured on CPUs (docs/plan.md). A first run's log says its "
            "own speed.",
            indent="",
        )
    )


def _name(case: Case) -> str:
    zero = case.zero
    away = [
        f"{what} in {place}"
        for what, place in (("optimizer", zero.optimizer_at), ("weights", zero.weights_at))
        if place != "none"
    ]
    return ", ".join([f"ZeRO {zero.stage}", *away])


def _recomputed(case: Case) -> str:
    return ", activations recomputed (training.activation_checkpointing)" if case.recomputed else ""


def _limit(gpu: Gpu) -> str:
    return f"{USABLE * gpu.memory / 1e9:.0f} of {gpu.memory / 1e9:.0f} GB"


def _yes(fits: bool) -> str:
    return "yes" if fits else "NO"


def _gb(amount: float) -> str:
    return f"{amount / 1e9:,.2f}" if amount < 1e11 else f"{amount / 1e9:,.0f}"


def _seconds(amount: float) -> str:
    return f"{amount:.2f} s" if amount >= 1 else f"{1000 * amount:.0f} ms"


def _wrapped(text: str, indent: str = "  ") -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=indent)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need; the first to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))])
        for row in (head, *rows)
    ]
    return "\n".join(line.rstrip() for line in lines)
