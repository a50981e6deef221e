"""Attention on a CPU against torch's own, on the same packed stream: forward and backward, one thread, processor time.

The other way is the common one: the stream is gathered into sequences padded to the longest, torch's fused attention gets a
boolean mask, and the attended rows are gathered back. Its indices and mask are made beforehand and not timed, and neither is
our plan of the batch: a model makes both once for all its layers. Rounds are interleaved; the ratio is the median over rounds.

Shape suffixes: T positions, S sequences, L the longest, H heads, E head width.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unimo_ds.kernels.attention import Sequences, packed_attention, tile_list
from unimo_ds.progress import track

HEADS, WIDTH = 12, 64  # of the base model
STANDARD = tuple(np.random.default_rng(0).integers(37, 101, 32).tolist())  # image-text pairs, a micro-batch
BATCHES = {"32 x 37..100": STANDARD, "4 x 512": (512,) * 4}
RATES = (0.0, 0.1)
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

Attend = Callable[[Tensor], Tensor]


def measure_attention(rounds: int = 9, batches: dict[str, tuple[int, ...]] = BATCHES) -> list[dict[str, object]]:
    """A row for every batch, precision and dropout: our processor seconds, those of padded SDPA, and their ratio.

    Args:
        rounds: timings of each, after two warm-ups.
        batches: name and lengths; a third of the sequences each is bidirectional, sequence-to-sequence and causal.
    """
    cases = list(product(batches, _DTYPES, RATES))
    with _one_thread():
        return [_row(*case, batches[case[0]], rounds) for case in track(cases, "attention", len(cases), "cases")]


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _row(batch: str, precision: str, rate: float, lengths: tuple[int, ...], rounds: int) -> dict[str, object]:
    sequences = sequences_of(lengths)
    generator = torch.Generator().manual_seed(0)
    qkv_T3HE = torch.randn(sum(lengths), 3, HEADS, WIDTH, generator=generator).to(_DTYPES[precision]).requires_grad_()
    d_attended_THE = torch.randn(sum(lengths), HEADS, WIDTH, generator=generator).to(qkv_T3HE.dtype)
    ways = (lambda qkv: packed_attention(qkv, sequences, rate)), padded_sdpa(sequences, rate)
    times = [[_seconds(way, qkv_T3HE, d_attended_THE) for way in ways] for _ in range(rounds + 2)][2:]
    ours, padded = (statistics.median(column) for column in zip(*times, strict=True))
    faster = statistics.median(there / here for here, there in times)
    shape = {"batch": batch, "precision": precision, "dropout": rate}
    return shape | {"ours_seconds": ours, "padded_sdpa_seconds": padded, "times_faster": faster}


def _seconds(way: Attend, qkv_T3HE: Tensor, d_attended_THE: Tensor) -> float:
    qkv_T3HE.grad = None
    started = time.process_time()
    torch.autograd.backward(way(qkv_T3HE), d_attended_THE)
    return time.process_time() - started


def sequences_of(lengths: tuple[int, ...]) -> Sequences:
    """A batch of these lengths, every kind of mask among it."""
    lengths_S = np.array(lengths)
    prefixes_S = np.choose(np.arange(len(lengths)) % 3, [lengths_S, lengths_S // 2, 0 * lengths_S])
    arrays = np.append(0, lengths_S.cumsum()).astype(np.int32), prefixes_S.astype(np.int32), tile_list(lengths_S, prefixes_S)
    return Sequences(*map(torch.from_numpy, arrays))


def padded_sdpa(sequences: Sequences, rate: float) -> Attend:
    """torch's attention on the padded batch, as a function of `qkv` [T, 3, H, E]."""
    lengths_S1 = sequences.cu_seqlens_S1.diff()[:, None].long()
    column_L = torch.arange(int(lengths_S1.max()))
    sources = (sequences.cu_seqlens_S1[:-1, None] + torch.minimum(column_L, lengths_S1 - 1)).flatten()
    places_T = (column_L < lengths_S1).flatten().nonzero().flatten()
    reach_SL = torch.minimum(torch.maximum(sequences.prefix_lengths_S[:, None], column_L + 1), lengths_S1)
    visible_S1LL = (column_L < reach_SL[..., None])[:, None]

    def attend(qkv_T3HE: Tensor) -> Tensor:
        padded_SL3HE = qkv_T3HE.index_select(0, sources).unflatten(0, (-1, len(column_L)))  # type: ignore[no-untyped-call]
        query, key, value = padded_SL3HE.permute(2, 0, 3, 1, 4)
        mixed_SHLE = F.scaled_dot_product_attention(query, key, value, attn_mask=visible_S1LL, dropout_p=rate)
        return mixed_SHLE.transpose(1, 2).flatten(0, 1).index_select(0, places_T)

    return attend


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
