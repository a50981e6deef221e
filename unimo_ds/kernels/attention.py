"""Attention on the packed stream, for every mask of UNIMO by one rule.

Position j of a sequence is visible to position i when `j < max(prefix_length, i + 1)`: prefix = length is bidirectional,
0 < prefix < length is sequence-to-sequence, 0 is causal.

Two ops with a CUDA (`attention_triton.py`) and a CPU implementation. The CPU's pads each sequence to the next multiple of 8,
where matrix products and softmax are at their fastest, and computes sequences of one padded length together, in blocks that
stay in a core's cache, as batched products and softmax. Which row goes where depends on lengths alone; it is found out once a
batch and serves all layers. The weights are kept for the hand-written backward pass: to make them again takes a fifth to a
third longer, forward and backward together. What was measured: docs/performance.md.

Dropout draws from `seed_2`, so that a seed repeats it; a GPU and a CPU draw differently.

Shape suffixes: T positions, S sequences, N tiles, B sequences of a block, L their padded length, R rows of a block (B H L),
H heads, E head width.
"""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unimo_ds.kernels.dropout import draw_kept
from unimo_ds.kernels.linear import product_dtype
from unimo_ds.kernels.table import WIDTHS

TILE_ROWS = 64  # of one sequence, what a CUDA program works on
CUDA_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_MULTIPLE = 8  # padded lengths: products are a fifth slower at odd ones
_BLOCK_ELEMENTS = 1 << 18  # scores computed at a time: what stays in a core's cache from product to product
_HIDDEN = -math.inf  # added to masked scores; the original adds -1e4, which large scores can pass (unimo-spec, 3)

Ints = npt.NDArray[np.int64]


class Sequences(NamedTuple):
    """How the stream is cut.

    Attributes:
        cu_seqlens_S1: int32 [S+1], where sequences begin, and the end.
        prefix_lengths_S: int32, rows of each sequence that all its rows see.
        tiles_N4: int32, `tile_list` of the batch.
    """

    cu_seqlens_S1: Tensor
    prefix_lengths_S: Tensor
    tiles_N4: Tensor


def tile_list(lengths: npt.ArrayLike, prefixes: npt.ArrayLike) -> npt.NDArray[np.int32]:
    """Cuts every sequence into tiles of `TILE_ROWS` rows, the last one shorter: what the CUDA programs of a batch work on.

    Programs start in the order of the list, so the longest come first and the short ones fill the gaps at the end. The work of
    a tile is taken as the number of keys that its rows see together; ties keep the order of the stream.

    Args:
        lengths: of the sequences.
        prefixes: rows of each that all its rows see.

    Returns:
        int32 [N, 4]: the first stream row of the tile's sequence, its length, its prefix, the tile's first row in the sequence.
    """
    lengths_S, prefixes_S = np.asarray(lengths, np.int64), np.asarray(prefixes, np.int64)
    counts_S = -(-lengths_S // TILE_ROWS)
    sequence_N = np.repeat(np.arange(len(lengths_S)), counts_S)
    first_N = TILE_ROWS * (np.arange(len(sequence_N)) - np.repeat(np.cumsum(counts_S) - counts_S, counts_S))
    length_N, prefix_N = lengths_S[sequence_N], prefixes_S[sequence_N]
    keys_N = np.maximum(prefix_N, np.minimum(first_N + TILE_ROWS, length_N))
    start_N = (np.cumsum(lengths_S) - lengths_S)[sequence_N]
    tiles_N4 = np.stack([start_N, length_N, prefix_N, first_N], axis=1).astype(np.int32)
    return tiles_N4[np.argsort(-keys_N, kind="stable")]


def packed_attention(qkv_T3HE: Tensor, sequences: Sequences, rate: float) -> Tensor:
    """Attention of every sequence of the stream within itself.

    Args:
        qkv_T3HE: queries, keys and values; float32, bfloat16 or float16, on a CPU float64 too. Under autocast it is bfloat16.
        sequences: of this batch, on the same device.
        rate: probability with which an attention weight is dropped, below 1; 0 outside training. The draws are seeded by
            torch's default generator of the device.

    Returns:
        [T, H, E], the attended values.

    Raises:
        ValueError: a shape or type is wrong, the sequences do not fit the stream, or a CUDA tensor has a head width or type
            that the kernel is not compiled for.
    """
    _check(qkv_T3HE, sequences, rate)
    seed_2 = torch.randint(1 << 62, (2,), device=qkv_T3HE.device) if rate else None
    attended: Tensor = _forward(qkv_T3HE, *sequences, rate, seed_2, _weights_to_keep(qkv_T3HE, sequences))[0]
    return attended


def _check(qkv_T3HE: Tensor, sequences: Sequences, rate: float) -> None:
    if qkv_T3HE.dim() != 4 or qkv_T3HE.shape[1] != 3 or not all(qkv_T3HE.shape[2:]) or not qkv_T3HE.is_floating_point():
        raise ValueError(
            f"qkv is {qkv_T3HE.dtype} of shape {list(qkv_T3HE.shape)}; give floats [positions, 3, heads, head width]"
        )
    cu_seqlens, prefix_lengths, tiles = sequences
    if any(part.dtype != torch.int32 for part in sequences):
        raise ValueError(f"cu_seqlens, prefix_lengths and tiles are {', '.join(str(p.dtype) for p in sequences)}; give int32")
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] != prefix_lengths.shape[0] + 1 or tiles.dim() != 2 or tiles.shape[1] != 4:
        shapes = ", ".join(str(list(part.shape)) for part in sequences)
        raise ValueError(f"cu_seqlens, prefix_lengths and tiles have shapes {shapes}; give [S+1], [S], [N, 4]")
    if not 0 <= rate < 1:
        raise ValueError(f"rate is {rate}; a weight is dropped with a probability of 0 to below 1")


def _weights_to_keep(qkv_T3HE: Tensor, sequences: Sequences) -> int:
    """How many elements of weights the backward pass will want; 0: it makes them again, if it comes at all.

    The number depends on lengths, which a compiled graph must not read.
    """
    wanted = qkv_T3HE.requires_grad and torch.is_grad_enabled()
    if not wanted or qkv_T3HE.device.type != "cpu" or torch.compiler.is_compiling():
        return 0
    return _plan_of(qkv_T3HE, sequences.cu_seqlens_S1, sequences.prefix_lengths_S).weights


@torch.library.custom_op("unimo_ds::packed_attention", mutates_args=(), device_types="cpu")
def _forward(
    qkv: Tensor, cu_seqlens: Tensor, prefix_lengths: Tensor, tiles: Tensor, rate: float, seed: Tensor | None, kept: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The attended values [T, H, E]; on CUDA the logs of each row's sum of `exp(score)`, float32 [H, T]; and `kept` weights.

    `seed` is int64 [2], None where `rate` is 0. `kept` is 0 or, on a CPU, the number of all weights of the batch's blocks.
    """
    positions, _, heads, width = qkv.shape
    plan, rows = _plan_of(qkv, cu_seqlens, prefix_lengths), qkv.reshape(-1, width)
    attended, weights = qkv.new_empty(positions, heads, width), qkv.new_empty(kept, dtype=product_dtype(qkv.dtype))
    draw = _Draw(rate, seed)
    for block in plan.blocks:
        query, key, value = block.gathered(rows)
        out = weights[block.weights].view(block.square) if kept else None
        signed = _signed_weights(query, key, block, draw, out)
        if rate:
            signed, value = signed.relu(), value.mul_(draw.scale)
        block.scatter(torch.bmm(signed, value)[None], attended[:, None])
    return attended, qkv.new_empty(heads, 0, dtype=torch.float32), weights


@torch.library.custom_op("unimo_ds::packed_attention_backward", mutates_args=(), device_types="cpu")
def _backward(
    d_attended: Tensor,
    qkv: Tensor,
    attended: Tensor,
    log_sums: Tensor,
    weights: Tensor,
    cu_seqlens: Tensor,
    prefix_lengths: Tensor,
    tiles: Tensor,
    rate: float,
    seed: Tensor | None,
) -> Tensor:
    """The gradient of `qkv`, [T, 3, H, E]; `weights` are the kept ones, or none."""
    width = qkv.shape[-1]
    plan, rows, d_rows = _plan_of(qkv, cu_seqlens, prefix_lengths), qkv.reshape(-1, width), d_attended.reshape(-1, width)
    d_qkv = qkv.new_empty(qkv.shape)
    draw = _Draw(rate, seed)
    for block in plan.blocks:
        query, key, value = block.gathered(rows)
        d_mixed = d_rows.index_select(0, block.attended_R).index_fill_(0, block.padding, 0.0).view(value.shape).to(value.dtype)
        kept = weights[block.weights].view(block.square) if len(weights) else None
        signed = soft = dropped = _signed_weights(query, key, block, draw, None) if kept is None else kept
        if rate:
            soft, dropped = signed.abs(), signed.relu()
            d_mixed.mul_(draw.scale)
        d_weights = torch.bmm(d_mixed, value.mT)
        if rate:
            d_weights = torch.ops.aten.threshold_backward(d_weights, signed, 0)
        d_scores = torch._softmax_backward_data(d_weights, soft, -1, soft.dtype)
        d_block = value.new_empty(3, *value.shape)
        torch.bmm(d_scores, key, out=d_block[0]).mul_(width**-0.5)
        torch.bmm(d_scores.mT, query, out=d_block[1])
        torch.bmm(dropped.mT, d_mixed, out=d_block[2])
        block.scatter(d_block, d_qkv)
    return d_qkv


@_forward.register_kernel("cuda")
def _forward_cuda(
    qkv: Tensor, cu_seqlens: Tensor, prefix_lengths: Tensor, tiles: Tensor, rate: float, seed: Tensor | None, kept: int
) -> tuple[Tensor, Tensor, Tensor]:
    from unimo_ds.kernels import attention_triton
    from unimo_ds.kernels.launch_triton import launcher_for

    _check_cuda(qkv)
    attended, log_sums = attention_triton.forward(qkv.contiguous(), tiles, rate, seed, launcher_for(qkv.device))
    return attended, log_sums, qkv.new_empty(0)


@_backward.register_kernel("cuda")
def _backward_cuda(
    d_attended: Tensor,
    qkv: Tensor,
    attended: Tensor,
    log_sums: Tensor,
    weights: Tensor,
    cu_seqlens: Tensor,
    prefix_lengths: Tensor,
    tiles: Tensor,
    rate: float,
    seed: Tensor | None,
) -> Tensor:
    from unimo_ds.kernels import attention_triton
    from unimo_ds.kernels.launch_triton import launcher_for

    inputs = d_attended.contiguous(), qkv.contiguous(), attended, log_sums
    return attention_triton.backward(*inputs, tiles, rate, seed, launcher_for(qkv.device))


def _check_cuda(qkv: Tensor) -> None:
    if qkv.shape[-1] not in WIDTHS or qkv.dtype not in CUDA_DTYPES:
        raise ValueError(
            f"the CUDA attention kernel has no form for head width {qkv.shape[-1]} in {qkv.dtype}; head widths are "
            f"{', '.join(map(str, WIDTHS))}, types bfloat16, float16 and float32; choose hidden_size / heads among them"
        )


@_forward.register_fake
def _forward_fake(
    qkv: Tensor, cu_seqlens: Tensor, prefix_lengths: Tensor, tiles: Tensor, rate: float, seed: Tensor | None, kept: int
) -> tuple[Tensor, Tensor, Tensor]:
    positions, _, heads, width = qkv.shape
    on_cuda = qkv.device.type == "cuda"
    if on_cuda:
        _check_cuda(qkv)
    log_sums = qkv.new_empty(heads, positions if on_cuda else 0, dtype=torch.float32)
    weights = qkv.new_empty(kept, dtype=qkv.dtype if on_cuda else product_dtype(qkv.dtype))
    return qkv.new_empty(positions, heads, width), log_sums, weights


@_backward.register_fake
def _backward_fake(d_attended: Tensor, qkv: Tensor, *others: Any) -> Tensor:
    return qkv.new_empty(qkv.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    qkv, cu_seqlens, prefix_lengths, tiles, rate, seed, _ = inputs
    ctx.save_for_backward(qkv, *output, cu_seqlens, prefix_lengths, tiles, seed)
    ctx.rate = rate
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # else a gradient of zeros is made for the weights


def _gradient(ctx: Any, d_attended: Tensor | None, *nothing: None) -> tuple[Tensor | None, ...]:
    qkv, attended, log_sums, weights, cu_seqlens, prefix_lengths, tiles, seed = ctx.saved_tensors
    if d_attended is None:
        return (None,) * 7
    saved = qkv, attended, log_sums, weights, cu_seqlens, prefix_lengths, tiles
    return _backward(d_attended, *saved, ctx.rate, seed), *(None,) * 6


_forward.register_autograd(_gradient, setup_context=_save)
for _device in ("cuda", "cpu"):
    _forward.register_autocast(_device, torch.bfloat16)


class _Draw:
    """The draws of one call, in the order of its blocks: the same for the same seed."""

    def __init__(self, rate: float, seed: Tensor | None) -> None:
        self.rate, self.scale = rate, 1 / (1 - rate)
        self._generator = torch.Generator().manual_seed(int(seed[0])) if seed is not None else None

    def signs(self, weights: Tensor) -> Tensor:
        """-1 with probability `rate`, else 1, of the shape and type of `weights`."""
        return draw_kept(weights, self.rate, self._generator).mul_(2).sub_(1).to(weights.dtype)


class _Block(NamedTuple):
    """Some sequences of one padded length, or some heads of one sequence, with the rows of each head together.

    Attributes:
        spans: where in the stream each of its sequences begins and ends.
        heads: which heads it has.
        square: the shape of its weights, [B H, L, L].
        weights: where these are among the weights of all blocks.
        sources: int64 [3 R], the row of `qkv` [T 3 H, E] that each of its queries, keys and values is.
        attended_R: int64, which row of [T H, E] each row is.
        padding: int64, which of its rows are padding.
        bias_B1LL: 0 where a key is visible and -inf where not; every row, padding too, sees its sequence's first key.
    """

    spans: list[tuple[int, int]]
    heads: slice
    square: tuple[int, int, int]
    weights: slice
    sources: Tensor
    attended_R: Tensor
    padding: Tensor
    bias_B1LL: Tensor

    def gathered(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Its scaled queries, its keys and its values, each [B H, L, E], in the type that they are multiplied in."""
        width = rows.shape[-1]
        gathered = rows.index_select(0, self.sources).view(3, *self.square[:2], width)
        query, key, value = gathered.to(product_dtype(rows.dtype))
        return query.mul_(width**-0.5), key, value

    def scatter(self, parts: Tensor, stream: Tensor) -> None:
        """Writes `parts` [parts, B H, L, E] to their places of `stream` [T, parts, H, E], padding left out."""
        matrices = parts.view(len(parts), len(self.spans), -1, *parts.shape[2:]).permute(1, 3, 0, 2, 4)
        for matrix, (start, end) in zip(matrices, self.spans, strict=True):
            stream[start:end, :, self.heads] = matrix[: end - start]


def _signed_weights(query: Tensor, key: Tensor, block: _Block, draw: _Draw, out: Tensor | None) -> Tensor:
    """The softmax, with a minus where a weight is dropped: it is never negative, so the sign is free, and no mask is kept."""
    scores = torch.bmm(query, key.mT)
    scores.view(len(block.bias_B1LL), -1, *block.square[1:]).add_(block.bias_B1LL)
    weights = torch.softmax(scores, -1, out=out)
    return weights.mul_(draw.signs(weights)) if draw.rate else weights


class _Plan(NamedTuple):
    """The blocks of a batch, how many weights they have together, and the length of the stream."""

    blocks: list[_Block]
    weights: int
    positions: int


def _plan_of(qkv: Tensor, cu_seqlens: Tensor, prefix_lengths: Tensor) -> _Plan:
    positions, _, heads, _ = qkv.shape
    dtype = product_dtype(qkv.dtype)
    plan = _plan(cu_seqlens.numpy().tobytes(), prefix_lengths.numpy().tobytes(), heads, dtype, _BLOCK_ELEMENTS)
    if plan.positions != positions:
        raise ValueError(f"cu_seqlens ends at {plan.positions} but qkv has {positions} positions; they must be equal")
    return plan


@lru_cache(maxsize=4)  # a batch's serves all its layers, forward and backward
def _plan(cu_seqlens: bytes, prefixes: bytes, heads: int, dtype: torch.dtype, block_elements: int) -> _Plan:
    starts_S1, prefixes_S = np.frombuffer(cu_seqlens, np.int32).astype(np.int64), np.frombuffer(prefixes, np.int32)
    lengths_S = np.diff(starts_S1)
    if starts_S1[0] != 0 or (lengths_S < 0).any():
        raise ValueError(f"cu_seqlens is {starts_S1.tolist()[:8]}..; it must begin with 0 and never fall")
    padded_S = -(-lengths_S // _MULTIPLE) * _MULTIPLE
    blocks: list[_Block] = []
    weights = 0
    for length in map(int, np.unique(padded_S[padded_S > 0])):
        members = np.flatnonzero(padded_S == length)
        at_once = max(1, block_elements // (heads * length**2))
        heads_at_once = min(heads, max(1, block_elements // length**2))
        for chosen in (members[first : first + at_once] for first in range(0, len(members), at_once)):
            starts_B1, lengths_B1, place_L = starts_S1[chosen, None], lengths_S[chosen, None], np.arange(length)
            bias = torch.from_numpy(_bias(lengths_B1, prefixes_S[chosen, None], place_L)).to(dtype)
            spans = list(zip(starts_S1[chosen].tolist(), starts_S1[chosen + 1].tolist(), strict=True))
            # Padding copies its own sequence, so that not even a NaN can pass from one sequence to another.
            stream_BL = starts_B1 + np.minimum(place_L, lengths_B1 - 1)
            for first in range(0, heads, heads_at_once):
                own = slice(first, min(first + heads_at_once, heads))
                heads_H1 = np.arange(own.start, own.stop)[:, None]
                square = (len(chosen) * len(heads_H1), length, length)
                end = weights + math.prod(square)
                attended_BHL = stream_BL[:, None] * heads + heads_H1
                sources = [(stream_BL[:, None] * 3 + part) * heads + heads_H1 for part in range(3)]
                padding_BHL = np.broadcast_to((place_L >= lengths_B1)[:, None], attended_BHL.shape)
                indices = np.stack(sources), attended_BHL, np.flatnonzero(padding_BHL)
                sources_3R, attended_R, padding = (torch.from_numpy(index.reshape(-1)) for index in indices)
                blocks.append(_Block(spans, own, square, slice(weights, end), sources_3R, attended_R, padding, bias))
                weights = end
    return _Plan(blocks, weights, int(starts_S1[-1]))


def _bias(lengths_B1: Ints, prefixes_B1: npt.NDArray[np.int32], place_L: Ints) -> npt.NDArray[np.float64]:
    reach_BL = np.minimum(np.maximum(prefixes_B1, place_L + 1), lengths_B1)  # keys that query i sees
    visible_BLL = place_L < reach_BL[:, :, None]
    return np.where(visible_BLL, 0.0, _HIDDEN)[:, None]
