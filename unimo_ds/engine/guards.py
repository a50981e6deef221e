"""Guards of a run: which steps are left out, because their loss or gradient is not finite or their loss stands out.

Every rank judges by itself, and all alike: what is judged, the step's loss and the norm of the joined gradient, is the same
number on all of them, and what it is compared with is part of the checkpoint.
"""

import math
from collections import deque
from dataclasses import dataclass
from statistics import median
from typing import Any

from unimo_ds.config import GuardsSection
from unimo_ds.engine.engine import StepResult

_TO_DEVIATION = 1.4826  # of a median of distances, to the standard deviation of normal numbers


@dataclass(frozen=True)
class LeftOut:
    """Why a step was left out.

    Attributes:
        cause: for the reader.
        spike: whether all its numbers are finite, and its loss stands out.
    """

    cause: str
    spike: bool


class Guards:
    """Judges the steps of a run, one after the other.

    Args:
        section: the run's section.
        state: of the checkpoint that the run goes on from (`state`); empty at the start.
    """

    def __init__(self, section: GuardsSection, state: dict[str, Any]) -> None:
        self._section = section
        self._remember(state)
        self.in_a_row: list[int] = list(state.get("in_a_row", []))  # steps left out since the last that was not

    @property
    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold for the next steps to be judged in the same way: JSON-able."""
        losses = [] if self._section.spike == "none" else list(self._losses)
        return {"updates": self._updates, "losses": losses, "in_a_row": self.in_a_row}

    def accept(self, loss: float) -> bool:
        """Whether a step with this loss may move weights."""
        return math.isfinite(loss) and not self._stands_out(loss)

    def judge(self, step: int, result: StepResult) -> LeftOut | None:
        """Counts a step that was done, or says why it was left out.

        Args:
            step: counted from 1.
            result: of the step, which was given `accept`.
        """
        if result.updated:
            self._updates += 1
            self._losses.append(result.loss)
            self.in_a_row.clear()
            return None
        self.in_a_row.append(step)
        if not math.isfinite(result.loss):
            return LeftOut(f"its loss is {result.loss}", spike=False)
        if not self._stands_out(result.loss):
            return LeftOut(f"its gradient is not finite, though its loss is {result.loss:.4g}", spike=False)
        usual, deviation = self._usual()
        return LeftOut(
            f"its loss {result.loss:.4g} is {(result.loss - usual) / deviation:.0f} deviations above {usual:.4g}, the median "
            f"of {self._section.spike_window} steps before (training.guards)",
            spike=True,
        )

    def go_back(self, state: dict[str, Any]) -> None:
        """Judges as at a checkpoint again, but goes on counting what was left out in a row."""
        self._remember(state)

    def _remember(self, state: dict[str, Any]) -> None:
        self._losses = deque[float](state.get("losses", []), maxlen=self._section.spike_window)
        self._updates = int(state.get("updates", 0))

    @property
    def exhausted(self) -> bool:
        """Whether too many steps in a row were left out."""
        return len(self.in_a_row) >= self._section.left_out_in_a_row

    def _stands_out(self, loss: float) -> bool:
        if self._section.spike == "none" or len(self._losses) < self._section.spike_window:
            return False
        usual, deviation = self._usual()
        return loss > usual + self._section.spike_deviations * deviation

    def _usual(self) -> tuple[float, float]:
        """Median and deviation of the last losses; single ones that are far off move neither."""
        usual = median(self._losses)
        deviation = _TO_DEVIATION * median(abs(loss - usual) for loss in self._losses)
        return usual, max(deviation, 1e-3 * abs(usual), 1e-9)  # where all are alike, a hair is no spike
