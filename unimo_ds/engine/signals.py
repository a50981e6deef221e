"""What asks a run to save and end: USR1 (Slurm, ahead of a time limit), TERM (preemption, scancel), INT (a person).

And the end of its launcher: ranks that nobody watches over are in the way of those that are started in their place.
"""

import signal
import time
from types import FrameType

from unimo_ds.processes import has_ended, launchers

_SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Remembers that this process was asked to stop; the ranks agree on it at a step boundary.

    A second INT ends the process at once, for a person who will not wait; one that follows within a second does not count,
    because a launcher hands on the interrupt that its ranks have already had from the terminal.
    """

    def __init__(self) -> None:
        self._received: str | None = None
        self._launchers = launchers()
        self._interrupted = float("inf")  # when the first INT came
        self._previous = {number: signal.signal(number, self._handle) for number in _SIGNALS}

    @property
    def received(self) -> str | None:
        """Why this process is to stop, if it is."""
        if self._received is None and any(map(has_ended, self._launchers)):
            self._received = "its launcher has ended"
        return self._received

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            if time.monotonic() - self._interrupted > 1:
                raise KeyboardInterrupt
            self._interrupted = min(self._interrupted, time.monotonic())
        self._received = signal.Signals(number).name

    def restore(self) -> None:
        """Puts the previous handlers back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
