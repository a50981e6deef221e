"""Linear layers on the CPU by the library that multiplies fastest there.

torch multiplies float32 matrices on a CPU with MKL, which on AMD's processors leaves AVX-512 aside. oneDNN, which torch carries
for convolutions and bfloat16, multiplies them twice as fast there (docs/performance.md) and as fast as MKL elsewhere; it also
adds the bias inside the product, where torch first copies it into every row of the result. torch reaches it only through
`mkldnn::_linear_pointwise`, which its compiler emits; where that is missing, and on a GPU, torch's own product is used.

Shape suffixes: T rows, I inputs, O outputs.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Without AVX-512 both libraries use the same instructions, and nothing is to be had.
AT_HAND = (
    torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    and torch.backends.cpu.get_cpu_capability() == "AVX512"
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)


def linear(x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor) -> Tensor:
    """`x weight^T + bias`, [T, O].

    Args:
        x_TI: inputs in the weight's dtype; T may be 0.
        weight_OI, bias_O: the layer.
    """
    # Never by the number of rows: ranks with and without rows would hand their gradients to ZeRO in different orders.
    if not AT_HAND or x_TI.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return F.linear(x_TI, weight_OI, bias_O)
    y_TO: Tensor = _Linear.apply(x_TI, weight_OI, bias_O)
    return y_TO


def matrix_product(left: Tensor, right: Tensor) -> Tensor:
    """`left @ right` of two matrices of one dtype, each of them laid out by rows or by columns; it has no derivative."""
    # oneDNN refuses empty operands, and torch takes bfloat16 there by itself.
    if AT_HAND and left.device.type == "cpu" and left.dtype == torch.float32 and left.numel() and right.numel():
        return _onednn(left, right.T, None)
    return left @ right


def _onednn(x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    y_TO: Tensor = torch.ops.mkldnn._linear_pointwise(x_TI, weight_OI, bias_O, "none", [], "")
    return y_TO


class _Linear(torch.autograd.Function):
    """Saves the weight itself, not a view: under ZeRO-3 its values are gone between the passes and are back before this one."""

    @staticmethod
    def forward(ctx: Any, x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor) -> Tensor:
        ctx.save_for_backward(x_TI, weight_OI)
        served = x_TI.numel() > 0 and x_TI.dtype in (torch.float32, torch.bfloat16)
        return _onednn(x_TI, weight_OI, bias_O) if served else torch.addmm(bias_O, x_TI, weight_OI.T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_TI, weight_OI = ctx.saved_tensors
        (d_y_TO,) = gradients
        d_x_TI = matrix_product(d_y_TO, weight_OI) if ctx.needs_input_grad[0] else None
        return d_x_TI, matrix_product(d_y_TO.T, x_TI), d_y_TO.sum(0)
