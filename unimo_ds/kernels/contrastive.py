"""Log-sums of the contrastive similarity matrix, in one sweep of chunks and without ever storing the matrix.

For similarities `s = scale * x y^T` the op gives, for every row and every column, the log of the sum of `exp(s)` over all
entries and over the positive entries (those of equal group). An InfoNCE loss with any number of positives, in both
directions, is a difference of these; further candidates of a row join outside by `logaddexp`.

Shape suffixes: N rows, M columns, D width, C rows of a chunk.
"""

from typing import Any

import torch
from torch import Tensor

_CHUNK_ELEMENTS = 1 << 20  # of a chunk of the matrix: 4 MB in fp32, which stays in a core's cache


def contrastive_statistics(
    x_ND: Tensor, y_MD: Tensor, x_groups_N: Tensor, y_groups_M: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Row and column log-sums of the similarity matrix, differentiable in `x`, `y` and `scale`.

    Args:
        x_ND, y_MD: float32 vectors.
        x_groups_N, y_groups_M: int64; entries of equal group are positives.
        scale: float32 [1], what similarities are multiplied with (the inverse temperature).

    Returns:
        `row_all_N, row_positive_N, column_all_M, column_positive_M`; -inf where there is nothing to sum.
    """
    statistics: tuple[Tensor, Tensor, Tensor, Tensor] = _Statistics.apply(x_ND, y_MD, x_groups_N, y_groups_M, scale)
    return statistics


def _chunks(rows: int, columns: int) -> list[slice]:
    size = max(1, _CHUNK_ELEMENTS // max(columns, 1))
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def _finite(log_sum: Tensor) -> Tensor:
    """-inf replaced by 0: such entries have no terms, and a finite number keeps their products with zero at zero."""
    return torch.where(torch.isinf(log_sum), torch.zeros_like(log_sum), log_sum)


class _Statistics(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, x_groups: Tensor, y_groups: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        row_all, row_positive = x.new_full((len(x),), -torch.inf), x.new_full((len(x),), -torch.inf)
        column_all, column_positive = y.new_full((len(y),), -torch.inf), y.new_full((len(y),), -torch.inf)
        for chunk in _chunks(len(x), len(y)) if len(y) else []:
            s_CM = (x[chunk] * scale) @ y.T
            positive_CM = s_CM.masked_fill(x_groups[chunk, None] != y_groups[None], -torch.inf)
            row_all[chunk], row_positive[chunk] = s_CM.logsumexp(1), positive_CM.logsumexp(1)
            column_all = torch.logaddexp(column_all, s_CM.logsumexp(0))
            column_positive = torch.logaddexp(column_positive, positive_CM.logsumexp(0))
        ctx.save_for_backward(x, y, x_groups, y_groups, scale, row_all, row_positive, column_all, column_positive)
        return row_all, row_positive, column_all, column_positive

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, y, x_groups, y_groups, scale, *log_sums = ctx.saved_tensors
        row_all, row_positive, column_all, column_positive = map(_finite, log_sums)
        d_row_all, d_row_positive, d_column_all, d_column_positive = gradients
        dx, dy, dscale = torch.zeros_like(x), torch.zeros_like(y), torch.zeros_like(scale)
        for chunk in _chunks(len(x), len(y)) if len(y) else []:
            product_CM = x[chunk] @ y.T
            s_CM = product_CM * scale
            over_all = d_row_all[chunk, None] * (s_CM - row_all[chunk, None]).exp()
            over_all += d_column_all[None] * (s_CM - column_all[None]).exp()
            over_positive = d_row_positive[chunk, None] * (s_CM - row_positive[chunk, None]).exp()
            over_positive += d_column_positive[None] * (s_CM - column_positive[None]).exp()
            ds_CM = over_all + over_positive.masked_fill_(x_groups[chunk, None] != y_groups[None], 0.0)
            dx[chunk] = (ds_CM @ y) * scale
            dy.addmm_(ds_CM.T, x[chunk] * scale)
            dscale += (ds_CM * product_CM).sum()
        return dx, dy, None, None, dscale
