"""One place where Triton kernels are started, so that what is tested, compiled ahead of time and run is the same host code."""

from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch

from unimo_ds.kernels.table import Launch, architecture_for


@dataclass(frozen=True)
class Launcher:
    """Starts kernels with the table's rows of one architecture.

    On CUDA tensors the kernel runs on the GPU; on CPU tensors in Triton's interpreter, where TRITON_INTERPRET=1 was set before
    triton was imported.
    """

    architecture: int
    device: torch.device | None = None  # None: what is current, or a CPU

    def __call__(self, kernel: Any, grid: tuple[int, ...], *args: Any, launch: Launch, **constants: Any) -> None:
        """Starts `kernel` on `grid` programs; `launch` gives the warps and stages, `constants` the rest it is compiled for."""
        # Triton launches on the current device, whichever the tensors are on.
        with torch.cuda.device(self.device) if self.device is not None else nullcontext():
            kernel[grid](*args, **constants, num_warps=launch.warps, num_stages=launch.stages)


@lru_cache
def launcher_for(device: torch.device) -> Launcher:
    """The launcher of a CUDA device."""
    return Launcher(architecture_for(torch.cuda.get_device_capability(device)), device)


@dataclass(frozen=True)
class Noted:
    """A launch that was noted instead of made."""

    kernel: Any
    args: tuple[Any, ...]
    constants: dict[str, Any]
    launch: Launch


@dataclass(frozen=True)
class Recorder(Launcher):
    """Starts nothing and notes what would be started. Meta tensors are enough."""

    noted: list[Noted] = field(default_factory=list)

    def __call__(self, kernel: Any, grid: tuple[int, ...], *args: Any, launch: Launch, **constants: Any) -> None:
        self.noted.append(Noted(kernel, args, constants, launch))
