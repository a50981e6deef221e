"""The contrastive matrix against open_clip's loss: forward and backward on one thread, time and memory.

Both make the mean of the two cross-entropies of N images and N captions, and the gradients of both sides and of the scale.
Each measurement is a process of its own, so that its memory can be read: the peak less what it had before, inputs included
there and gradients not. Rounds alternate between the contenders, so that a noisy machine is noisy for both.
"""

import importlib.util
import re
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unimo_ds.bench.threads import DTYPES
from unimo_ds.kernels.contrastive import contrastive_statistics
from unimo_ds.progress import track

WIDTH = 768
SIZES = (4096, 16384)
HUGE = 65536  # its matrix would be 8 GiB in bf16, so the peer is not asked
_SCALE = 1 / 0.07

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def measure_contrastive(sizes: Sequence[int] = SIZES, rounds: int = 3, huge: bool = False) -> list[dict[str, object]]:
    """Rows for every size and precision, the peer's and ours, medians over rounds.

    Args:
        sizes: numbers of pairs.
        rounds: measurements of each row.
        huge: also 65,536 pairs in bf16, ours alone and once; takes minutes.
    """
    rows = [row for size in sizes for precision in DTYPES for row in _compare(size, precision, rounds)]
    if huge:
        rows.append(_row("ours", HUGE, "bf16", [_measure("ours", HUGE, "bf16")]))
    return rows


def _compare(size: int, precision: str, rounds: int) -> list[dict[str, object]]:
    found: dict[str, list[tuple[float, float]]] = {"peer": [], "ours": []}
    for _ in track(range(rounds), f"contrastive matrix of {size:,} {precision}", rounds, "rounds"):
        for contender, measured in found.items():
            measured.append(_measure(contender, size, precision))
    peer, ours = (_row(contender, size, precision, measured) for contender, measured in found.items())
    times = [there[0] / here[0] for there, here in zip(found["peer"], found["ours"], strict=True)]
    memory = [here[1] / there[1] for there, here in zip(found["peer"], found["ours"], strict=True)]
    return [peer, ours | {"times_faster": statistics.median(times), "share_of_memory": statistics.median(memory)}]


def _row(contender: str, size: int, precision: str, measured: list[tuple[float, float]]) -> dict[str, object]:
    seconds, extra_mb = (statistics.median(values) for values in zip(*measured, strict=True))
    name = peer()[0] if contender == "peer" else "ours"
    return {"pairs": size, "precision": precision, "contender": name, "seconds": seconds, "extra_mb": extra_mb}


def _measure(contender: str, size: int, precision: str) -> tuple[float, float]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(step, contender, size, precision).result()


def step(contender: str, size: int, precision: str) -> tuple[float, float]:
    """Processor seconds and extra megabytes of one forward and backward pass in this process."""
    torch.set_num_threads(1)
    loss = our_loss if contender == "ours" else peer()[1]
    for pairs in (64, size):  # first a warm-up
        x, y = (_unit_vectors(pairs, DTYPES[precision], seed).requires_grad_() for seed in range(2))
        scale = torch.tensor(_SCALE, requires_grad=True)
        before, started = _memory("VmRSS"), time.process_time()
        torch.autograd.backward(loss(x, y, scale))
        seconds = time.process_time() - started
    return seconds, _memory("VmHWM") - before


def _unit_vectors(count: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Made in slices, so that making them leaves no peak of memory behind."""
    generator, vectors = torch.Generator().manual_seed(seed), torch.empty(count, WIDTH, dtype=dtype)
    for start in range(0, count, 1024):
        part = vectors[start : start + 1024]
        part.copy_(F.normalize(torch.randn(part.shape, generator=generator), dim=1))
    return vectors


def our_loss(x_ND: Tensor, y_ND: Tensor, scale: Tensor) -> Tensor:
    """What open_clip's loss is, by our op."""
    groups_N = torch.arange(len(x_ND))
    row_all_N, row_own_N, column_all_N, column_own_N = contrastive_statistics(x_ND, y_ND, groups_N, groups_N, scale[None])
    return (row_all_N - row_own_N + column_all_N - column_own_N).mean() / 2


def peer() -> tuple[str, Loss]:
    """open_clip's loss, and its formula where open_clip is not installed, with the name of what it is."""
    package = importlib.util.find_spec("open_clip")
    if package is None or not package.submodule_search_locations:
        return "formula of open_clip's ClipLoss", _formula
    # The loss alone: the package imports its models, which need more than PyTorch.
    file = Path(package.submodule_search_locations[0]) / "loss.py"
    spec: Any = importlib.util.spec_from_file_location("open_clip_loss", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    loss: Loss = module.ClipLoss()
    return "open_clip's ClipLoss", loss


def _formula(x_ND: Tensor, y_ND: Tensor, scale: Tensor) -> Tensor:
    labels_N = torch.arange(len(x_ND))
    ways = F.cross_entropy(scale * x_ND @ y_ND.T, labels_N) + F.cross_entropy(scale * y_ND @ x_ND.T, labels_N)
    return ways / 2


def _memory(kind: str) -> float:
    """Megabytes of this process: VmRSS now, VmHWM at the most so far."""
    found = re.search(rf"{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def table(rows: list[dict[str, object]]) -> str:
    """The rows as Markdown."""
    head = "| pairs | precision | contender | seconds | extra MB | times faster | share of memory |\n" + "|---" * 7 + "|\n"
    lines = [
        f"| {row['pairs']:,} | {row['precision']} | {row['contender']} | {row['seconds']:.2f} | {row['extra_mb']:,.0f} "
        + (f"| {row['times_faster']:.2f} | {row['share_of_memory']:.3f} |" if "times_faster" in row else "| | |")
        for row in rows
    ]
    return head + "\n".join(lines)
