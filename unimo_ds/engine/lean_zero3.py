"""DeepSpeed's ZeRO-3 update with fewer passes over the gradients; the numbers are the same.

On the way from a gradient to Adam, ZeRO-3 joins and copies gradients for a reduction that one rank does not need, casts each
parameter's to float64 for its norm, joins all into a new tensor, casts that to float32 and scales it. On a CPU, where fresh
memory is dear, this takes longer than Adam. Here the gradients, kept in float32 (`data_types.grad_accum_dtype` in the DeepSpeed
file), are read where they lie, and Adam's own pass scales them. What is replaced is the optimizer's own methods, in one
instance of it; partitions, hooks, collectives and the order of all these stay DeepSpeed's.
"""

from types import MethodType
from typing import Any

import torch
from torch import Tensor

_BLOCK_ELEMENTS = 1 << 20  # of a norm: float32 sums stay exact enough to be joined in float64


def lighten(optimizer: Any) -> None:
    """Replaces the methods of a DeepSpeedZeroOptimizer_Stage3 whose optimizer is not offloaded."""
    optimizer._get_norm_groups = MethodType(_get_norm_groups, optimizer)
    if optimizer.gradient_accumulation_dtype == torch.float32:
        optimizer._prepare_fp32_grad_for_sub_group = MethodType(_prepare_fp32_grad_for_sub_group, optimizer)
    if isinstance(optimizer.optimizer, torch.optim.AdamW):
        optimizer.unscale_and_clip_grads = MethodType(_leave_clipping_to_adam, optimizer)
    if optimizer.partition_count == 1 and not optimizer.offload_param:
        optimizer._DeepSpeedZeroOptimizer_Stage3__avg_scatter_grads = _gradients_of_the_only_rank


def _flat_gradient(optimizer: Any, group: int) -> Tensor:
    """A sub-group's gradients as they lie, one after the other, in the buffer of all: this rank's partitions, padded."""
    first = optimizer.averaged_gradients[group][0]
    size = optimizer.fp32_partitioned_groups_flat[group].numel()
    flat: Tensor = optimizer.grad_partitions_flat_buffer.narrow(0, first.storage_offset(), size)
    return flat


def _get_norm_groups(optimizer: Any) -> list[Tensor]:
    """The norm of each sub-group over all ranks, -1 where it is not finite, as DeepSpeed has it."""
    from deepspeed import comm

    norms = []
    for group, process_group in enumerate(optimizer.sub_group_process_groups):
        blocks = torch.split(_flat_gradient(optimizer, group), _BLOCK_ELEMENTS)
        block_norms = torch.stack([torch.linalg.vector_norm(block, dtype=torch.float32) for block in blocks])
        squares = block_norms.double().square().sum()
        comm.all_reduce(squares, group=process_group)
        norms.append(torch.where(squares.isfinite(), squares.sqrt(), -1.0))
    return norms


def _prepare_fp32_grad_for_sub_group(optimizer: Any, group: int) -> None:
    optimizer.fp32_partitioned_groups_flat[group].grad = _flat_gradient(optimizer, group)
    optimizer.averaged_gradients[group] = None


def _leave_clipping_to_adam(optimizer: Any, group: int, total_norm: Tensor) -> None:
    """torch's fused AdamW divides gradients by `grad_scale` as it reads them; DeepSpeed would do so in a pass of its own."""
    divisor = total_norm / optimizer.loss_scale
    divisor = (divisor + 1e-6) / optimizer.clip_grad if optimizer.clip_grad > 0 else torch.ones_like(divisor)
    optimizer.optimizer.grad_scale = (divisor.clamp(min=1.0) * optimizer.loss_scale).float()
    optimizer.optimizer.found_inf = torch.zeros_like(optimizer.optimizer.grad_scale)  # a bad norm has ended the step before


def _gradients_of_the_only_rank(parameters: list[Any], communication_dtype: torch.dtype) -> list[Tensor]:
    return [parameter.grad.view(-1) for parameter in parameters]
