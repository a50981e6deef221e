"""Signals that ask a run to save and end: USR1 (Slurm, ahead of a time limit), TERM (preemption, scancel), INT (a person)."""

import signal
from types import FrameType

_SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Remembers that this process was asked to stop; the ranks agree on it at a step boundary.

    A second INT ends the process at once, for a person who will not wait.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._previous = {number: signal.signal(number, self._handle) for number in _SIGNALS}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received is not None:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name

    def restore(self) -> None:
        """Puts the previous handlers back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
