"""A linear layer fused with its cross-entropy, so that logits [targets, vocabulary] are never stored whole where they are many.

The derivative of a target's loss by its logits is `softmax - onehot`, whatever comes after; here it is called the error. Logits
come from a library product and become errors in place: on the CPU a block of rows at a time, on a GPU in one Triton kernel
(linear_cross_entropy_triton.py). One chunk's errors are kept for the backward pass; where there are more chunks they are made
again. The gradients are library products of errors.

Shape suffixes: M targets, D width, V vocabulary, C targets of a chunk.
"""

from typing import Any

import torch
from torch import Tensor

from unimo_ds.kernels.chunks import slices
from unimo_ds.kernels.linear import matrix_product

_CHUNK_ELEMENTS = 1 << 25  # logits of a chunk: 64 MB in bf16
_SMALLEST = 1e-30  # a divisor that is not 0
_BLOCK_ELEMENTS = 1 << 19  # logits turned into errors at a time, in float32: what stays in a core's cache from pass to pass


def linear_cross_entropy(hidden_MD: Tensor, weight_VD: Tensor, bias_V: Tensor, labels_M: Tensor) -> Tensor:
    """Cross-entropy of `softmax(hidden weight^T + bias)` against `labels`, for each target, float32 [M].

    Under autocast the layer and its inputs are cast to bf16.

    Args:
        hidden_MD: inputs in the weight's dtype.
        weight_VD, bias_V: the layer.
        labels_M: int64 in 0 .. V-1; others raise on a CPU, and on a GPU, which does not look ahead, give a loss of NaN.
    """
    losses: Tensor = linear_cross_entropy_op(hidden_MD, weight_VD, bias_V, labels_M)[0]
    return losses


@torch.library.custom_op("unimo_ds::linear_cross_entropy", mutates_args=())
def linear_cross_entropy_op(hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The losses, and the errors [M, V] if all targets are one chunk, otherwise [0, V]; on a GPU with padding behind V."""
    losses = hidden.new_empty(len(hidden), dtype=torch.float32)
    errors = weight.new_empty((0, _row_length(weight)))
    chunks = _chunks(len(hidden), len(weight))
    for chunk in chunks:
        losses[chunk], made = _losses_and_errors(hidden[chunk], weight, bias, labels[chunk])
        if len(chunks) == 1:
            errors = made
    return losses, errors


@linear_cross_entropy_op.register_fake
def _(hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    targets, vocabulary = len(hidden), len(weight)
    kept = targets if targets <= _chunk_size(vocabulary) else 0
    return hidden.new_empty(targets, dtype=torch.float32), weight.new_empty((kept, _row_length(weight)))


@torch.library.custom_op("unimo_ds::linear_cross_entropy_backward", mutates_args=())
def linear_cross_entropy_backward_op(
    d_losses: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, errors: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the inputs, the weight and the bias; `errors` are those that the forward op kept."""
    with torch.autocast(hidden.device.type, enabled=False):  # what was saved is cast already
        return _gradients(d_losses, hidden, weight, bias, labels, errors)


@linear_cross_entropy_backward_op.register_fake
def _(
    d_losses: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, errors: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return hidden.new_empty(hidden.shape), weight.new_empty(weight.shape), bias.new_empty(bias.shape)


def _keep_for_backward(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)  # zeros for the errors would be as large as the logits
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs, output[1])


def _backward(ctx: Any, d_losses: Tensor, _: None) -> tuple[Tensor, Tensor, Tensor, None]:
    d_hidden, d_weight, d_bias = linear_cross_entropy_backward_op(d_losses, *ctx.saved_tensors)
    return d_hidden, d_weight, d_bias, None


linear_cross_entropy_op.register_autograd(_backward, setup_context=_keep_for_backward)
linear_cross_entropy_op.register_autocast("cuda", torch.bfloat16)
linear_cross_entropy_op.register_autocast("cpu", torch.bfloat16)


def _gradients(
    d_losses: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, errors: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    scale = d_losses[:, None]
    # In units of the largest gradient, so that a scaled loss does not leave the range of float16.
    unit = scale.abs().max().clamp_min(_SMALLEST) if weight.dtype == torch.float16 and len(scale) else None
    scale_in_units = scale if unit is None else scale / unit
    scaled = (hidden * scale_in_units).to(weight.dtype)
    chunks = _chunks(len(hidden), len(weight))
    d_hidden, d_bias = hidden.new_empty(hidden.shape), torch.zeros_like(bias, dtype=torch.float32)
    d_weight = None
    for chunk in chunks:
        kept = len(chunks) == 1
        rows = errors if kept else _losses_and_errors(hidden[chunk], weight, bias, labels[chunk])[1]
        errors_CV = rows[:, : len(weight)]
        d_hidden[chunk] = matrix_product(errors_CV, weight).mul_(scale[chunk])
        product_VD = matrix_product(errors_CV.T, scaled[chunk])
        d_weight = product_VD if d_weight is None else d_weight.add_(product_VD)  # no zeros have to be made first
        d_bias += (scale_in_units[chunk].T.to(errors_CV.dtype) @ errors_CV)[0]
    if d_weight is None:
        d_weight = weight.new_zeros(weight.shape)
    if unit is not None:
        d_weight, d_bias = d_weight.mul_(unit), d_bias.mul_(unit)
    return d_hidden, d_weight, d_bias.to(bias.dtype)


def _chunk_size(vocabulary: int) -> int:
    return max(1, _CHUNK_ELEMENTS // vocabulary)


def _chunks(targets: int, vocabulary: int) -> list[slice]:
    return slices(targets, _chunk_size(vocabulary))


def _row_length(weight_VD: Tensor) -> int:
    """Numbers from one row of logits to the next; a GPU's products and loads want multiples, and 50,265 is odd."""
    vocabulary = len(weight_VD)
    return -(-vocabulary // 64) * 64 if weight_VD.is_cuda else vocabulary


def _losses_and_errors(hidden_CD: Tensor, weight_VD: Tensor, bias_V: Tensor, labels_C: Tensor) -> tuple[Tensor, Tensor]:
    """The losses of a chunk, float32 [C], and its errors [C, V] in the weight's dtype, on a GPU with padding behind V."""
    if not hidden_CD.is_cuda:
        logits_CV = matrix_product(hidden_CD, weight_VD.T)
        return _losses_and_errors_(logits_CV, bias_V, labels_C), logits_CV
    from unimo_ds.kernels import linear_cross_entropy_triton
    from unimo_ds.kernels.launch_triton import launcher_for

    rows = weight_VD.new_zeros((len(hidden_CD), _row_length(weight_VD)))
    logits_CV = torch.mm(hidden_CD, weight_VD.T, out=rows[:, : len(weight_VD)])
    launcher = launcher_for(logits_CV.device)
    return linear_cross_entropy_triton.losses_and_errors_(logits_CV, bias_V, labels_C, launcher), rows


def _losses_and_errors_(logits_CV: Tensor, bias_V: Tensor, labels_C: Tensor) -> Tensor:
    """Turns logits without their bias into errors, in place, and gives the losses."""
    bias_V, losses_C = bias_V.float(), logits_CV.new_empty(len(logits_CV), dtype=torch.float32)
    for rows in slices(len(logits_CV), max(1, _BLOCK_ELEMENTS // len(bias_V))):
        chosen = labels_C[rows, None]
        log_probabilities = logits_CV[rows].float().add_(bias_V).log_softmax(1)
        losses_C[rows] = -log_probabilities.gather(1, chosen)[:, 0]
        errors = log_probabilities.exp_()
        errors.scatter_add_(1, chosen, errors.new_full(chosen.shape, -1.0))
        logits_CV[rows] = errors
    return losses_C
