"""Where a training step through the engine spends its time, by torch's profiler, on one thread.

Every operation counts by its own time, without the operations it calls, for the first part in `_PARTS` that claims it or one of
its callers. What no operation claims is Python: hooks of DeepSpeed and of autograd, and the model's own code.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from unimo_ds.batch import Batch
from unimo_ds.bench import workload as work
from unimo_ds.bench.contenders import engine
from unimo_ds.bench.training import PAIRS

_WARM_UPS, _STEPS = 2, 3
_STEP = "unimo_ds step"
_PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "mkldnn::_linear_pointwise")


class Operation(NamedTuple):
    """One operation of the profile.

    Attributes:
        callers: its name and those of all that called it, its own first.
        sizes: all sizes of its inputs, and those of its caller's.
        flat: whether an input is long and has one dimension: only the optimizer sees parameters so.
    """

    callers: tuple[str, ...]
    sizes: frozenset[int]
    flat: bool

    def under(self, *words: str) -> bool:
        """Whether it, or one of its callers, has one of the words in its name."""
        return any(word in name for name in self.callers for word in words)


def _parts(batch: Batch) -> dict[str, Callable[[Operation], bool]]:
    """The parts of a step, and what belongs to them; the first that claims an operation has it."""
    positions, regions = batch.positions, len(batch.features_RF)
    features = {regions, regions + 1}  # one row of zeros more stands for hidden regions
    return {
        "attention": lambda op: op.under("packed_attention"),
        "language head: vocabulary and its loss": lambda op: op.under("inear_cross_entropy", "LinearCrossEntropy"),
        "AdamW": lambda op: op.under("Optimizer.step", "_fused_adamw_"),
        "dropout": lambda op: op.under("_Dropout"),
        "encoder: matrix products": lambda op: op.callers[0] in _PRODUCTS and positions in op.sizes,
        "feature projection": lambda op: work.FEATURE_WIDTH in op.sizes and bool(features & op.sizes),
        "encoder: bias gradients, operands laid out": lambda op: op.under("_Linear") and positions in op.sizes,
        "heads, locations": lambda op: op.under("_Linear"),
        "GELU": lambda op: op.under("aten::gelu"),
        "LayerNorm": lambda op: op.under("layer_norm", "LayerNorm"),
        "word table, gathers": lambda op: op.under("mbedding", "ndexSelect", "ndexCopy", "index"),
        "engine: gradients, norm, weights copied": lambda op: op.flat or op.under("linalg_vector_norm", "AccumulateGrad"),
        "residual sums": lambda op: op.callers[0] in ("aten::add", "aten::add_") and positions in op.sizes,
        "Python: DeepSpeed's hooks and ours": lambda op: op.callers[0] == _STEP or "BackwardFunction" in op.callers[0],
        "other operations": lambda op: True,
    }


def measure_profile(size: str, precision: str) -> list[dict[str, object]]:
    """Rows of the table: each part's milliseconds of a step, and its share, the largest first."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        load = work.pairs(PAIRS)
        torch.manual_seed(0)
        step = engine(size, precision, load)
        for _ in range(_WARM_UPS):
            step()
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
            for _ in range(_STEPS):
                with record_function(_STEP):
                    step()
    finally:
        torch.set_num_threads(threads)
    parts, spent = _parts(work.packed(load)), dict[str, float]()
    for operation, milliseconds in _operations(profiler.events()):
        part = next(part for part, claims in parts.items() if claims(operation))
        spent[part] = spent.get(part, 0.0) + milliseconds / _STEPS
    total = sum(spent.values())
    return [
        {"size": size, "precision": precision, "part": part, "milliseconds": found, "share": found / total}
        for part, found in sorted(spent.items(), key=lambda entry: -entry[1])
    ]


def _operations(events: Any) -> Iterator[tuple[Operation, float]]:
    """What the profiler saw within steps, and each one's own milliseconds."""
    for event in events:
        callers, caller = [], event
        while caller is not None:
            callers.append(str(caller.name))
            caller = caller.cpu_parent
        if callers[-1] != _STEP:
            continue
        shapes = [shape for shape in event.input_shapes or () if shape and isinstance(shape[0], int)]
        above = event.cpu_parent.input_shapes if event.cpu_parent is not None else ()
        sizes = {size for shape in (*shapes, *(above or ())) for size in shape if isinstance(size, int)}
        flat = any(len(shape) == 1 and shape[0] >= 1 << 18 for shape in shapes)
        yield Operation(tuple(callers), frozenset(sizes), flat), event.self_cpu_time_total / 1000


def table(rows: list[dict[str, object]]) -> str:
    """The rows of one or more profiles as Markdown, a column for each size and precision."""
    columns = list(dict.fromkeys((str(row["size"]), str(row["precision"])) for row in rows))
    found = {(row["part"], row["size"], row["precision"]): row for row in rows}
    head = f"| part of a step | {' | '.join(' '.join(column) for column in columns)} |\n|---|{'--:|' * len(columns)}\n"
    lines = []
    for part in dict.fromkeys(row["part"] for row in rows):
        cells = [found.get((part, *column)) for column in columns]
        shown = [f"{cell['milliseconds']:,.0f} ms, {100 * _number(cell['share']):.1f} %" if cell else "" for cell in cells]
        lines.append(f"| {part} | {' | '.join(shown)} |")
    totals = [sum(_number(row["milliseconds"]) for row in rows if (row["size"], row["precision"]) == c) for c in columns]
    return head + "\n".join([*lines, f"| all | {' | '.join(f'{total:,.0f} ms' for total in totals)} |"])


def _number(value: object) -> float:
    assert isinstance(value, float)
    return value
