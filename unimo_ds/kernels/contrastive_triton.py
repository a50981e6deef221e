"""Log-sums of the contrastive similarity matrix and their gradient on a GPU, in Triton.

A program makes one tile of `s = scale * x y^T` and uses it for both directions. The forward pass leaves the log-sums of the
tile's rows and of its columns, which the host joins. The backward pass makes the tile again and writes the derivative of the
loss by it for a block of the matrix; what is left are plain products, and those are the library's. A run of tiles in one
program with running row sums would save the joining, but the batch of one GPU has few rows of tiles, and most of the GPU
would stand still; the parts to join are less than a hundredth of what the products read.

Every sum has a fixed order and there are no atomics: the same input gives the same bits.

Shape suffixes: N rows, M columns, D width, I and J rows and columns of a tile, K depth of a step of its product, L columns
of half a tile, P row tiles or column tiles. A name without suffix is a pointer or a number.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from unimo_ds.kernels.chunks import slices
from unimo_ds.kernels.launch_triton import Launcher
from unimo_ds.kernels.table import Launch, contrastive_launch

_PARTS_BYTES = 1 << 26  # of the tiles' log-sums that wait to be joined
_BLOCK_BYTES = 1 << 26  # of a block of derivatives: about what stays in the second-level cache
_BLOCK_COLUMNS = 8192  # so that a block is near a square; a wide and flat one would mostly read and write the sums of dy
_ALIGNMENT = 16  # rows of derivatives begin at multiples of it: the library is slow on others, stores would be narrow
_SMALLEST = 1e-30  # gradients that are all 0 are divided by it


@triton.jit
def _groups(groups, places, count):
    """Group ids; those beyond the end are of ignored entries."""
    return tl.load(groups + places, mask=places < count, other=-1)


@triton.jit
def _has_positive(x_groups, y_groups, rows_I, columns_J, N, M):
    """Whether any entry of a tile is positive. Few tiles have one; the others are spared half of the exponentials."""
    row_I, column_J = _groups(x_groups, rows_I, N), _groups(y_groups, columns_J, M)
    equal_IJ = (row_I[:, None] == column_J[None, :]) & (row_I >= 0)[:, None]
    return tl.max(tl.max(equal_IJ.to(tl.int32), 1), 0) > 0


@triton.jit
def _only_positives(s_IJ, x_groups, y_groups, rows_I, columns_J, N, M):
    """`s` where an entry is positive, -inf elsewhere. (Groups are loaded again: kept, they would cost registers for long.)"""
    row_I, column_J = _groups(x_groups, rows_I, N), _groups(y_groups, columns_J, M)
    return tl.where(row_I[:, None] == column_J[None, :], s_IJ, float("-inf"))


@triton.jit
def _similarities(
    x, y, x_groups, y_groups, scale, rows_I, columns_J, N, M, D,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of s, float32 [I, J]; -inf where an entry is ignored or beyond the end."""
    depth_K = tl.arange(0, DEPTH)
    # Rows beyond the end read the last one again, which spares the loop a mask.
    x_IK = x + tl.minimum(rows_I, N - 1).to(tl.int64)[:, None] * D + depth_K[None, :]
    y_KJ = y + tl.minimum(columns_J, M - 1).to(tl.int64)[None, :] * D + depth_K[:, None]
    products_IJ = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, D, DEPTH):
        inside_K = depth_K < D - start
        left_IK = tl.load(x_IK + start, mask=inside_K[None, :], other=0.0)
        right_KJ = tl.load(y_KJ + start, mask=inside_K[:, None], other=0.0)
        products_IJ = tl.dot(left_IK, right_KJ, products_IJ, input_precision=PRECISION)
    counted_I, counted_J = _groups(x_groups, rows_I, N) >= 0, _groups(y_groups, columns_J, M) >= 0
    return tl.where(counted_I[:, None] & counted_J[None, :], products_IJ * tl.load(scale), float("-inf"))


@triton.jit
def _log_sum(s_IJ, axis: tl.constexpr):
    """Log of the sum of `exp(s)` along an axis; -inf where every s is -inf, NaN where one is NaN."""
    largest = tl.max(s_IJ, axis)
    shift = tl.where(largest == float("-inf"), 0.0, largest)
    total = tl.sum(tl.exp(s_IJ - tl.expand_dims(shift, axis)), axis)
    return tl.where(total == 0.0, float("-inf"), shift + tl.log(tl.where(total == 0.0, 1.0, total)))


@triton.jit(do_not_specialize=["N", "M"])
def _forward(
    x, y, x_groups, y_groups, scale, row_parts, column_parts, N, M, D,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The log-sums of one tile: over all and over positives, of its rows [2, P, N] and of its columns [2, P, M]."""
    rows_I = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns_J = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    has_positive = _has_positive(x_groups, y_groups, rows_I, columns_J, N, M)
    s_IJ = _similarities(x, y, x_groups, y_groups, scale, rows_I, columns_J, N, M, D, ROWS, COLUMNS, DEPTH, PRECISION)
    row_places_I = row_parts + tl.program_id(1).to(tl.int64) * N + rows_I
    column_places_J = column_parts + tl.program_id(0).to(tl.int64) * M + columns_J
    tl.store(row_places_I, _log_sum(s_IJ, 1), mask=rows_I < N)
    tl.store(column_places_J, _log_sum(s_IJ, 0), mask=columns_J < M)
    row_places_I += tl.num_programs(1).to(tl.int64) * N
    column_places_J += tl.num_programs(0).to(tl.int64) * M
    if has_positive:
        s_IJ = _only_positives(s_IJ, x_groups, y_groups, rows_I, columns_J, N, M)
        tl.store(row_places_I, _log_sum(s_IJ, 1), mask=rows_I < N)
        tl.store(column_places_J, _log_sum(s_IJ, 0), mask=columns_J < M)
    else:
        tl.store(row_places_I, tl.full((ROWS,), float("-inf"), tl.float32), mask=rows_I < N)
        tl.store(column_places_J, tl.full((COLUMNS,), float("-inf"), tl.float32), mask=columns_J < M)


@triton.jit
def _share(s_IJ, axis: tl.constexpr, log_sums, gradients, places, count):
    """The derivative by s through the log-sums of one axis."""
    log_sum = tl.load(log_sums + places, mask=places < count, other=float("-inf"))
    # A log-sum of -inf has no terms: exp(s - inf) is 0, where exp(s + inf) times 0 would be NaN.
    log_sum = tl.where(log_sum == float("-inf"), float("inf"), log_sum)
    gradient = tl.load(gradients + places, mask=places < count, other=0.0)
    return tl.exp(s_IJ - tl.expand_dims(log_sum, axis)) * tl.expand_dims(gradient, axis)


@triton.jit(do_not_specialize=["N", "M"])
def _gradient(
    x, y, x_groups, y_groups, scale, row_all, row_positive, d_row_all, d_row_positive,
    column_all, column_positive, d_column_all, d_column_positive, ds, dscale_parts, N, M, D, stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The derivative `ds` of the loss by one tile of s, and the sum of `ds * s` over the tile.

    The columns from M to the stride are written too, as 0: with a mask that ends at a multiple of 16, stores are wide.
    """
    rows_I = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns_J = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    has_positive = _has_positive(x_groups, y_groups, rows_I, columns_J, N, M)
    s_IJ = _similarities(x, y, x_groups, y_groups, scale, rows_I, columns_J, N, M, D, ROWS, COLUMNS, DEPTH, PRECISION)
    low_IL, high_IL = tl.split(tl.permute(tl.reshape(s_IJ, (ROWS, 2, COLUMNS // 2)), (0, 2, 1)))
    part = 0.0
    for half in tl.static_range(2):  # one half after the other: a thread's share of all at once would not fit its registers
        s_IL = low_IL if half == 0 else high_IL
        columns_L = tl.program_id(1) * COLUMNS + half * (COLUMNS // 2) + tl.arange(0, COLUMNS // 2)
        ds_IL = _share(s_IL, 1, row_all, d_row_all, rows_I, N)
        ds_IL += _share(s_IL, 0, column_all, d_column_all, columns_L, M)
        if has_positive:
            positive_IL = _only_positives(s_IL, x_groups, y_groups, rows_I, columns_L, N, M)
            ds_IL += _share(positive_IL, 1, row_positive, d_row_positive, rows_I, N)
            ds_IL += _share(positive_IL, 0, column_positive, d_column_positive, columns_L, M)
        places_IL = ds + rows_I.to(tl.int64)[:, None] * stride + columns_L[None, :]
        tl.store(places_IL, ds_IL.to(ds.dtype.element_ty), mask=(rows_I < N)[:, None] & (columns_L < stride)[None, :])
        part += tl.sum(tl.sum(ds_IL * tl.where(s_IL == float("-inf"), 0.0, s_IL), 1), 0)
    tl.store(dscale_parts + tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1), part)


def _constants(launch: Launch, dtype: torch.dtype) -> dict[str, Any]:
    """What a kernel is compiled for. Three products of TF32 numbers are near to one of float32, on the tensor cores."""
    precision = "tf32x3" if dtype == torch.float32 else "ieee"
    return {"ROWS": launch.rows, "COLUMNS": launch.columns, "DEPTH": launch.depth, "PRECISION": precision}


def forward(
    x_ND: Tensor, y_MD: Tensor, x_groups_N: Tensor, y_groups_M: Tensor, scale: Tensor, launcher: Launcher
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four log-sums of `contrastive.contrastive_statistics`, float32.

    Args:
        x_ND, y_MD: vectors, both bfloat16, float16 or float32; any width.
        x_groups_N, y_groups_M: int64; negative for an entry that is ignored.
        scale: float32 [1], not 0; read on the device.
        launcher: of the device.
    """
    x, y, x_groups, y_groups = (tensor.contiguous() for tensor in (x_ND, y_MD, x_groups_N, y_groups_M))
    columns, width = y.shape
    row_sums_2N = torch.full((2, len(x)), -torch.inf, device=x.device)
    column_sums_2M = torch.full((2, columns), -torch.inf, device=x.device)
    launch = contrastive_launch("forward", launcher.architecture, x.dtype)
    column_tiles = triton.cdiv(columns, launch.columns)
    row_tiles = max(1, _PARTS_BYTES // (8 * (launch.rows + launch.columns) * max(1, column_tiles)))
    for chunk in slices(len(x), launch.rows * row_tiles) if columns else ():
        rows = chunk.stop - chunk.start
        grid = (triton.cdiv(rows, launch.rows), column_tiles)
        row_parts_2PN = torch.empty((2, grid[1], rows), device=x.device)
        column_parts_2PM = torch.empty((2, grid[0], columns), device=x.device)
        operands = (x[chunk], y, x_groups[chunk], y_groups, scale, row_parts_2PN, column_parts_2PM, rows, columns, width)
        launcher(_forward, grid, *operands, launch=launch, **_constants(launch, x.dtype))
        row_sums_2N[:, chunk] = row_parts_2PN.logsumexp(1)
        column_sums_2M = torch.logaddexp(column_sums_2M, column_parts_2PM.logsumexp(1))
    row_all, row_positive, column_all, column_positive = (part.clone() for part in (*row_sums_2N, *column_sums_2M))
    return row_all, row_positive, column_all, column_positive  # clones, since outputs of an op may not share memory


def backward(
    x_ND: Tensor,
    y_MD: Tensor,
    x_groups_N: Tensor,
    y_groups_M: Tensor,
    scale: Tensor,
    row_all_N: Tensor,
    row_positive_N: Tensor,
    column_all_M: Tensor,
    column_positive_M: Tensor,
    d_row_all_N: Tensor,
    d_row_positive_N: Tensor,
    d_column_all_M: Tensor,
    d_column_positive_M: Tensor,
    launcher: Launcher,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `x` and `y`, in their dtype, and of `scale`, float32 [1].

    `x` and `y` may be a block of a larger matrix whose log-sums are given: the result is then the block's share.
    """
    x, y, x_groups, y_groups = (tensor.contiguous() for tensor in (x_ND, y_MD, x_groups_N, y_groups_M))
    columns, width = y.shape
    dx, dy = torch.zeros_like(x), torch.zeros(y.shape, device=x.device)
    dscale = torch.zeros(1, device=x.device)
    if not len(x) or not columns:
        return dx, dy.to(y.dtype), dscale
    # In units of the largest gradient: neither a scaled loss nor small probabilities then leave the range of float16.
    gradients = (d_row_all_N, d_row_positive_N, d_column_all_M, d_column_positive_M)
    unit = torch.stack([gradient.abs().max() for gradient in gradients]).max().clamp_min(_SMALLEST)
    d_row_all, d_row_positive, d_column_all, d_column_positive = (gradient / unit for gradient in gradients)
    row_vectors = [vector.contiguous() for vector in (row_all_N, row_positive_N, d_row_all, d_row_positive)]
    column_vectors = [vector.contiguous() for vector in (column_all_M, column_positive_M, d_column_all, d_column_positive)]
    launch = contrastive_launch("gradient", launcher.architecture, x.dtype)
    stride = min(_BLOCK_COLUMNS, triton.cdiv(columns, _ALIGNMENT) * _ALIGNMENT)
    height = min(len(x), launch.rows * max(1, _BLOCK_BYTES // (launch.rows * stride * x.itemsize)))
    ds_memory = torch.empty((height, stride), dtype=x.dtype, device=x.device)
    for rows in slices(len(x), height):
        dx_rows = torch.zeros(x[rows].shape, device=x.device)
        for block in slices(columns, stride):
            ds = ds_memory[: rows.stop - rows.start, : block.stop - block.start]
            grid = (triton.cdiv(ds.shape[0], launch.rows), triton.cdiv(ds.shape[1], launch.columns))
            dscale_parts = torch.empty(grid, device=x.device)
            operands = (x[rows], y[block], x_groups[rows], y_groups[block], scale)
            vectors = (*(vector[rows] for vector in row_vectors), *(vector[block] for vector in column_vectors))
            sizes = (*ds.shape, width, stride)
            constants = _constants(launch, x.dtype)
            launcher(_gradient, grid, *operands, *vectors, ds, dscale_parts, *sizes, launch=launch, **constants)
            dx_rows += ds @ y[block]
            dy[block] += ds.T @ x[rows]
            dscale += dscale_parts.sum()
        dx[rows] = dx_rows * (scale * unit)
    return dx, (dy * (scale * unit)).to(y.dtype), dscale * unit / scale
