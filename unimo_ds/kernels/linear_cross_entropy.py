"""A linear layer fused with its cross-entropy, so that logits [targets, vocabulary] are never stored whole where they are many.

The derivative of a target's loss by its logits is `softmax - onehot`, whatever comes after; here it is called the error. Logits
become errors in place. One chunk's errors are kept for the backward pass; where there are more chunks they are made again.

Shape suffixes: M targets, D width, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

_CHUNK_ELEMENTS = 1 << 25  # logits of a chunk: 64 MB in bf16
_BLOCK_ELEMENTS = 1 << 19  # logits turned into errors at a time, in float32: what stays in a core's cache from pass to pass


def linear_cross_entropy(hidden_MD: Tensor, weight_VD: Tensor, bias_V: Tensor, labels_M: Tensor) -> Tensor:
    """Cross-entropy of `softmax(hidden weight^T + bias)` against `labels`, for each target, float32 [M].

    Args:
        hidden_MD: inputs in the weight's dtype.
        weight_VD, bias_V: the layer.
        labels_M: int64 in 0 .. V-1.
    """
    losses: Tensor = _LinearCrossEntropy.apply(hidden_MD, weight_VD, bias_V, labels_M)
    return losses


def _slices(count: int, size: int) -> list[slice]:
    return [slice(start, start + max(1, size)) for start in range(0, count, max(1, size))]


def _losses_and_errors(hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The losses of a chunk, float32 [M], and its errors [M, V] in the weight's dtype."""
    logits, bias = hidden @ weight.T, bias.float()
    losses = hidden.new_empty(len(hidden), dtype=torch.float32)
    for rows in _slices(len(hidden), _BLOCK_ELEMENTS // len(weight)):
        chosen = labels[rows, None]
        log_probabilities = logits[rows].float().add_(bias).log_softmax(1)
        losses[rows] = -log_probabilities.gather(1, chosen)[:, 0]
        errors = log_probabilities.exp_()
        errors.scatter_add_(1, chosen, errors.new_full(chosen.shape, -1.0))
        logits[rows] = errors
    return losses, logits


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
        losses, errors = hidden.new_empty(len(hidden), dtype=torch.float32), None
        ctx.chunks = _slices(len(hidden), _CHUNK_ELEMENTS // len(weight))
        for chunk in ctx.chunks:
            losses[chunk], errors = _losses_and_errors(hidden[chunk], weight, bias, labels[chunk])
        ctx.save_for_backward(hidden, weight, bias, labels, errors if len(ctx.chunks) == 1 else None)
        return losses

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, labels, kept = ctx.saved_tensors
        scale = gradients[0][:, None]
        scaled = (hidden * scale).to(weight.dtype)
        d_hidden = torch.empty_like(hidden)
        d_weight = torch.empty_like(weight) if ctx.chunks else torch.zeros_like(weight)
        d_bias = torch.zeros_like(bias, dtype=torch.float32)
        for number, chunk in enumerate(ctx.chunks):
            errors = _losses_and_errors(hidden[chunk], weight, bias, labels[chunk])[1] if kept is None else kept
            d_hidden[chunk] = (errors @ weight).mul_(scale[chunk])
            d_weight.addmm_(errors.T, scaled[chunk], beta=min(number, 1))  # beta 0 writes: no zeros have to be made first
            d_bias += (scale[chunk].T.to(errors.dtype) @ errors)[0]
        return d_hidden, d_weight, d_bias.to(bias.dtype), None
