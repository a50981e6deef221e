"""Linear layers and products on the CPU, in the type and by the library that are fastest there.

Which these are depends on the processor, and a step takes half as long or less for it (docs/performance.md):

- float32: torch multiplies with MKL, which leaves AVX-512 aside where the processor is not Intel's. oneDNN, which torch carries
  for convolutions and bfloat16, is twice as fast there; on Intel's, MKL is faster. torch reaches oneDNN only through
  `mkldnn::_linear_pointwise`, which its compiler emits; where that is missing, and on a GPU, torch's own product is used.
- float32 where oneDNN is not taken, a few rows and no gradient, as in generation: the weight takes the left side,
  `(weight x^T)^T`. A library copies its right operand into the order that it works in, and so the small one is copied.
- bfloat16: oneDNN, which torch takes too; here it also adds the bias inside the product, where torch first copies it into every
  row of the result. An x86 processor without instructions for bfloat16 imitates them, and a float32 product of the same
  matrices, rounded at the end, takes a quarter of the time; both sum in float32.

Shape suffixes: T rows, I inputs, O outputs.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def _processor() -> str:
    """What Linux says of the first core; nothing elsewhere."""
    try:
        return Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    except OSError:
        return ""


_PROCESSOR = _processor()
# Without AVX-512 both libraries use the same instructions, and nothing is to be had.
ONEDNN = (
    torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    and torch.backends.cpu.get_cpu_capability() == "AVX512"
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
FLOAT32_BY_ONEDNN = ONEDNN and "GenuineIntel" not in _PROCESSOR
BFLOAT16_IMITATED = "avx2" in _PROCESSOR and not any(name in _PROCESSOR for name in ("avx512_bf16", "amx_bf16"))

_FEW_ROWS = 128  # up to which a product is faster with the weight on its left side


def product_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type in which a CPU multiplies tensors of `dtype` fastest: float32 where it would imitate the type."""
    imitated = dtype == torch.float16 or (dtype == torch.bfloat16 and BFLOAT16_IMITATED)
    return torch.float32 if imitated else dtype


def choices() -> dict[str, str]:
    """How a CPU's products are made on this machine, and why, for people."""
    if FLOAT32_BY_ONEDNN:
        float32 = "oneDNN's, for MKL leaves AVX-512 aside on a processor that is not Intel's"
    else:
        float32 = "torch's own"
    if BFLOAT16_IMITATED:
        bfloat16 = "made in float32, for this processor has no instructions for bfloat16; a run in fp32 is as fast"
    else:
        bfloat16 = "oneDNN's, the bias added inside" if ONEDNN else "torch's own"
    return {"float32 products": float32, "bfloat16 products": bfloat16}


def linear(x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor) -> Tensor:
    """`x weight^T + bias`, [T, O]; laid out by rows, or by columns where that is faster.

    Args:
        x_TI: inputs in the weight's dtype, with any number of leading axes; T may be 0.
        weight_OI, bias_O: the layer.
    """
    # With a gradient never by the number of rows: ranks with and without rows would hand theirs to ZeRO in different orders.
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return F.linear(x_TI, weight_OI, bias_O)
    if _few_rows(x_TI, weight_OI):
        work = product_dtype(x_TI.dtype)
        y_OT = torch.addmm(bias_O.to(work)[:, None], weight_OI.to(work), x_TI.T.to(work).contiguous())
        return y_OT.T.to(x_TI.dtype)
    if not _better_than_torch(x_TI, weight_OI):
        return F.linear(x_TI, weight_OI, bias_O)
    y_TO: Tensor = _Linear.apply(x_TI.flatten(0, -2), weight_OI, bias_O)
    return y_TO.view(*x_TI.shape[:-1], weight_OI.shape[0])


def matrix_product(left: Tensor, right: Tensor) -> Tensor:
    """`left @ right` of two matrices of one dtype, each of them laid out by rows or by columns; it has no derivative."""
    if left.device.type != "cpu":
        return left @ right
    work = product_dtype(left.dtype)
    if work != left.dtype:
        return matrix_product(left.to(work), right.to(work)).to(left.dtype)
    # oneDNN refuses empty operands, and torch takes it for bfloat16 by itself.
    if FLOAT32_BY_ONEDNN and left.dtype == torch.float32 and left.numel() and right.numel():
        return _onednn(left, right.T, None)
    return left @ right


def _few_rows(x_TI: Tensor, weight_OI: Tensor) -> bool:
    if x_TI.device.type != "cpu" or x_TI.dim() != 2 or weight_OI.dtype != x_TI.dtype or torch.is_grad_enabled():
        return False
    by_torch = product_dtype(x_TI.dtype) == torch.float32 and not FLOAT32_BY_ONEDNN
    return by_torch and 0 < len(x_TI) <= _FEW_ROWS


def _better_than_torch(x_TI: Tensor, weight_OI: Tensor) -> bool:
    dtype = x_TI.dtype
    if x_TI.device.type != "cpu" or x_TI.dim() < 2 or weight_OI.dtype != dtype:
        return False
    if product_dtype(dtype) != dtype:
        return True
    return (dtype == torch.float32 and FLOAT32_BY_ONEDNN) or (dtype == torch.bfloat16 and ONEDNN)


def _onednn(x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    y_TO: Tensor = torch.ops.mkldnn._linear_pointwise(x_TI, weight_OI, bias_O, "none", [], "")
    return y_TO


class _Linear(torch.autograd.Function):
    """Saves the weight itself, not a view: under ZeRO-3 its values are gone between the passes and are back before this one."""

    @staticmethod
    def forward(ctx: Any, x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor) -> Tensor:
        ctx.save_for_backward(x_TI, weight_OI)
        work = product_dtype(x_TI.dtype)
        operands = x_TI.to(work), weight_OI.to(work), bias_O.to(work)
        by_onednn = x_TI.numel() > 0 and (work == torch.bfloat16 or FLOAT32_BY_ONEDNN)
        return (_onednn(*operands) if by_onednn else F.linear(*operands)).to(x_TI.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_TI, weight_OI = ctx.saved_tensors
        (d_y_TO,) = gradients
        d_x_TI = matrix_product(d_y_TO, weight_OI) if ctx.needs_input_grad[0] else None
        d_weight_OI = matrix_product(d_y_TO.T, x_TI) if ctx.needs_input_grad[1] else None
        return d_x_TI, d_weight_OI, d_y_TO.sum(0) if ctx.needs_input_grad[2] else None
