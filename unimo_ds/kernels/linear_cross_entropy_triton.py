"""Losses of a chunk of logits, and the logits turned in place into the derivative of the losses, on a GPU in Triton.

A program has one row: a first pass over it for its log-sum, a second one that writes. The second read of a row finds it in the
second-level cache, so the memory's part is one read and one write, where a softmax and a gather by library calls would copy
the chunk to float32 first.

Shape suffixes: M targets, V vocabulary, B logits of a step. A name without suffix is a pointer or a number.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import torch
import triton
import triton.language as tl
from torch import Tensor

from unimo_ds.kernels.launch_triton import Launcher
from unimo_ds.kernels.table import CROSS_ENTROPY

_LOWEST = tl.constexpr(-3.0e38)  # a maximum to start from that is finite, so that no difference of two is NaN


@triton.jit
def _logits(row, bias, places_B, V, MASKED: tl.constexpr):
    """Logits with their bias, float32; -inf beyond the end."""
    if MASKED:
        logits_B = tl.load(row + places_B, mask=places_B < V, other=float("-inf")).to(tl.float32)
        return logits_B + tl.load(bias + places_B, mask=places_B < V, other=0.0).to(tl.float32)
    else:
        return tl.load(row + places_B).to(tl.float32) + tl.load(bias + places_B).to(tl.float32)


@triton.jit
def _joined(largest_B, sum_B, logits_B):
    """Running maxima and sums of `exp(logit - maximum)`, each lane its own, with one more step of logits."""
    larger_B = tl.maximum(largest_B, logits_B)
    return larger_B, sum_B * tl.exp(largest_B - larger_B) + tl.exp(logits_B - larger_B)


@triton.jit
def _losses_and_errors(logits, bias, labels, losses, stride, V, STEP: tl.constexpr):
    """The loss of one row, and its logits replaced by `softmax - onehot`."""
    row = logits + tl.program_id(0).to(tl.int64) * stride
    label = tl.load(labels + tl.program_id(0))
    # Read before the second pass overwrites it; the reductions between are a barrier for all threads of the program.
    inside = (label >= 0) & (label < V)  # a label out of range gives NaN, and no foreign memory is read
    safe = tl.where(inside, label, 0)
    chosen = tl.load(row + safe).to(tl.float32) + tl.load(bias + safe).to(tl.float32)
    chosen = tl.where(inside, chosen, float("nan"))
    lanes_B = tl.arange(0, STEP)
    whole = V // STEP * STEP  # steps without a mask, so that loads are wide though V is odd; the rest is one step with a mask
    largest_B, sum_B = tl.full((STEP,), _LOWEST, tl.float32), tl.zeros((STEP,), tl.float32)
    for start in range(0, whole, STEP):
        largest_B, sum_B = _joined(largest_B, sum_B, _logits(row, bias, start + lanes_B, V, MASKED=False))
    tail_B = whole + lanes_B
    largest_B, sum_B = _joined(largest_B, sum_B, _logits(row, bias, tail_B, V, MASKED=True))
    largest = tl.max(largest_B, 0)
    log_sum = largest + tl.log(tl.sum(sum_B * tl.exp(largest_B - largest), 0))
    tl.store(losses + tl.program_id(0), log_sum - chosen)
    for start in range(0, whole, STEP):
        places_B = start + lanes_B
        errors_B = tl.exp(_logits(row, bias, places_B, V, MASKED=False) - log_sum) - (places_B == label).to(tl.float32)
        tl.store(row + places_B, errors_B.to(logits.dtype.element_ty))
    errors_B = tl.exp(_logits(row, bias, tail_B, V, MASKED=True) - log_sum) - (tail_B == label).to(tl.float32)
    tl.store(row + tail_B, errors_B.to(logits.dtype.element_ty), mask=tail_B < V)


def losses_and_errors_(logits_MV: Tensor, bias_V: Tensor, labels_M: Tensor, launcher: Launcher) -> Tensor:
    """The cross-entropy of each row of `logits + bias`, float32 [M]; logits become the errors `softmax - onehot`, in place.

    Args:
        logits_MV: bfloat16, float16 or float32; overwritten. Rows may be further apart than V: where their distance is a
            multiple of 16, loads and stores are wide (V = 50,265 alone is odd).
        bias_V: of any of these types; added in float32.
        labels_M: int64 in 0 .. V-1; the loss of any other is NaN.
        launcher: of the device.

    Raises:
        ValueError: the logits of a row are not beside each other.
    """
    rows, vocabulary = logits_MV.shape
    if vocabulary > 1 and logits_MV.stride(1) != 1:
        raise ValueError(f"logits have strides {logits_MV.stride()}; the last must be 1, since they are overwritten in place")
    losses_M = torch.empty(rows, device=logits_MV.device)
    if rows:
        operands = (logits_MV, bias_V.contiguous(), labels_M.contiguous(), losses_M, logits_MV.stride(0), vocabulary)
        launcher(_losses_and_errors, (rows,), *operands, launch=CROSS_ENTROPY, STEP=CROSS_ENTROPY.columns)
    return losses_M
