"""ZeRO-3's float32 weights and Adam's moments by parameter, wherever they live: on the device, in host memory, on NVMe.

DeepSpeed's own way to one parameter on NVMe reads, and writes, the whole sub-group that it is part of. Here a sub-group stays
in memory for the parameters of it that follow each other, so a checkpoint costs about one reading of what it holds.
"""

from typing import Any

from torch import Tensor, nn

from unimo_ds import distributed


class PartitionedState:
    """What a DeepSpeedZeroOptimizer_Stage3 updates. Every rank must read and write the same parameters in the same order.

    Args:
        optimizer: DeepSpeed's wrapper.
    """

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        self._here: int | None = None  # the sub-group that was read from NVMe
        self._changed = False

    def bring(self, group: int, change: bool = False) -> None:
        """Has this rank's part of a sub-group, weights and moments, in memory: until another is wanted, or `let_go`.

        Args:
            group: of `fp32_partitioned_groups_flat`.
            change: whether they will be written to.
        """
        if group != self._here and self._optimizer._swappable_optimizer_subgroup(group):
            self.let_go()
            self._optimizer._optimizer_states_and_gradient_swap_in(group)
            self._here = group
        self._changed |= change

    def let_go(self) -> None:
        """Frees the memory of what was read from NVMe; what was changed is written there."""
        if self._here is not None and self._changed:
            self._optimizer._optimizer_states_and_gradient_swap_out(self._here)
        elif self._here is not None:
            self._optimizer._release_swap_buffers(self._here)
        self._here, self._changed = None, False

    def read(self, parameter: nn.Parameter, moment: str | None) -> Tensor:
        """A full tensor, of all ranks' parts: the weight, or one of its moments."""
        part = self._part(parameter, moment, change=False).to(distributed.device())
        full: Tensor = self._optimizer._fp32_state_allgather(parameter, part)
        return full

    def write(self, parameter: nn.Parameter, value: Tensor, moment: str | None) -> None:
        """Sets this rank's part from a full tensor, padded as ZeRO-3 pads (its own setter fails where parts are padded)."""
        part = self._part(parameter, moment, change=True)
        size = part.numel()
        padded = nn.functional.pad(value.flatten(), (0, size * distributed.world_size() - value.numel()))
        part.copy_(padded.narrow(0, size * distributed.rank(), size))

    def _part(self, parameter: nn.Parameter, moment: str | None, change: bool) -> Tensor:
        group, begin, size = self._optimizer.grad_position[self._optimizer.get_param_id(parameter)]
        self.bring(group, change)
        flat = self._optimizer.fp32_partitioned_groups_flat[group]
        whole: Tensor = flat if moment is None else self._optimizer.optimizer.state[flat][moment]
        return whole.data.narrow(0, begin, size)
