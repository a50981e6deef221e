"""Attention on the packed stream, for every mask of UNIMO by one rule.

Position j of a sequence is visible to position i when `j < max(prefix_length, i + 1)`: prefix = length is bidirectional,
0 < prefix < length is sequence-to-sequence, 0 is causal.

The CPU implementation sorts sequences into a few buckets of similar length and runs padded attention on each, as batched
products, softmax and dropout. The plan of the buckets depends on lengths alone, so it is made once a batch and serves all
layers. The backward pass is written by hand: the padded copy has the rows of each head together, so that no product copies its
operands; autograd would copy and zero-fill once a bucket. What was measured: docs/performance.md.

Shape suffixes: T positions, S sequences, P rows of the padded buffer, B sequences of a block, N padded length, H heads,
E head width.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from unimo_ds.kernels.dropout import apply_kept, draw_kept

_MOST_BUCKETS = 4
_BLOCK_ELEMENTS = 1 << 20  # scores computed at a time: what stays in a core's cache through softmax and dropout
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
        sources_P: for each row of the buffer, the stream row it copies (padding: the last of its sequence).
        columns_P, lengths_P: its place in its padded sequence, and that sequence's padded length.
        padding: which rows of the buffer are padding.
        places_T: for each stream row, its row of the buffer.
    """

    buckets: tuple[Bucket, ...]
    sources_P: Tensor
    columns_P: Tensor
    lengths_P: Tensor
    padding: Tensor
    places_T: Tensor


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
    buckets, parts = [], [np.zeros((4, 0), np.int64)]
    filled = 0
    for members in _split_by_length(lengths[order]):
        chosen = order[members]
        longest = int(lengths[chosen].max())
        column = np.broadcast_to(np.arange(longest), (len(chosen), longest))
        inside = column < lengths[chosen][:, None]
        # Padding copies its own sequence, so that not even a NaN can pass from one sequence to another.
        sources = starts[chosen][:, None] + np.minimum(column, lengths[chosen][:, None] - 1)
        buckets.append(Bucket(filled, len(chosen), longest, _bias(lengths[chosen], prefixes[chosen], longest, dtype, device)))
        parts.append(np.stack([sources, column, np.full_like(sources, longest), inside]).reshape(4, -1))
        filled += sources.size
    sources, column, longest_P, inside = np.concatenate(parts, axis=1)
    places = np.empty(int(starts[-1]), dtype=np.int64)
    places[sources[inside == 1]] = np.flatnonzero(inside)
    arrays = (sources, column, longest_P, np.flatnonzero(inside == 0), places)
    return AttentionPlan(tuple(buckets), *(torch.from_numpy(array).to(device) for array in arrays))


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


def packed_attention(qkv_T3HE: Tensor, plan: AttentionPlan, rate: float) -> Tensor:
    """Attention of every sequence of the stream within itself.

    Args:
        qkv_T3HE: queries, keys and values.
        plan: of this batch.
        rate: probability with which an attention weight is dropped; 0 outside training.

    Returns:
        [T, H, E], the attended values.
    """
    attended: Tensor = _PackedAttention.apply(qkv_T3HE, plan, rate)
    return attended


class _Block(NamedTuple):
    """Some sequences of a bucket: their rows in a buffer of head rows, and their bias."""

    rows: slice
    bias_B1NN: Tensor

    def matrices(self, buffer: Tensor) -> Tensor:
        """The block's rows of `buffer` [.., P H, E] as matrices [.., B H, N, E]."""
        return buffer[..., self.rows, :].view(*buffer.shape[:-2], -1, self.bias_B1NN.shape[-1], buffer.shape[-1])


def _blocks(plan: AttentionPlan, heads: int) -> Iterator[_Block]:
    for bucket in plan.buckets:
        size = max(1, _BLOCK_ELEMENTS // (heads * bucket.length**2))
        for first in range(0, bucket.sequences, size):
            last = min(first + size, bucket.sequences)
            begin, end = (heads * (bucket.start + bucket.length * sequence) for sequence in (first, last))
            yield _Block(slice(begin, end), bucket.bias_B1NN[first:last])


def _head_rows(plan: AttentionPlan, heads: int) -> Tensor:
    """Where row p of head h lies in a buffer that has the rows of one head of one sequence together, [P, H]."""
    rows_P = torch.arange(len(plan.sources_P), device=plan.sources_P.device)
    first_P = (rows_P - plan.columns_P) * heads + plan.columns_P
    return first_P[:, None] + plan.lengths_P[:, None] * torch.arange(heads, device=first_P.device)


def _sources(plan: AttentionPlan, rows_PH: Tensor, parts: int) -> Tensor:
    """For each row of that buffer, the row it copies of a stream [T, parts, H] in its first part."""
    heads = torch.arange(rows_PH.shape[1], device=rows_PH.device)
    sources = torch.empty_like(rows_PH).view(-1)
    sources[rows_PH] = plan.sources_P[:, None] * (parts * len(heads)) + heads
    return sources


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv_T3HE: Tensor, plan: AttentionPlan, rate: float) -> Tensor:
        positions, parts, heads, width = qkv_T3HE.shape
        rows_PH = _head_rows(plan, heads)
        queries = _sources(plan, rows_PH, parts)
        sources = torch.cat([queries + part * heads for part in range(parts)])
        padded = qkv_T3HE.reshape(-1, width).index_select(0, sources).view(parts, len(queries), width)
        padded[0] *= width**-0.5
        mixed = torch.empty_like(padded[0])
        saved = []
        for block in _blocks(plan, heads):
            query, key, value = block.matrices(padded)
            scores = torch.bmm(query, key.mT)
            scores.view(-1, heads, *scores.shape[1:]).add_(block.bias_B1NN)
            weights = scores.softmax(-1)
            saved.append(weights)
            if rate:
                saved.append(draw_kept(weights, rate))
                weights = apply_kept(weights, saved[-1], rate)
            torch.bmm(weights, value, out=block.matrices(mixed))
        ctx.save_for_backward(padded, rows_PH, *saved)
        ctx.plan, ctx.rate = plan, rate
        return mixed.index_select(0, rows_PH[plan.places_T].view(-1)).view(positions, heads, width)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        padded, rows_PH, *saved = ctx.saved_tensors
        plan, rate, (positions, heads, width) = ctx.plan, ctx.rate, gradients[0].shape
        d_mixed = gradients[0].reshape(-1, width).index_select(0, _sources(plan, rows_PH, parts=1))
        d_mixed.index_fill_(0, rows_PH[plan.padding].view(-1), 0.0)
        d_padded = torch.empty_like(padded)
        left = iter(saved)
        for block in _blocks(plan, heads):
            query, key, value = block.matrices(padded)
            d_query, d_key, d_value = block.matrices(d_padded)
            d_mix = block.matrices(d_mixed)
            weights = dropped = next(left)
            d_weights = torch.bmm(d_mix, value.mT)
            if rate:
                kept = next(left)
                dropped, d_weights = apply_kept(weights, kept, rate), apply_kept(d_weights, kept, rate)
            torch.bmm(dropped.mT, d_mix, out=d_value)
            d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
            torch.bmm(d_scores, key, out=d_query)
            torch.bmm(d_scores.mT, query, out=d_key)
        d_padded[0] *= width**-0.5
        places_TH = rows_PH[plan.places_T]
        places_T3H = torch.stack([places_TH + part * rows_PH.numel() for part in range(3)], dim=1)
        return d_padded.view(-1, width).index_select(0, places_T3H.view(-1)).view(positions, 3, heads, width), None, None
