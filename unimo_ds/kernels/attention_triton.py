"""Packed attention in Triton, forward and backward: every mask of UNIMO in one launch, with dropout.

A program is one tile of 64 rows of one sequence and one head. It goes over the other side of the score matrix at two speeds:
wide steps where every row of the tile sees every column, which need no mask, and narrow steps of 16 along the mask's edge and
to the sequence's end. Short sequences thus waste little: what no row of the tile sees is never loaded (README.md beside this).

Softmax is computed online, in base 2 and in float32 (FlashAttention-2, arXiv:2307.08691). Products take the input's type and
sum in float32; the weights are cast to it before they meet the values. For float32 inputs each product is three TF32 products
("tf32x3"), which is nearly float32's precision and still runs on tensor cores.

The backward pass computes the scores again. It has a kernel for the queries' gradient and one for that of keys and values, each
of which alone writes its rows: there are no atomics, so that the same input gives the same bits. A dropped weight is a pure
function of seed, stream row, head and key (Philox4x32-10, Salmon et al. 2011), so nothing of the mask is stored.

Shape suffixes: T positions of the stream, H heads, E head width, N tiles, R rows of a tile, C columns of a step; in the kernel
for keys and values the rows are keys and the columns queries. A name without suffix is a pointer or a number.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from unimo_ds.kernels.launch_triton import Launcher
from unimo_ds.kernels.table import Launch, attention_launch

_NARROW = 16  # columns of a narrow step: the least that a tensor core's product takes
_LOG2_E = tl.constexpr(1.4426950408889634)
_LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _load_rows(base, first, end, stride, ROWS: tl.constexpr, WIDTH: tl.constexpr, MASKED: tl.constexpr):
    """Rows first..first + ROWS of a matrix, zeros from row `end` on."""
    rows_R = first + tl.arange(0, ROWS)
    places_RE = base + rows_R[:, None] * stride + tl.arange(0, WIDTH)[None, :]
    return tl.load(places_RE, mask=rows_R[:, None] < end, other=0.0) if MASKED else tl.load(places_RE)


@triton.jit
def _store_rows(base, first, end, stride, stored_RE, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    rows_R = first + tl.arange(0, ROWS)
    places_RE = base + rows_R[:, None] * stride + tl.arange(0, WIDTH)[None, :]
    tl.store(places_RE, stored_RE.to(base.dtype.element_ty), mask=rows_R[:, None] < end)


@triton.jit
def _load_tile(tiles):
    """Start of the tile's sequence in the stream, its length and prefix, and the tile's first row inside it."""
    row = tiles + tl.program_id(0) * 4
    # Stream rows times row size pass 32 bits; places inside one sequence do not.
    return tl.load(row).to(tl.int64), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3)


@triton.jit
def _scores(
    row_RE, column_CE, rows, first_row, end_row, row_stride, columns, first_column, end_column, column_stride,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Rows times columns, [ROWS, COLUMNS]: of the loaded tiles, or of slices of DEPTH that are read again from memory.

    The three TF32 products of float32 rows need more registers than there are; slices need few.
    """
    if DEPTH == WIDTH:
        scores_RC = tl.dot(row_RE, column_CE.T, input_precision="tf32x3")
    else:
        scores_RC = tl.zeros((ROWS, COLUMNS), tl.float32)
        for begin in tl.range(0, WIDTH, DEPTH):
            row_RD = _load_rows(rows + begin, first_row, end_row, row_stride, ROWS, DEPTH, MASKED=True)
            column_CD = _load_rows(columns + begin, first_column, end_column, column_stride, COLUMNS, DEPTH, MASKED=True)
            scores_RC = tl.dot(row_RD, column_CD.T, scores_RC, input_precision="tf32x3")
    return scores_RC


@triton.jit
def _kept(
    seed, row, head, first_row, first_key, THRESHOLD: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, BY_KEY: tl.constexpr
):
    """Which weights of a step are not dropped, [ROWS, KEYS], or [KEYS, ROWS] where BY_KEY. One Philox call serves four keys."""
    groups = first_key // 4 + tl.arange(0, KEYS // 4)
    rows = (row + first_row).to(tl.int32) + tl.arange(0, ROWS)
    if BY_KEY:
        groups, rows = groups[:, None], rows[None, :]
    else:
        groups, rows = groups[None, :], rows[:, None]
    zeros = groups * 0 + rows * 0
    fourth = tl.load(seed + 1).to(tl.int32)
    word_0, word_1, word_2, word_3 = tl.philox(tl.load(seed), groups + zeros, rows + zeros, head + zeros, fourth + zeros)
    # Bits are joined, not words: they cross threads on their way to the scores' layout.
    even = tl.join(word_0 >= THRESHOLD, word_2 >= THRESHOLD)
    odd = tl.join(word_1 >= THRESHOLD, word_3 >= THRESHOLD)
    kept = tl.join(even, odd)
    return kept.permute(0, 2, 3, 1).reshape(KEYS, ROWS) if BY_KEY else kept.reshape(ROWS, KEYS)


@triton.jit
def _forward_step(
    mixed_RE, top_R, total_R, query_RE, reach_R, query, key, value, seed, row, head, first, length, first_key, end, stride,
    THRESHOLD: tl.constexpr,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """One step of the online softmax: `top` is the greatest score so far (base 2), `total` the sum of weights beside it."""
    scale: tl.constexpr = WIDTH**-0.5 * _LOG2_E
    key_CE = _load_rows(key, first_key, end, stride, COLUMNS, WIDTH, MASKED)
    scores_RC = _scores(
        query_RE, key_CE, query, first, length, stride, key, first_key, end, stride,
        WIDTH, ROWS, COLUMNS, DEPTH,
    )  # fmt: skip
    if MASKED:
        keys_C = first_key + tl.arange(0, COLUMNS)
        scores_RC = tl.where(keys_C[None, :] < reach_R[:, None], scores_RC, float("-inf"))
    new_top_R = tl.maximum(top_R, tl.max(scores_RC, 1) * scale)
    weights_RC = tl.exp2(scores_RC * scale - new_top_R[:, None])
    shrink_R = tl.exp2(top_R - new_top_R)
    total_R = total_R * shrink_R + tl.sum(weights_RC, 1)
    if THRESHOLD:
        kept_RC = _kept(seed, row, head, first, first_key, THRESHOLD, ROWS, COLUMNS, BY_KEY=False)
        weights_RC = tl.where(kept_RC, weights_RC, 0.0)
    value_CE = _load_rows(value, first_key, end, stride, COLUMNS, WIDTH, MASKED)
    mixed_RE = tl.dot(weights_RC.to(value_CE.dtype), value_CE, mixed_RE * shrink_R[:, None], input_precision="tf32x3")
    return mixed_RE, new_top_R, total_R


@triton.jit(do_not_specialize=["positions"])
def _forward(
    qkv, tiles, seed, attended, log_sums, positions, heads,
    THRESHOLD: tl.constexpr, RESCALE: tl.constexpr,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, NARROW: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Attended values and log-sums of a tile of queries. A sequence's rows lie within 2**31 elements of its first."""
    start, length, prefix, first = _load_tile(tiles)
    head = tl.program_id(1)
    stride = 3 * heads * WIDTH
    query = qkv + start * stride + head * WIDTH
    key, value = query + heads * WIDTH, query + 2 * heads * WIDTH
    rows_R = first + tl.arange(0, ROWS)
    query_RE = _load_rows(query, first, length, stride, ROWS, WIDTH, MASKED=True)
    reach_R = tl.minimum(tl.maximum(rows_R + 1, prefix), length)  # so many keys a row sees: all see the first one
    wide_end = tl.minimum(tl.maximum(first + 1, prefix), length) // COLUMNS * COLUMNS if COLUMNS > NARROW else 0
    end = tl.minimum(tl.maximum(first + ROWS, prefix), length)
    mixed_RE = tl.zeros((ROWS, WIDTH), tl.float32)
    top_R = tl.full((ROWS,), float("-inf"), tl.float32)
    total_R = tl.zeros((ROWS,), tl.float32)
    if COLUMNS > NARROW:
        for first_key in tl.range(0, wide_end, COLUMNS):
            mixed_RE, top_R, total_R = _forward_step(
                mixed_RE, top_R, total_R, query_RE, reach_R, query, key, value, seed, start, head, first, length, first_key,
                end, stride, THRESHOLD, WIDTH, ROWS, COLUMNS, DEPTH, MASKED=False,
            )  # fmt: skip
    for first_key in tl.range(wide_end, end, NARROW):
        mixed_RE, top_R, total_R = _forward_step(
            mixed_RE, top_R, total_R, query_RE, reach_R, query, key, value, seed, start, head, first, length, first_key, end,
            stride, THRESHOLD, WIDTH, ROWS, NARROW, DEPTH, MASKED=True,
        )  # fmt: skip
    mixed_RE *= (RESCALE / total_R)[:, None]
    out_stride = heads * WIDTH
    _store_rows(attended + start * out_stride + head * WIDTH, first, length, out_stride, mixed_RE, ROWS, WIDTH)
    log_sums_R = (top_R + tl.log2(total_R)) * _LN_2
    tl.store(log_sums + head.to(tl.int64) * positions + start + rows_R, log_sums_R, mask=rows_R < length)


@triton.jit
def _d_query_step(
    d_query_RE, query_RE, d_attended_RE, log_sums_R, delta_R, reach_R, query, key, value, d_attended, seed, row, head,
    first, length, first_key, end, stride, out_stride,
    THRESHOLD: tl.constexpr, RESCALE: tl.constexpr,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    scale: tl.constexpr = WIDTH**-0.5 * _LOG2_E
    key_CE = _load_rows(key, first_key, end, stride, COLUMNS, WIDTH, MASKED)
    value_CE = _load_rows(value, first_key, end, stride, COLUMNS, WIDTH, MASKED)
    scores_RC = _scores(
        query_RE, key_CE, query, first, length, stride, key, first_key, end, stride,
        WIDTH, ROWS, COLUMNS, DEPTH,
    )  # fmt: skip
    weights_RC = tl.exp2(scores_RC * scale - log_sums_R[:, None])
    if MASKED:
        keys_C = first_key + tl.arange(0, COLUMNS)
        weights_RC = tl.where(keys_C[None, :] < reach_R[:, None], weights_RC, 0.0)
    d_weights_RC = _scores(
        d_attended_RE, value_CE, d_attended, first, length, out_stride, value, first_key, end, stride,
        WIDTH, ROWS, COLUMNS, DEPTH,
    )  # fmt: skip
    if THRESHOLD:
        kept_RC = _kept(seed, row, head, first, first_key, THRESHOLD, ROWS, COLUMNS, BY_KEY=False)
        d_weights_RC = tl.where(kept_RC, d_weights_RC * RESCALE, 0.0)
    d_scores_RC = weights_RC * (d_weights_RC - delta_R[:, None])
    if DEPTH < WIDTH:  # read at its use, so that it needs no registers while slices are multiplied
        key_CE = _load_rows(key, first_key, end, stride, COLUMNS, WIDTH, MASKED)
    return tl.dot(d_scores_RC.to(key_CE.dtype), key_CE, d_query_RE, input_precision="tf32x3")


@triton.jit(do_not_specialize=["positions"])
def _d_query(
    d_attended, qkv, attended, log_sums, tiles, seed, d_qkv, delta, positions, heads,
    THRESHOLD: tl.constexpr, RESCALE: tl.constexpr,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, NARROW: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """The gradient of a tile of queries, and `delta`, a row's sum of attended values times their gradient."""
    start, length, prefix, first = _load_tile(tiles)
    head = tl.program_id(1)
    stride, out_stride = 3 * heads * WIDTH, heads * WIDTH
    query = qkv + start * stride + head * WIDTH
    key, value = query + heads * WIDTH, query + 2 * heads * WIDTH
    out = start * out_stride + head * WIDTH
    rows_R = first + tl.arange(0, ROWS)
    numbers = head.to(tl.int64) * positions + start + rows_R
    query_RE = _load_rows(query, first, length, stride, ROWS, WIDTH, MASKED=True)
    d_attended += out
    d_attended_RE = _load_rows(d_attended, first, length, out_stride, ROWS, WIDTH, MASKED=True)
    attended_RE = _load_rows(attended + out, first, length, out_stride, ROWS, WIDTH, MASKED=True)
    delta_R = tl.sum(d_attended_RE.to(tl.float32) * attended_RE.to(tl.float32), 1)
    tl.store(delta + numbers, delta_R, mask=rows_R < length)
    log_sums_R = tl.load(log_sums + numbers, mask=rows_R < length, other=0.0) * _LOG2_E
    reach_R = tl.minimum(tl.maximum(rows_R + 1, prefix), length)
    wide_end = tl.minimum(tl.maximum(first + 1, prefix), length) // COLUMNS * COLUMNS if COLUMNS > NARROW else 0
    end = tl.minimum(tl.maximum(first + ROWS, prefix), length)
    d_query_RE = tl.zeros((ROWS, WIDTH), tl.float32)
    if COLUMNS > NARROW:
        for first_key in tl.range(0, wide_end, COLUMNS):
            d_query_RE = _d_query_step(
                d_query_RE, query_RE, d_attended_RE, log_sums_R, delta_R, reach_R, query, key, value, d_attended, seed, start,
                head, first, length, first_key, end, stride, out_stride,
                THRESHOLD, RESCALE, WIDTH, ROWS, COLUMNS, DEPTH, MASKED=False,
            )  # fmt: skip
    for first_key in tl.range(wide_end, end, NARROW):
        d_query_RE = _d_query_step(
            d_query_RE, query_RE, d_attended_RE, log_sums_R, delta_R, reach_R, query, key, value, d_attended, seed, start, head,
            first, length, first_key, end, stride, out_stride, THRESHOLD, RESCALE, WIDTH, ROWS, NARROW, DEPTH, MASKED=True,
        )  # fmt: skip
    d_query = d_qkv + start * stride + head * WIDTH
    _store_rows(d_query, first, length, stride, d_query_RE * WIDTH**-0.5, ROWS, WIDTH)


@triton.jit
def _d_key_step(
    d_key_RE, d_value_RE, key_RE, value_RE, query, key, value, d_attended, log_sums, delta, seed, row, head, first, first_query,
    length, prefix, stride, out_stride,
    THRESHOLD: tl.constexpr, RESCALE: tl.constexpr,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Adds what some queries give to a tile of keys. Scores are [keys, queries], so that no product transposes them."""
    scale: tl.constexpr = WIDTH**-0.5 * _LOG2_E
    queries_C = first_query + tl.arange(0, COLUMNS)
    query_CE = _load_rows(query, first_query, length, stride, COLUMNS, WIDTH, MASKED)
    d_attended_CE = _load_rows(d_attended, first_query, length, out_stride, COLUMNS, WIDTH, MASKED)
    # Queries behind the end are zeros with a weight of one: all that they add is zero.
    log_sums_C = tl.load(log_sums + queries_C, mask=queries_C < length, other=0.0) * _LOG2_E
    delta_C = tl.load(delta + queries_C, mask=queries_C < length, other=0.0)
    scores_RC = _scores(
        key_RE, query_CE, key, first, length, stride, query, first_query, length, stride,
        WIDTH, ROWS, COLUMNS, DEPTH,
    )  # fmt: skip
    weights_RC = tl.exp2(scores_RC * scale - log_sums_C[None, :])
    if MASKED:
        keys_R = first + tl.arange(0, ROWS)
        reach_C = tl.maximum(queries_C + 1, prefix)
        weights_RC = tl.where(keys_R[:, None] < reach_C[None, :], weights_RC, 0.0)
    d_weights_RC = _scores(
        value_RE, d_attended_CE, value, first, length, stride, d_attended, first_query, length, out_stride,
        WIDTH, ROWS, COLUMNS, DEPTH,
    )  # fmt: skip
    if THRESHOLD:
        kept_RC = _kept(seed, row, head, first_query, first, THRESHOLD, COLUMNS, ROWS, BY_KEY=True)
        d_weights_RC = tl.where(kept_RC, d_weights_RC * RESCALE, 0.0)
        dropped_RC = tl.where(kept_RC, weights_RC, 0.0)
    else:
        dropped_RC = weights_RC
    if DEPTH < WIDTH:  # read at its use, so that it needs no registers while slices are multiplied
        d_attended_CE = _load_rows(d_attended, first_query, length, out_stride, COLUMNS, WIDTH, MASKED)
    d_value_RE = tl.dot(dropped_RC.to(query_CE.dtype), d_attended_CE, d_value_RE, input_precision="tf32x3")
    d_scores_RC = weights_RC * (d_weights_RC - delta_C[None, :])
    if DEPTH < WIDTH:
        query_CE = _load_rows(query, first_query, length, stride, COLUMNS, WIDTH, MASKED)
    d_key_RE = tl.dot(d_scores_RC.to(query_CE.dtype), query_CE, d_key_RE, input_precision="tf32x3")
    return d_key_RE, d_value_RE


@triton.jit(do_not_specialize=["positions"])
def _d_key_value(
    d_attended, qkv, log_sums, delta, tiles, seed, d_qkv, positions, heads,
    THRESHOLD: tl.constexpr, RESCALE: tl.constexpr,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, NARROW: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """The gradients of a tile of keys and values, summed over the queries that see some key of it."""
    start, length, prefix, first = _load_tile(tiles)
    head = tl.program_id(1)
    stride, out_stride = 3 * heads * WIDTH, heads * WIDTH
    query = qkv + start * stride + head * WIDTH
    d_attended += start * out_stride + head * WIDTH
    log_sums += head.to(tl.int64) * positions + start
    delta += head.to(tl.int64) * positions + start
    key, value = query + heads * WIDTH, query + 2 * heads * WIDTH
    key_RE = _load_rows(key, first, length, stride, ROWS, WIDTH, MASKED=True)
    value_RE = _load_rows(value, first, length, stride, ROWS, WIDTH, MASKED=True)
    # Narrow steps go over the queries that see a part of the tile, begin..wide, and over the last ones, wide_end..length.
    last_key = tl.minimum(first + ROWS, length) - 1
    begin = tl.where(first < prefix, 0, first)
    edge = tl.where(last_key < prefix, begin, last_key)
    wide = tl.minimum(begin + tl.cdiv(edge - begin, NARROW) * NARROW, length)
    wide_end = wide + (length - wide) // COLUMNS * COLUMNS if COLUMNS > NARROW else wide
    d_key_RE = tl.zeros((ROWS, WIDTH), tl.float32)
    d_value_RE = tl.zeros((ROWS, WIDTH), tl.float32)
    if COLUMNS > NARROW:
        for first_query in tl.range(wide, wide_end, COLUMNS):
            d_key_RE, d_value_RE = _d_key_step(
                d_key_RE, d_value_RE, key_RE, value_RE, query, key, value, d_attended, log_sums, delta, seed, start, head,
                first, first_query, length, prefix, stride, out_stride,
                THRESHOLD, RESCALE, WIDTH, ROWS, COLUMNS, DEPTH, MASKED=False,
            )  # fmt: skip
    for narrow_query in tl.range(begin, length - (wide_end - wide), NARROW):
        first_query = tl.where(narrow_query < wide, narrow_query, narrow_query + wide_end - wide)
        d_key_RE, d_value_RE = _d_key_step(
            d_key_RE, d_value_RE, key_RE, value_RE, query, key, value, d_attended, log_sums, delta, seed, start, head, first,
            first_query, length, prefix, stride, out_stride, THRESHOLD, RESCALE, WIDTH, ROWS, NARROW, DEPTH, MASKED=True,
        )  # fmt: skip
    d_key = d_qkv + start * stride + (heads + head) * WIDTH
    _store_rows(d_key, first, length, stride, d_key_RE * WIDTH**-0.5, ROWS, WIDTH)
    _store_rows(d_key + heads * WIDTH, first, length, stride, d_value_RE * RESCALE, ROWS, WIDTH)


def forward(
    qkv_T3HE: Tensor, tiles_N4: Tensor, rate: float, seed_2: Tensor | None, launcher: Launcher
) -> tuple[Tensor, Tensor]:
    """Attention of every sequence of the stream within itself; see `attention.packed_attention`.

    Args:
        qkv_T3HE: queries, keys and values, contiguous; bfloat16, float16 or float32; E is 32, 64 or 128.
        tiles_N4: int32, `attention.tile_list` of the batch.
        rate: probability with which an attention weight is dropped, in [0, 1).
        seed_2: int64, the Philox key and the fourth counter word (of it the low 32 bits); needed where `rate` is not 0.
        launcher: of the device.

    Returns:
        The attended values [T, H, E] in the input's type, and float32 [H, T], the log of each row's sum of exponentials.
    """
    positions, _, heads, width = qkv_T3HE.shape
    attended_THE = qkv_T3HE.new_empty((positions, heads, width))
    log_sums_HT = qkv_T3HE.new_empty((heads, positions), dtype=torch.float32)
    launch = attention_launch("forward", launcher.architecture, qkv_T3HE.dtype, width)
    if len(tiles_N4):
        launcher(
            _forward, (len(tiles_N4), heads),
            qkv_T3HE, tiles_N4, seed_2, attended_THE, log_sums_HT, positions, heads,
            launch=launch, **_constants(rate, width, launch),
        )  # fmt: skip
    return attended_THE, log_sums_HT


def backward(
    d_attended_THE: Tensor,
    qkv_T3HE: Tensor,
    attended_THE: Tensor,
    log_sums_HT: Tensor,
    tiles_N4: Tensor,
    rate: float,
    seed_2: Tensor | None,
    launcher: Launcher,
) -> Tensor:
    """The gradient of `forward` in its first argument, [T, 3, H, E]; all tensors are contiguous."""
    positions, _, heads, width = qkv_T3HE.shape
    d_qkv_T3HE = torch.empty_like(qkv_T3HE)  # every element is written once
    delta_HT = torch.empty_like(log_sums_HT)
    d_query_launch = attention_launch("d_query", launcher.architecture, qkv_T3HE.dtype, width)
    d_key_launch = attention_launch("d_key_value", launcher.architecture, qkv_T3HE.dtype, width)
    if len(tiles_N4):
        grid = len(tiles_N4), heads
        launcher(
            _d_query, grid,
            d_attended_THE, qkv_T3HE, attended_THE, log_sums_HT, tiles_N4, seed_2, d_qkv_T3HE, delta_HT, positions, heads,
            launch=d_query_launch, **_constants(rate, width, d_query_launch),
        )  # fmt: skip
        launcher(
            _d_key_value, grid,
            d_attended_THE, qkv_T3HE, log_sums_HT, delta_HT, tiles_N4, seed_2, d_qkv_T3HE, positions, heads,
            launch=d_key_launch, **_constants(rate, width, d_key_launch),
        )  # fmt: skip
    return d_qkv_T3HE


def _constants(rate: float, width: int, launch: Launch) -> dict[str, Any]:
    return {
        "THRESHOLD": round(rate * 2**32),  # Philox words below it drop; at 0 the kernel is compiled without dropout
        "RESCALE": 1 / (1 - rate),
        "WIDTH": width,
        "ROWS": launch.rows,
        "COLUMNS": launch.columns,
        "NARROW": _NARROW,
        "DEPTH": launch.depth or width,
    }
