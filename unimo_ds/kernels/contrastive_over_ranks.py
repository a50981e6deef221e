"""The contrastive log-sums of a matrix whose rows and columns lie on many ranks, by gather or by ring.

Each rank sweeps its own rows against the columns of all ranks, so its rows' sums are complete at once, and its share of each
column's sum joins the shares of the others. No rank ever has the matrix, and none computes an entry that another one computes.
Both ways give the same numbers; every rank must call with the same way. Vectors of D numbers of b bytes, W ranks with M columns
each:

gather: the columns of all ranks are gathered and swept by one call; the shares of the columns join by an all-reduce of their
    maxima and one of their shifted sums. The backward pass gathers the gradients of the columns' sums, sweeps once, and each
    rank receives the sum of its own columns' gradients by reduce-scatter, in float32. Each rank holds all columns, their
    gradient, and the same in float32: W M D (2 b + 4) bytes. It receives W M D b bytes forward and 4 W M D backward.
ring: each rank's columns travel from rank to rank with the sums that they have so far, and after W steps the sums are home.
    The backward pass sends the columns round again with their sums and a float32 gradient that every rank adds to. The next
    columns are on their way while a rank computes. Each rank holds the columns of two ranks and their gradients, about
    2 M D (2 b + 4) bytes whatever W is. It receives W M D b bytes more than with gather, and makes W small sweeps in place of a
    large one.

The ring hides its transfers where a sweep of N x M entries takes longer than its columns need to travel, 2 N M D / rate against
M D b / bandwidth: in bf16 from N = rate / bandwidth rows a rank on, that is 8,000 at 400 TFLOP/s and 50 GB/s between nodes.
With fewer rows gather is faster, for its messages are fewer and larger. So memory decides: `auto` gathers until that would take
more than 1 GiB on each rank. In bf16 with D = 1024 these are 131,072 columns in all, such as 256 on each of 512 ranks.

Shape suffixes: N own rows, M own columns, L columns of a rank with their padding, W ranks, D width.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from unimo_ds import distributed
from unimo_ds.distributed import Passing
from unimo_ds.kernels.contrastive import Four, check_inputs, contrastive_statistics, statistics_backward_op, statistics_op

Way = Literal["auto", "gather", "ring"]
Arrived = Callable[[], list[Tensor]]

MOST_GATHERED_BYTES = 1 << 30  # on each rank, of the columns of all ranks and their gradients


def statistics_over_ranks(x_ND: Tensor, y_MD: Tensor, x_groups_N: Tensor, y_groups_M: Tensor, scale: Tensor, way: Way) -> Four:
    """`contrastive_statistics` of this rank's rows with the columns of all ranks, and of its columns with the rows of all.

    Ranks may hold different numbers of rows and columns, none included; every rank must call it, and go backward through it.
    Gradients flow to the vectors of all ranks: a rank's gradient is the sum of what every rank's loss says of its vectors. The
    gradient of `scale` is that of this rank's rows; data parallelism adds them up.

    Args:
        x_ND, y_MD, x_groups_N, y_groups_M, scale: as in `contrastive_statistics`.
        way: `gather`, `ring`, or `auto`, which takes the ring where gathered columns would need more than 1 GiB.

    Returns:
        `row_all_N, row_positive_N, column_all_M, column_positive_M`.
    """
    check_inputs(x_ND, y_MD, x_groups_N, y_groups_M, scale)
    if distributed.world_size() == 1:
        return contrastive_statistics(x_ND, y_MD, x_groups_N, y_groups_M, scale)
    length = max(1, distributed.largest_over_ranks(len(y_MD), y_MD.device))
    if torch.is_autocast_enabled(x_ND.device.type):  # as the op itself does
        x_ND, y_MD, scale = x_ND.float(), y_MD.float(), scale.float()
    chosen = choose_way(length, y_MD) if way == "auto" else way
    function: Any = {"gather": _Gather, "ring": _Ring}[chosen]
    found: Four = function.apply(x_ND, y_MD, x_groups_N, y_groups_M, scale, length)
    return found


def choose_way(length: int, y_MD: Tensor) -> Literal["gather", "ring"]:
    """What `auto` stands for when the largest rank has `length` columns like these."""
    gathered = distributed.world_size() * length * y_MD.shape[1] * (2 * y_MD.element_size() + 4)
    return "ring" if gathered > MOST_GATHERED_BYTES else "gather"


def _padded(values: Tensor, length: int, fill: float) -> Tensor:
    padded = values.new_full((length, *values.shape[1:]), fill)
    padded[: len(values)] = values
    return padded


def _padded_columns(y_MD: Tensor, y_groups_M: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Columns of the length that all ranks have; those added are ignored."""
    return _padded(y_MD, length, 0.0), _padded(y_groups_M, length, -1)


def _join_shares(shares: Tensor) -> Tensor:
    """`log sum exp` of every rank's log-sums, on every rank."""
    largest = shares.clone()
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    largest = largest.where(largest.isfinite(), 0.0)  # where no rank has anything, -inf would make NaN
    sums = (shares - largest).exp_()
    dist.all_reduce(sums)
    return sums.log_().add_(largest)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, y_MD: Tensor, x_groups_N: Tensor, y_groups_M: Tensor, scale: Tensor, length: int
    ) -> Four:
        y, groups = (distributed.gather_parts(part) for part in _padded_columns(y_MD, y_groups_M, length))
        row_all, row_positive, *shares = statistics_op(x_ND, y, x_groups_N, groups, scale)
        column_all, column_positive = _join_shares(torch.stack(shares))
        ctx.save_for_backward(x_ND, y, x_groups_N, groups, scale, row_all, row_positive, column_all, column_positive)
        ctx.columns, ctx.length = len(y_MD), length
        first = distributed.rank() * length
        own = slice(first, first + len(y_MD))
        return row_all, row_positive, column_all[own].clone(), column_positive[own].clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        d_row_all, d_row_positive, *d_own = gradients
        d_columns = distributed.gather_parts(_padded(torch.stack(d_own, dim=1), ctx.length, 0.0))
        d_columns = d_columns.T.contiguous()
        dx, dy, dscale = statistics_backward_op(*ctx.saved_tensors, d_row_all, d_row_positive, d_columns[0], d_columns[1])
        dy_own = distributed.sum_own_part(dy.to(d_row_all.dtype))[: ctx.columns]
        return dx, dy_own.to(dy.dtype), None, None, dscale, None


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, y_MD: Tensor, x_groups_N: Tensor, y_groups_M: Tensor, scale: Tensor, length: int
    ) -> Four:
        ranks, dtype = distributed.world_size(), torch.promote_types(x_ND.dtype, torch.float32)
        own = block = list(_padded_columns(y_MD, y_groups_M, length))
        rows_2N = x_ND.new_full((2, len(x_ND)), -torch.inf, dtype=dtype)
        columns_2L = y_MD.new_full((2, length), -torch.inf, dtype=dtype)
        arrived: Arrived = lambda: [columns_2L]  # noqa: E731
        for step in range(ranks):
            following = Passing(block) if step + 1 < ranks else None  # home has its own columns still
            row_all, row_positive, *shares = statistics_op(x_ND, block[0], x_groups_N, block[1], scale)
            rows_2N = torch.logaddexp(rows_2N, torch.stack([row_all, row_positive]))
            arrived = Passing([torch.logaddexp(arrived()[0], torch.stack(shares))]).arrived
            if following is not None:
                block = following.arrived()
        columns_2L = arrived()[0]
        ctx.save_for_backward(x_ND, *own, x_groups_N, scale, rows_2N, columns_2L)
        ctx.columns = len(y_MD)
        columns_2M = columns_2L[:, : len(y_MD)]
        return rows_2N[0].clone(), rows_2N[1].clone(), columns_2M[0].clone(), columns_2M[1].clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, y, y_groups, x_groups, scale, rows_2N, columns_2L = ctx.saved_tensors
        d_row_all, d_row_positive, *d_own = gradients
        ranks, dtype = distributed.world_size(), rows_2N.dtype
        d_columns_2L = _padded(torch.stack(d_own, dim=1), len(y), 0.0).T
        block = [y, y_groups, torch.cat([columns_2L, d_columns_2L])]
        dx_sum, dscale_sum = x.new_zeros(x.shape, dtype=dtype), torch.zeros_like(scale)
        arrived: Arrived = lambda: [y.new_zeros(y.shape, dtype=dtype)]  # noqa: E731
        for step in range(ranks):
            following = Passing(block) if step + 1 < ranks else None
            y_block, groups, (column_all, column_positive, *d_columns) = block
            statistics = *rows_2N, column_all, column_positive
            dx, dy, dscale = statistics_backward_op(
                x, y_block, x_groups, groups, scale, *statistics, d_row_all, d_row_positive, *d_columns
            )
            dx_sum += dx
            dscale_sum += dscale
            arrived = Passing([arrived()[0].add_(dy)]).arrived
            if following is not None:
                block = following.arrived()
        return dx_sum.to(x.dtype), arrived()[0][: ctx.columns].to(y.dtype), None, None, dscale_sum, None
