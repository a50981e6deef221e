"""Attention on the packed stream, for every mask of UNIMO by one rule.

Position j of a sequence is visible to position i when `j < max(prefix_length, i + 1)`: prefix = length is bidirectional,
0 < prefix < length is sequence-to-sequence, 0 is causal.

The CPU implementation sorts sequences into a few buckets of similar length and runs padded attention on each. The plan of
the buckets depends on lengths alone, so it is made once a batch and serves all layers. Which inner product is fastest was
measured (docs/architecture.md): fp32 through torch's fused attention, bf16 through batched products, because torch's
fused backward is slow in bf16 on a CPU.

Shape suffixes: T positions, S sequences, B sequences of a bucket, N rows of a bucket's padded sequences, H heads,
E head width.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unimo_ds.kernels.dropout import dropout

_MOST_BUCKETS = 4
_HIDDEN = -1e4  # added to masked scores; the original's value, finite so that padded rows stay finite (unimo-spec, 3)


@dataclass(frozen=True)
class Bucket:
    """Sequences that are padded to one length. `bias_B1NN` is 0 where a key is visible and -1e4 where not."""

    start: int  # where the bucket's padded rows begin in the buffer of all buckets
    sequences: int
    length: int
    bias_B1NN: Tensor


@dataclass(frozen=True)
class AttentionPlan:
    """How to go from the stream to padded buckets and back.

    Attributes:
        buckets: the buckets, one after the other in a buffer of padded rows.
        padded_rows: for each buffer row, the stream row it copies (padding: the last of its sequence).
        padding: bool, which buffer rows are padding.
        stream_rows_T: for each stream row, its place in the buffer.
    """

    buckets: tuple[Bucket, ...]
    padded_rows: Tensor
    padding: Tensor
    stream_rows_T: Tensor


def plan_attention(cu_seqlens_S1: Tensor, prefix_lengths_S: Tensor, dtype: torch.dtype) -> AttentionPlan:
    """Plans the buckets of a batch.

    Args:
        cu_seqlens_S1: int32, where sequences begin, and the end.
        prefix_lengths_S: int32, rows of each sequence that all its rows see.
        dtype: of the queries: the biases are made in it.
    """
    device = cu_seqlens_S1.device
    starts = cu_seqlens_S1.cpu().numpy().astype(np.int64)
    lengths, prefixes = np.diff(starts), prefix_lengths_S.cpu().numpy()
    order = np.argsort(lengths, kind="stable")
    buckets, padded, padding = [], [], []
    stream_rows = np.empty(int(starts[-1]), dtype=np.int64)
    filled = 0
    for members in _split_by_length(lengths[order]):
        chosen = order[members]
        longest = int(lengths[chosen].max())
        column = np.arange(longest)
        inside = column[None] < lengths[chosen][:, None]
        # Padding copies its own sequence, so that not even a NaN can pass from one sequence to another.
        rows = starts[chosen][:, None] + np.minimum(column[None], lengths[chosen][:, None] - 1)
        stream_rows[rows[inside]] = filled + np.flatnonzero(inside)
        buckets.append(Bucket(filled, len(chosen), longest, _bias(lengths[chosen], prefixes[chosen], longest, dtype, device)))
        padded.append(rows.reshape(-1))
        padding.append(~inside.reshape(-1))
        filled += rows.size
    joined = np.concatenate(padded) if padded else np.zeros(0, np.int64)
    pads = np.concatenate(padding) if padding else np.zeros(0, bool)
    as_tensor = [torch.from_numpy(array).to(device) for array in (joined, pads, stream_rows)]
    return AttentionPlan(tuple(buckets), *as_tensor)


def _bias(lengths: Any, prefixes: Any, longest: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    place = np.arange(longest)
    reach = np.maximum(prefixes[:, None], place[None] + 1)  # keys that query i sees
    reach = np.minimum(reach, lengths[:, None])
    visible = place[None, None, :] < reach[:, :, None]
    return torch.from_numpy(np.where(visible, 0.0, _HIDDEN)).to(device=device, dtype=dtype)[:, None]


def _split_by_length(sorted_lengths: Any) -> list[slice]:
    """Cuts the sorted lengths into at most four runs with the least padded work (sum of sequences x longest squared)."""
    values, first = np.unique(sorted_lengths, return_index=True)
    ends = np.append(first[1:], len(sorted_lengths))
    best = {0: (0.0, [0])}  # number of distinct lengths covered -> (cost, cuts)
    finished = (float("inf"), [0])
    for _ in range(min(_MOST_BUCKETS, len(values))):
        reached: dict[int, tuple[float, list[int]]] = {}
        for covered, (cost, cuts) in best.items():
            begin = first[covered] if covered < len(values) else len(sorted_lengths)
            for last in range(covered, len(values)):
                total = cost + float(ends[last] - begin) * float(values[last]) ** 2
                if total < reached.get(last + 1, (float("inf"), []))[0]:
                    reached[last + 1] = (total, [*cuts, int(ends[last])])
        best = {covered: found for covered, found in reached.items() if covered < len(values)}
        finished = min(finished, reached.get(len(values), finished), key=lambda found: found[0])
    cuts = finished[1]
    return [slice(begin, end) for begin, end in pairwise(cuts)]


class _Pad(torch.autograd.Function):
    """Stream rows to buffer rows. Both directions are plain gathers, because each stream row stands in the buffer once."""

    @staticmethod
    def forward(ctx: Any, stream: Tensor, plan: AttentionPlan) -> Tensor:
        ctx.plan = plan
        return stream.index_select(0, plan.padded_rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].index_select(0, ctx.plan.stream_rows_T), None


class _Unpad(torch.autograd.Function):
    """Buffer rows back to stream rows; padding gets no gradient."""

    @staticmethod
    def forward(ctx: Any, buffer: Tensor, plan: AttentionPlan) -> Tensor:
        ctx.plan = plan
        return buffer.index_select(0, plan.stream_rows_T)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        padded = gradients[0].index_select(0, ctx.plan.padded_rows)
        return padded.masked_fill_(ctx.plan.padding.view(-1, *[1] * (padded.dim() - 1)), 0.0), None


def packed_attention(qkv_T3HE: Tensor, plan: AttentionPlan, rate: float) -> Tensor:
    """Attention of every sequence of the stream within itself.

    Args:
        qkv_T3HE: queries, keys and values.
        plan: of this batch.
        rate: probability with which an attention weight is dropped; 0 outside training.

    Returns:
        [T, H, E], the attended values.
    """
    if not plan.buckets:
        return qkv_T3HE[:, 0] + qkv_T3HE[:, 1] + qkv_T3HE[:, 2]  # no rows, but a gradient path to every input
    buffer = _Pad.apply(qkv_T3HE, plan)
    attended = [_attend(buffer, bucket, rate) for bucket in plan.buckets]
    out: Tensor = _Unpad.apply(torch.cat(attended), plan)
    return out


def _attend(buffer: Tensor, bucket: Bucket, rate: float) -> Tensor:
    """Padded attention of one bucket; returns its rows [B * N, H, E]."""
    end = bucket.start + bucket.sequences * bucket.length
    rows = buffer[bucket.start : end].view(bucket.sequences, bucket.length, 3, *buffer.shape[2:])
    query, key, value = rows.permute(2, 0, 3, 1, 4)  # each [B, H, N, E]
    if buffer.dtype == torch.float32 and rate == 0.0:  # with dropout, torch would not take its fused path on a CPU
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bucket.bias_B1NN)
    else:
        scores = torch.matmul(query * query.shape[-1] ** -0.5, key.transpose(-1, -2)) + bucket.bias_B1NN
        mixed = torch.matmul(dropout(scores.softmax(-1), rate), value)
    return mixed.transpose(1, 2).reshape(-1, *buffer.shape[2:])
