"""DeepSpeed's ZeRO-3 update with fewer passes over the gradients; the numbers are the same.

On the way from a gradient to Adam, ZeRO-3 joins and copies gradients for a reduction that one rank does not need, casts each
parameter's to float64 for its norm, joins all into a new tensor, casts that to float32 and scales it. On a CPU, where fresh
memory is dear, this takes longer than Adam. Here the gradients, kept in float32 (`data_types.grad_accum_dtype` in the DeepSpeed
file), are read where they lie, and Adam's own pass scales them. What is replaced is the optimizer's own methods, in one
instance of it; partitions, hooks, collectives and the order of all these stay DeepSpeed's.

One thing differs: Adam's scaled gradient is left where DeepSpeed keeps a parameter's last gradient. It would be seen by a
parameter that has no gradient in a later step, for which DeepSpeed takes the last one again; in this project every parameter
has a gradient in every step (docs/architecture.md).
"""

from collections.abc import Sequence
from types import MethodType
from typing import Any

import torch
from torch import Tensor

_BLOCK_ELEMENTS = 1 << 20  # of a norm: float32 sums stay exact enough to be joined in float64


_READ = (  # of the optimizer's own; a DeepSpeed that lacks one keeps its own update
    "sub_group_process_groups",
    "averaged_gradients",
    "fp32_partitioned_groups_flat",
    "grad_partitions_flat_buffer",
    "gradient_accumulation_dtype",
    "partition_count",
    "offload_param",
    "clip_grad",
    "loss_scale",
)


def lighten(optimizer: Any) -> None:
    """Replaces the methods of a DeepSpeedZeroOptimizer_Stage3 whose optimizer is not offloaded."""
    if not all(hasattr(optimizer, name) for name in _READ):
        return
    optimizer._get_norm_groups = MethodType(_get_norm_groups, optimizer)
    if optimizer.gradient_accumulation_dtype == torch.float32:
        optimizer._prepare_fp32_grad_for_sub_group = MethodType(_prepare_fp32_grad_for_sub_group, optimizer)
    if isinstance(optimizer.optimizer, torch.optim.AdamW):
        optimizer.unscale_and_clip_grads = MethodType(_leave_clipping_to_adam, optimizer)
    if optimizer.partition_count == 1 and not optimizer.offload_param:
        optimizer._DeepSpeedZeroOptimizer_Stage3__avg_scatter_grads = _gradients_of_the_only_rank


def _flat_gradient(optimizer: Any, group: int) -> Tensor | None:
    """A sub-group's gradients as they lie, one after the other, in the buffer of all: this rank's partitions, padded.

    None where one lies elsewhere: DeepSpeed makes zeros for a parameter that was frozen after the start.
    """
    buffer, gradients = optimizer.grad_partitions_flat_buffer, optimizer.averaged_gradients[group]
    place = begin = gradients[0].storage_offset()
    for gradient in gradients:
        if gradient.untyped_storage().data_ptr() != buffer.untyped_storage().data_ptr() or gradient.storage_offset() != place:
            return None
        place += gradient.numel()
    flat: Tensor = buffer.narrow(0, begin - buffer.storage_offset(), optimizer.fp32_partitioned_groups_flat[group].numel())
    return flat


def _get_norm_groups(optimizer: Any) -> list[Tensor]:
    """The norm of each sub-group over all ranks, -1 where it is not finite, as DeepSpeed has it."""
    from deepspeed import comm

    norms = []
    for group, process_group in enumerate(optimizer.sub_group_process_groups):
        flat = _flat_gradient(optimizer, group)
        parts = optimizer.averaged_gradients[group] if flat is None else torch.split(flat, _BLOCK_ELEMENTS)
        squares = _sum_of_squares(parts, torch.float32)
        if not squares.isfinite():  # the square of a large number is no float32
            squares = _sum_of_squares(parts, torch.float64)
        comm.all_reduce(squares, group=process_group)
        norms.append(torch.where(squares.isfinite(), squares.sqrt(), -1.0))
    return norms


def _sum_of_squares(parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    norms = torch.stack([torch.linalg.vector_norm(part, dtype=dtype) for part in parts])
    return norms.double().square().sum()


def _prepare_fp32_grad_for_sub_group(optimizer: Any, group: int) -> None:
    flat = _flat_gradient(optimizer, group)
    if flat is None:
        type(optimizer)._prepare_fp32_grad_for_sub_group(optimizer, group)
        return
    optimizer.fp32_partitioned_groups_flat[group].grad = flat
    optimizer.averaged_gradients[group] = None


def _leave_clipping_to_adam(optimizer: Any, group: int, total_norm: Tensor) -> None:
    """torch's fused AdamW divides gradients by `grad_scale` as it reads them; DeepSpeed would do so in a pass of its own."""
    divisor = total_norm / optimizer.loss_scale
    divisor = (divisor + 1e-6) / optimizer.clip_grad if optimizer.clip_grad > 0 else torch.ones_like(divisor)
    optimizer.optimizer.grad_scale = (divisor.clamp(min=1.0) * optimizer.loss_scale).float()
    optimizer.optimizer.found_inf = torch.zeros_like(optimizer.optimizer.grad_scale)  # a bad norm has ended the step before


def _gradients_of_the_only_rank(parameters: list[Any], communication_dtype: torch.dtype) -> list[Tensor]:
    return [parameter.grad.view(-1) for parameter in parameters]
