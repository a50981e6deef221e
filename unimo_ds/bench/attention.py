"""Attention on a CPU against torch's own, on the same packed stream: forward and backward, one thread, processor time.

The other way is the common one: the stream is gathered into sequences padded to the longest, torch's fused attention gets a
boolean mask, and the attended rows are gathered back. Its indices and mask are made beforehand and not timed, and neither is
our plan of the batch: a model makes both once for all its layers. Rounds are interleaved; the ratio is the median over rounds.

Shape suffixes: T positions, S sequences, L the longest, H heads, E head width.
"""

import statistics
import time
from itertools import product

import numpy as np
import torch
from torch import Tensor

from unimo_ds.bench.kernel_peers import Attend, padded_sdpa, sequences_of
from unimo_ds.bench.threads import DTYPES, one_thread
from unimo_ds.kernels.attention import packed_attention
from unimo_ds.kernels.counts import Lengths, mixed_batch, standard_batch
from unimo_ds.progress import track

HEADS, WIDTH = 12, 64  # of the base model
RATES = (0.0, 0.1)
_CPU = torch.device("cpu")


def batches() -> dict[str, Lengths]:
    """What is timed: image-text pairs as `unimo-ds kernels --counts` has them, and a few documents."""
    documents_S = np.full(4, 512)
    return {
        "256 x 37..100": standard_batch(),
        "the same, mixed": mixed_batch(),
        "4 x 512": Lengths(documents_S, documents_S),
    }


def measure_attention(timed: dict[str, Lengths], rounds: int = 5) -> list[dict[str, object]]:
    """A row for every batch, precision and dropout: our processor seconds, those of padded SDPA, and their ratio.

    Args:
        timed: the batches by name.
        rounds: timings of each, after a warm-up.
    """
    cases = list(product(timed, DTYPES, RATES))
    with one_thread():
        return [_row(*case, timed[case[0]], rounds) for case in track(cases, "attention", len(cases), "cases")]


def _row(batch: str, precision: str, rate: float, lengths: Lengths, rounds: int) -> dict[str, object]:
    sequences, positions = sequences_of(lengths, _CPU), int(lengths.lengths_S.sum())
    generator = torch.Generator().manual_seed(0)
    qkv_T3HE = torch.randn(positions, 3, HEADS, WIDTH, generator=generator).to(DTYPES[precision]).requires_grad_()
    d_attended_THE = torch.randn(positions, HEADS, WIDTH, generator=generator).to(qkv_T3HE.dtype)
    ways = (lambda qkv: packed_attention(qkv, sequences, rate)), padded_sdpa(lengths, rate, _CPU)
    times = [[_seconds(way, qkv_T3HE, d_attended_THE) for way in ways] for _ in range(rounds + 1)][1:]
    ours, padded = (statistics.median(column) for column in zip(*times, strict=True))
    faster = statistics.median(there / here for here, there in times)
    shape = {"batch": batch, "precision": precision, "dropout": rate}
    return shape | {"ours_seconds": ours, "padded_sdpa_seconds": padded, "times_faster": faster}


def _seconds(way: Attend, qkv_T3HE: Tensor, d_attended_THE: Tensor) -> float:
    qkv_T3HE.grad = None
    started = time.process_time()
    torch.autograd.backward(way(qkv_T3HE), d_attended_THE)
    return time.process_time() - started


def table(rows: list[dict[str, object]]) -> str:
    """The rows as Markdown."""
    head = "| batch | precision | dropout | ours ms | padded SDPA ms | times faster |\n|---|---|---|---|---|---|\n"
    return head + "\n".join(
        f"| {row['batch']} | {row['precision']} | {row['dropout']} | {_milliseconds(row['ours_seconds'])} "
        f"| {_milliseconds(row['padded_sdpa_seconds'])} | {row['times_faster']:.2f} |"
        for row in rows
    )


def _milliseconds(seconds: object) -> str:
    assert isinstance(seconds, float)
    return f"{1000 * seconds:.1f}"
