"""Dropout whose random numbers are cheap on a CPU.

torch draws a Bernoulli number an element, one after the other. Here one 64-bit draw serves four elements, 16 bits each, and
all that follows is vectorised: five times faster in bf16 (docs/performance.md). The rate is rounded to 1/65,536. On a GPU
torch's own kernel is used.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_LEVELS = 1 << 16


def dropout(x: Tensor, rate: float) -> Tensor:
    """Zeroes elements with probability `rate` and scales the others by `1 / (1 - rate)`; rate 0 gives `x` itself."""
    if rate == 0.0:
        return x
    if x.is_cuda:
        return F.dropout(x, rate)
    dropped: Tensor = _Dropout.apply(x, rate)
    return dropped


def draw_kept(x: Tensor, rate: float, generator: torch.Generator | None = None) -> Tensor:
    """int16 of the shape of `x`: 0 with probability `rate`, else 1; drawn from `generator`, or from torch's default one."""
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device)
    draws.random_(-(1 << 63), None, generator=generator)
    dropped = min(round(rate * _LEVELS), _LEVELS - 1)  # all levels would overflow the 16 bits
    # In place, for torch vectorises a comparison whose result has its operands' type; making booleans takes ten times as long.
    return draws.view(torch.int16)[: x.numel()].ge_(dropped - _LEVELS // 2).view(x.shape)


def apply_kept(x: Tensor, kept: Tensor, rate: float) -> Tensor:
    """Dropout by the mask `kept`; forward and backward are the same."""
    # 16 bits times 0 or 1, as whole numbers: no pass to convert the mask.
    whole = x.element_size() == kept.element_size()
    chosen = (x.view(kept.dtype) * kept).view(x.dtype) if whole else x * kept.to(x.dtype)
    return chosen.mul_(1 / (1 - rate))


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rate: float) -> Tensor:
        ctx.rate = rate
        kept = draw_kept(x, rate)
        ctx.save_for_backward(kept)
        return apply_kept(x, kept, rate)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return apply_kept(gradients[0], kept, ctx.rate), None
