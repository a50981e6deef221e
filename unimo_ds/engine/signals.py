"""Signals that ask a run to save and end: USR1 (Slurm, ahead of a time limit), TERM (preemption, scancel), INT (a person)."""

import signal
import time
from types import FrameType

_SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Remembers that this process was asked to stop; the ranks agree on it at a step boundary.

    A second INT ends the process at once, for a person who will not wait; one that follows within a second does not count,
    because a launcher hands on the interrupt that its ranks have already had from the terminal.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._interrupted = float("inf")  # when the first INT came
        self._previous = {number: signal.signal(number, self._handle) for number in _SIGNALS}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if time.monotonic() - self._interrupted > 1:
                raise KeyboardInterrupt
            self._interrupted = min(self._interrupted, time.monotonic())
        self.received = signal.Signals(number).name

    def restore(self) -> None:
        """Puts the previous handlers back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
