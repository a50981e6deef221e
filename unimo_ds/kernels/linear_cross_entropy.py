"""A linear layer fused with its cross-entropy, so that logits [targets, vocabulary] are never stored whole.

Shape suffixes: M targets, D width, V vocabulary, C targets of a chunk.
"""

from typing import Any

import torch
from torch import Tensor

_CHUNK_ELEMENTS = 1 << 24  # logits of a chunk: 64 MB in fp32


def linear_cross_entropy(hidden_MD: Tensor, weight_VD: Tensor, bias_V: Tensor, labels_M: Tensor) -> Tensor:
    """Cross-entropy of `softmax(hidden weight^T + bias)` against `labels`, for each target, float32 [M].

    Args:
        hidden_MD: inputs in the weight's dtype.
        weight_VD, bias_V: the layer.
        labels_M: int64 in 0 .. V-1.
    """
    losses: Tensor = _LinearCrossEntropy.apply(hidden_MD, weight_VD, bias_V, labels_M)
    return losses


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.nn.functional.linear(hidden, weight, bias).float()


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
        losses = hidden.new_empty(len(hidden), dtype=torch.float32)
        size = max(1, _CHUNK_ELEMENTS // len(weight))
        for start in range(0, len(hidden), size):
            chunk = slice(start, start + size)
            losses[chunk] = torch.nn.functional.cross_entropy(
                _logits(hidden[chunk], weight, bias), labels[chunk], reduction="none"
            )
        ctx.save_for_backward(hidden, weight, bias, labels)
        ctx.chunk = size
        return losses

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, labels = ctx.saved_tensors
        d_hidden = torch.empty_like(hidden)
        d_weight, d_bias = torch.zeros_like(weight), torch.zeros_like(bias, dtype=torch.float32)
        for start in range(0, len(hidden), ctx.chunk):
            chunk = slice(start, start + ctx.chunk)
            d_logits = _logits(hidden[chunk], weight, bias).softmax(1)
            d_logits.scatter_add_(1, labels[chunk, None], -torch.ones_like(labels[chunk, None], dtype=torch.float32))
            d_logits *= gradients[0][chunk, None]
            d_bias += d_logits.sum(0)
            d_logits = d_logits.to(weight.dtype)
            d_hidden[chunk] = d_logits @ weight
            d_weight.addmm_(d_logits.T, hidden[chunk])
        return d_hidden, d_weight, d_bias.to(bias.dtype), None
