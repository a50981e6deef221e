"""An optimizer on NVMe: its folder has one run at a time, and gradients are read where a disk can put them.

DeepSpeed 0.19 reads each gradient from its file straight to its place in the sub-group. Reading past the page cache (O_DIRECT)
needs a place in memory that is a multiple of a disk's block, 128 numbers; where it is not, nothing is read, nothing is said,
and Adam takes what the memory held before.
"""

from pathlib import Path
from types import MethodType
from typing import IO, Any

import torch
from torch import Tensor

from unimo_ds import distributed
from unimo_ds.errors import ConfigError
from unimo_ds.locks import try_lock
from unimo_ds.progress import say


def occupy(folder: Path) -> IO[str]:
    """Keeps other runs out of this rank's part of the folder, until what is returned is closed or the process ends.

    Files of runs that have ended are overwritten.

    Raises:
        ConfigError: another run is there, or the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / f"rank-{distributed.rank():04}.lock").open("w", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"training.offload_folder = {folder}: cannot be written to ({error.strerror})") from error
    try:
        alone = try_lock(file)
    except OSError as error:
        say(f"NOTE: {file.name} cannot be locked ({error.strerror}): see to it that no other run offloads there")
        return file
    if not alone:
        file.close()
        raise ConfigError(f"training.offload_folder = {folder}: another run is there; give each run a folder of its own")
    return file


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
