"""Gradients of an optimizer on NVMe are read where a disk can put them: DeepSpeed's own way loses most of them, silently.

DeepSpeed 0.19 reads each gradient from its file straight to its place in the sub-group. Reading past the page cache (O_DIRECT)
needs a place in memory that is a multiple of a disk's block, 128 numbers; where it is not, nothing is read, nothing is said,
and Adam takes what the memory held before.
"""

from types import MethodType
from typing import Any

import torch
from torch import Tensor


def mend_reading(optimizer: Any) -> None:
    """Replaces the method of a DeepSpeedZeroOptimizer_Stage3's swapper, if it has one."""
    swapper = optimizer.optimizer_swapper
    if swapper is not None:
        swapper._swap_in_pinned_gradients = MethodType(_read_gradients, swapper)


def _read_gradients(swapper: Any, aio_handle: Any, parameter: Tensor, gradient_tensor: Tensor) -> None:
    from deepspeed.runtime.swap_tensor.utils import swap_in_tensors

    gradients = swapper.swap_params_info[swapper.parameter_id(parameter)].swapped_gradients.values()
    longest = max(gradient.length for gradient in gradients)
    page = aio_handle.new_cpu_locked_tensor(longest, torch.empty(0, dtype=gradient_tensor.dtype))
    for gradient in gradients:
        read = page.narrow(0, 0, gradient.length)
        swap_in_tensors(aio_handle, [read], [gradient.path])
        aio_handle.wait()
        gradient_tensor.narrow(0, gradient.offset, gradient.length).copy_(read)
    aio_handle.free_cpu_locked_tensor(page)
