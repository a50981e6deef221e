"""Log-sums of the contrastive similarity matrix, in one sweep of chunks and without ever storing the matrix.

For similarities `s = scale * x y^T` the op gives, for every row and every column, the log of the sum of `exp(s)` over all
entries and over the positive entries (those of equal group). An InfoNCE loss with any number of positives, in both
directions, is a difference of these; further candidates of a row join outside by `torch.logaddexp` with `log_sums_by_row`.

On a GPU Triton kernels do it (contrastive_triton.py). In the CPU implementation, in this file, one exponential an entry serves
rows and columns. The library multiplies a chunk of the matrix. Of blocks of its rows, small enough for a core's cache, the
softmax is made, and its weighted sum over the rows gives the sums of the columns. Where the sum of a column underflows, because
its entries lie far below those of their rows, that column is summed again by itself. The backward pass makes the chunks again
and does likewise. Positives are found by sorted groups and gathered; no mask is made.

Shape suffixes: N rows, M columns, D width; C rows, K columns of a chunk; B rows of a block, P of a product; J entries.
"""

from typing import Any

import torch
from torch import Tensor

from unimo_ds.kernels.chunks import slices
from unimo_ds.kernels.linear import matrix_product, product_dtype

_CHUNK_ROWS, _CHUNK_COLUMNS = 1024, 2048  # of a library product: 4 MB in bf16, and large enough for its full speed
_PRODUCT_ROWS = 512  # of a product that is added to a sum: enough for full speed, and little has to be held
_BLOCK_ELEMENTS = 1 << 19  # similarities that pass through the exponential at a time, in float32: 2 MB
_LOWEST = -50.0  # logarithm of the smallest sum that is trusted: what float32 loses below exp(-87) is then no part of it
_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)

Four = tuple[Tensor, Tensor, Tensor, Tensor]


def contrastive_statistics(x_ND: Tensor, y_MD: Tensor, x_groups_N: Tensor, y_groups_M: Tensor, scale: Tensor) -> Four:
    """Row and column log-sums of the similarity matrix, differentiable in `x`, `y` and `scale`.

    Under autocast the vectors are cast to float32, as torch does for losses. In bf16 on the CPU a similarity is as exact as the
    library's product, which is rounded to bf16; what follows is float32.

    Args:
        x_ND, y_MD: vectors, both bf16, fp16 or fp32; on the CPU also float64, and then the results are float64 too.
        x_groups_N, y_groups_M: int64; entries of equal group are positives. A negative group marks an ignored entry: it is in
            no sum, its own sums are -inf and its gradient is 0.
        scale: float32 [1] (float64 with float64 vectors), what similarities are multiplied with (1 / temperature); not 0.

    Returns:
        `row_all_N, row_positive_N, column_all_M, column_positive_M`, float32; -inf where there is nothing to sum.

    Raises:
        ValueError: shapes, dtypes or devices do not fit each other.
    """
    check_inputs(x_ND, y_MD, x_groups_N, y_groups_M, scale)
    statistics: Four = statistics_op(x_ND, y_MD, x_groups_N, y_groups_M, scale)
    return statistics


def check_inputs(x_ND: Tensor, y_MD: Tensor, x_groups_N: Tensor, y_groups_M: Tensor, scale: Tensor) -> None:
    """Refuses what `contrastive_statistics` cannot take, by a ValueError."""
    dtypes = _DTYPES[:3] if x_ND.is_cuda else _DTYPES
    if x_ND.dtype not in dtypes or x_ND.dtype != y_MD.dtype:
        raise ValueError(
            f"vectors of {x_ND.dtype} and {y_MD.dtype}: wants the same of bf16, fp16, fp32 (CPU: float64): cast one"
        )
    if x_ND.shape[1:] != y_MD.shape[1:] or x_groups_N.shape != x_ND.shape[:1] or y_groups_M.shape != y_MD.shape[:1]:
        shapes = [tuple(tensor.shape) for tensor in (x_ND, y_MD, x_groups_N, y_groups_M)]
        raise ValueError(f"x, y and their groups have shapes {shapes}: wants [N, D], [M, D], [N], [M]")
    if x_groups_N.dtype != torch.int64 or y_groups_M.dtype != torch.int64 or scale.shape != (1,):
        given = f"groups of {x_groups_N.dtype} and {y_groups_M.dtype}, a scale of shape {tuple(scale.shape)}"
        raise ValueError(f"{given}: wants int64, int64, [1]")
    devices = {str(tensor.device) for tensor in (x_ND, y_MD, x_groups_N, y_groups_M, scale)}
    if len(devices) > 1:
        raise ValueError(f"x, y, their groups and the scale are on {', '.join(sorted(devices))}: wants one device")


def log_sums_by_row(scores_J: Tensor, rows_J: Tensor, rows: int) -> Tensor:
    """`log sum exp` of the scores on a list, for each of the rows that they belong to; -inf for a row with none.

    Candidates that only one row has, such as hard negatives, join the sums of the matrix by
    `torch.logaddexp(row_all_N, log_sums_by_row(scores_J, rows_J, N))`.

    Args:
        scores_J: floats, already multiplied with the scale.
        rows_J: int64 in 0 .. rows-1, in any order.
        rows: number of rows.

    Returns:
        [rows] in the dtype of the scores, differentiable.
    """
    largest_N = scores_J.detach().new_full((rows,), -torch.inf).scatter_reduce(0, rows_J, scores_J.detach(), "amax")
    shifted_J = (scores_J - largest_N[rows_J]).exp()
    return scores_J.new_zeros(rows).index_add(0, rows_J, shifted_J).log() + largest_N


@torch.library.custom_op("unimo_ds::contrastive_statistics", mutates_args=(), device_types="cpu")
def statistics_op(
    x: Tensor, y: Tensor, x_groups: Tensor, y_groups: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The op; `contrastive_statistics` says what it does."""
    own, other = _not_ignored(x_groups), _not_ignored(y_groups)
    rows, columns = len(x), len(y)
    if own is not None:
        x, x_groups = x[own], x_groups[own]
    if other is not None:
        y, y_groups = y[other], y_groups[other]
    row_all, row_positive, column_all, column_positive = _log_sums(x, y, x_groups, y_groups, scale)
    return (
        _put_back(row_all, own, rows, -torch.inf),
        _put_back(row_positive, own, rows, -torch.inf),
        _put_back(column_all, other, columns, -torch.inf),
        _put_back(column_positive, other, columns, -torch.inf),
    )


@statistics_op.register_kernel("cuda")
def _(x: Tensor, y: Tensor, x_groups: Tensor, y_groups: Tensor, scale: Tensor) -> Four:
    from unimo_ds.kernels import contrastive_triton
    from unimo_ds.kernels.launch_triton import launcher_for

    found: Four = contrastive_triton.forward(x, y, x_groups, y_groups, scale, launcher_for(x.device))
    return found


@statistics_op.register_fake
def _(x: Tensor, y: Tensor, x_groups: Tensor, y_groups: Tensor, scale: Tensor) -> Four:
    rows, columns = len(x), len(y)
    row_all, row_positive, column_all, column_positive = (
        x.new_empty(length, dtype=_statistics_dtype(x)) for length in (rows, rows, columns, columns)
    )
    return row_all, row_positive, column_all, column_positive


@torch.library.custom_op("unimo_ds::contrastive_statistics_backward", mutates_args=(), device_types="cpu")
def statistics_backward_op(
    x: Tensor,
    y: Tensor,
    x_groups: Tensor,
    y_groups: Tensor,
    scale: Tensor,
    row_all: Tensor,
    row_positive: Tensor,
    column_all: Tensor,
    column_positive: Tensor,
    d_row_all: Tensor,
    d_row_positive: Tensor,
    d_column_all: Tensor,
    d_column_positive: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `x`, `y` and `scale`, where `x` and `y` may be a block of the matrix that the statistics are of."""
    own, other = _not_ignored(x_groups), _not_ignored(y_groups)
    of_rows = torch.stack([row_all, row_positive, d_row_all, d_row_positive])
    of_columns = torch.stack([column_all, column_positive, d_column_all, d_column_positive])
    if own is not None:
        x, x_groups, of_rows = x[own], x_groups[own], of_rows[:, own]
    if other is not None:
        y, y_groups, of_columns = y[other], y_groups[other], of_columns[:, other]
    with torch.autocast("cpu", enabled=False):  # what was saved is cast already
        dx, dy, dscale = _gradients(x, y, x_groups, y_groups, scale, of_rows, of_columns)
    return _put_back(dx, own, len(row_all), 0.0), _put_back(dy, other, len(column_all), 0.0), dscale


@statistics_backward_op.register_kernel("cuda")
def _(
    x: Tensor,
    y: Tensor,
    x_groups: Tensor,
    y_groups: Tensor,
    scale: Tensor,
    row_all: Tensor,
    row_positive: Tensor,
    column_all: Tensor,
    column_positive: Tensor,
    d_row_all: Tensor,
    d_row_positive: Tensor,
    d_column_all: Tensor,
    d_column_positive: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    from unimo_ds.kernels import contrastive_triton
    from unimo_ds.kernels.launch_triton import launcher_for

    statistics = row_all, row_positive, column_all, column_positive
    gradients = d_row_all, d_row_positive, d_column_all, d_column_positive
    with torch.autocast("cuda", enabled=False):  # what was saved is cast already
        found: tuple[Tensor, Tensor, Tensor] = contrastive_triton.backward(
            x, y, x_groups, y_groups, scale, *statistics, *gradients, launcher_for(x.device)
        )
    return found


@statistics_backward_op.register_fake
def _(x: Tensor, y: Tensor, x_groups: Tensor, y_groups: Tensor, scale: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), y.new_empty(y.shape), scale.new_empty(scale.shape)


def _keep_for_backward(ctx: Any, inputs: tuple[Tensor, ...], output: Four) -> None:
    ctx.save_for_backward(*inputs, *output)


def _backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    dx, dy, dscale = statistics_backward_op(*ctx.saved_tensors, *gradients)
    return dx, dy, None, None, dscale


statistics_op.register_autograd(_backward, setup_context=_keep_for_backward)
statistics_op.register_autocast("cuda", torch.float32)
statistics_op.register_autocast("cpu", torch.float32)


# What follows is the CPU implementation.


def _not_ignored(groups: Tensor) -> Tensor | None:
    """Places of the entries that count; None for all, which spares copies."""
    counts = groups >= 0
    return None if bool(counts.all()) else counts.nonzero()[:, 0]


def _put_back(values: Tensor, places: Tensor | None, length: int, fill: float) -> Tensor:
    """Values of the entries that count at their places among all, the others filled."""
    if places is None:
        return values
    return values.new_full((length, *values.shape[1:]), fill).index_copy_(0, places, values)


def _statistics_dtype(vectors: Tensor) -> torch.dtype:
    return torch.float64 if vectors.dtype == torch.float64 else torch.float32


def _chunk_columns(dtype: torch.dtype) -> int:
    """Half as many where the products are made in another type: a chunk is as large in memory as without that."""
    return _CHUNK_COLUMNS if product_dtype(dtype) == dtype else max(1, _CHUNK_COLUMNS // 2)


class _ByGroup:
    """The columns of a chunk in the order of their groups, so that positives are found without looking at the others."""

    def __init__(self, groups_K: Tensor) -> None:
        self.groups_K, self.order_K = groups_K.sort(stable=True)

    def positives(self, groups_B: Tensor) -> tuple[Tensor, Tensor]:
        """Row and column of every positive of a block with these rows."""
        first_B = torch.searchsorted(self.groups_K, groups_B)
        counts_B = torch.searchsorted(self.groups_K, groups_B, right=True) - first_B
        rows_J = torch.repeat_interleave(counts_B)
        before_B = counts_B.cumsum(0) - counts_B  # positives of earlier rows
        places_J = torch.arange(len(rows_J)) + (first_B - before_B)[rows_J]
        return rows_J, self.order_K[places_J]


def _log_sums(x_ND: Tensor, y_MD: Tensor, x_groups_N: Tensor, y_groups_M: Tensor, scale: Tensor) -> Four:
    """Log-sums of rows over all and over the positives, and of columns."""
    dtype, work = _statistics_dtype(x_ND), product_dtype(x_ND.dtype)
    rows_2N = x_ND.new_full((2, len(x_ND)), -torch.inf, dtype=dtype)
    columns_2M = y_MD.new_full((2, len(y_MD)), -torch.inf, dtype=dtype)
    for columns in slices(len(y_MD), _chunk_columns(x_ND.dtype)):
        y_KD, by_group, columns_2K = y_MD[columns].to(work), _ByGroup(y_groups_M[columns]), columns_2M[:, columns]
        for rows in slices(len(x_ND), _CHUNK_ROWS):
            product_CK = matrix_product(x_ND[rows].to(work), y_KD.T)
            groups_C, rows_2C = x_groups_N[rows], rows_2N[:, rows]
            for block in slices(len(product_CK), _BLOCK_ELEMENTS // product_CK.shape[1]):
                positives = by_group.positives(groups_C[block])
                _join_block(product_CK[block], scale, positives, rows_2C[:, block], columns_2K)
    return rows_2N[0].clone(), rows_2N[1].clone(), columns_2M[0].clone(), columns_2M[1].clone()


def _softmax_of_rows(product_BK: Tensor, scale: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """The similarities of a block, the softmax of each row, and each row's log-sum, with one exponential an entry."""
    s_BK = product_BK.to(dtype, copy=True).mul_(scale)
    shares_BK = s_BK.softmax(1)
    return s_BK, shares_BK, s_BK.amax(1) - shares_BK.amax(1).log_()  # the largest share is 1 / sum exp(s - largest)


def _join_block(
    product_BK: Tensor, scale: Tensor, positives: tuple[Tensor, Tensor], rows_2B: Tensor, columns_2K: Tensor
) -> None:
    """Adds what a block has to the log-sums of its rows and columns."""
    rows_J, columns_J = positives
    s_BK, shares_BK, log_sums_B = _softmax_of_rows(product_BK, scale, rows_2B.dtype)
    largest = log_sums_B.max()
    relative_K = ((log_sums_B - largest).exp_() @ shares_BK).log_()  # the log-sums of the columns, less the largest of the rows
    over_all_K = relative_K + largest
    low = (relative_K < _LOWEST).nonzero()[:, 0]
    if len(low):
        over_all_K[low] = s_BK[:, low].logsumexp(0)
    _join(rows_2B[0], log_sums_B)
    _join(columns_2K[0], over_all_K)
    if len(rows_J):
        positive_J = s_BK[rows_J, columns_J]
        _join(rows_2B[1], log_sums_by_row(positive_J, rows_J, len(s_BK)))
        _join(columns_2K[1], log_sums_by_row(positive_J, columns_J, s_BK.shape[1]))


def _join(log_sums: Tensor, others: Tensor) -> None:
    torch.logaddexp(log_sums, others, out=log_sums)


def _gradients(
    x_ND: Tensor, y_MD: Tensor, x_groups_N: Tensor, y_groups_M: Tensor, scale: Tensor, rows_4N: Tensor, columns_4M: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of both sides and of the scale; `rows` and `columns` are log-sums (all, positive) and their gradients."""
    dscale, work = torch.zeros_like(scale), product_dtype(x_ND.dtype)
    dx, dy = _RunningSum(x_ND), y_MD.new_empty(y_MD.shape)
    for columns in slices(len(y_MD), _chunk_columns(x_ND.dtype)):
        y_KD, by_group, columns_4K = y_MD[columns].to(work), _ByGroup(y_groups_M[columns]), columns_4M[:, columns]
        dy_KD = y_KD.new_zeros(y_KD.shape, dtype=rows_4N.dtype)
        for rows in slices(len(x_ND), _CHUNK_ROWS):
            x_CD = x_ND[rows].to(work)
            ds_CK = _chunk_gradient(x_CD, y_KD, x_groups_N[rows], by_group, scale, rows_4N[:, rows], columns_4K)
            for part in slices(len(dy_KD), _PRODUCT_ROWS):
                dy_KD[part] += matrix_product(ds_CK.T[part], x_CD)
            for part in slices(len(x_CD), _PRODUCT_ROWS):
                dx_PD = matrix_product(ds_CK[part], y_KD).to(dy_KD.dtype)
                dscale += torch.einsum("pd,pd->", x_CD[part].to(dx_PD.dtype), dx_PD)
                dx.add(slice(rows.start + part.start, rows.start + part.stop), dx_PD.mul_(scale))
            del ds_CK  # the next one needs its memory
        dy[columns] = dy_KD.mul_(scale)
    return dx.total_ND.to(x_ND.dtype), dy, dscale


def _chunk_gradient(
    x_CD: Tensor,
    y_KD: Tensor,
    groups_C: Tensor,
    by_group: _ByGroup,
    scale: Tensor,
    rows_4C: Tensor,
    columns_4K: Tensor,
) -> Tensor:
    """The gradient of the similarities of a chunk, in the dtype of the vectors."""
    ds_CK = matrix_product(x_CD, y_KD.T)
    for block in slices(len(ds_CK), _BLOCK_ELEMENTS // ds_CK.shape[1]):
        positives = by_group.positives(groups_C[block])
        ds_CK[block] = _block_gradient(ds_CK[block], scale, positives, rows_4C[:, block], columns_4K)
    return ds_CK


def _block_gradient(
    product_BK: Tensor, scale: Tensor, positives: tuple[Tensor, Tensor], rows_4B: Tensor, columns_4K: Tensor
) -> Tensor:
    """The gradient of the similarities of a block."""
    row_all_B, row_positive_B, d_row_all_B, d_row_positive_B = rows_4B
    column_all_K, column_positive_K, d_column_all_K, d_column_positive_K = columns_4K
    rows_J, columns_J = positives
    s_BK, shares_BK, log_sums_B = _softmax_of_rows(product_BK, scale, rows_4B.dtype)
    # share = exp(s - row), and exp(s - column) = share exp(row - largest) exp(largest - column)
    largest = log_sums_B.max()
    above_K = largest - column_all_K
    low_K = above_K > -_LOWEST
    of_columns_K = torch.where(low_K, 0.0, above_K.exp() * d_column_all_K)
    low = low_K.nonzero()[:, 0]
    of_low = (s_BK[:, low] - column_all_K[low]).exp_() * d_column_all_K[low]
    positive_J = s_BK[rows_J, columns_J]
    of_positive_J = (positive_J - row_positive_B[rows_J]).exp_() * d_row_positive_B[rows_J]
    of_positive_J += (positive_J - column_positive_K[columns_J]).exp_() * d_column_positive_K[columns_J]
    factors_BK = torch.outer((log_sums_B - largest).exp_(), of_columns_K, out=s_BK)  # the similarities are done with
    factors_BK += ((log_sums_B - row_all_B).exp_() * d_row_all_B)[:, None]
    ds_BK = shares_BK.mul_(factors_BK)
    if len(low):
        ds_BK[:, low] += of_low
    if len(rows_J):
        ds_BK[rows_J, columns_J] += of_positive_J
    return ds_BK


class _RunningSum:
    """A sum of float32 terms that ends in the dtype of the vectors, without a float32 copy of them all.

    In bf16 the sum is kept as two bf16 numbers, the second being what rounding took from the first: 16 bits, of which the first
    number is the rounded result.
    """

    def __init__(self, like_ND: Tensor) -> None:
        twofold = like_ND.dtype == torch.bfloat16
        self.total_ND = like_ND.new_zeros(like_ND.shape, dtype=torch.bfloat16 if twofold else _statistics_dtype(like_ND))
        self._rest_ND = torch.zeros_like(self.total_ND) if twofold else None

    def add(self, rows: slice, terms_PD: Tensor) -> None:
        """Adds to some rows; overwrites the terms."""
        if self._rest_ND is None:
            self.total_ND[rows] += terms_PD
            return
        exact_PD = terms_PD.add_(self.total_ND[rows]).add_(self._rest_ND[rows])
        self.total_ND[rows] = exact_PD
        self._rest_ND[rows] = exact_PD.sub_(self.total_ND[rows])
