"""Progress of anything that takes longer than a few seconds: count, rate and time left.

On a terminal one line is rewritten; in a log file (Slurm, CI) a plain line appears every few seconds.
"""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import TypeVar

T = TypeVar("T")


def say(text: str, error: bool = False) -> None:
    """Prints a line for the reader of the job's log. A log that cannot be written (full disk, closed pipe) ends no job.

    Args:
        text: the line.
        error: whether it belongs to the errors.
    """
    with suppress(OSError):
        print(text, file=sys.stderr if error else sys.stdout, flush=True)


def format_duration(seconds: float) -> str:
    """`75` -> `1:15`, `3725` -> `1:02:05`."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Progress:
    """Counts `total` items of `unit` and prints `what: done/total, rate, ETA`.

    Args:
        what: what is being done, for the reader of the log.
        total: number of items, or None where it is not known beforehand.
        unit: the plural noun of the rate (`images`, `steps`).
        enabled: False on all ranks but one.
    """

    def __init__(self, what: str, total: int | None, unit: str = "items", enabled: bool = True) -> None:
        self.what, self.total, self.unit, self.enabled = what, total, unit, enabled
        self.done = 0
        self._terminal = sys.stderr.isatty()
        self._interval = 0.2 if self._terminal else 5.0
        self._start = self._last = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self._print(final=True)
        elif self.enabled and self._terminal:
            sys.stderr.write("\n")

    def advance(self, count: int = 1, note: str = "") -> None:
        """Adds `count` finished items; `note` is shown behind the numbers."""
        self.done += count
        now = time.monotonic()
        if now - self._last >= self._interval:
            self._last = now
            self._print(note=note)

    def line(self, note: str = "") -> str:
        """The text of the progress line as of now."""
        elapsed = max(time.monotonic() - self._start, 1e-9)
        rate = self.done / elapsed
        count = f"{self.done:,}" if self.total is None else f"{self.done:,}/{self.total:,}"
        speed = f"{rate:,.1f} {self.unit}/s" if rate > 0.1 else f"{60 * rate:,.1f} {self.unit}/min"
        text = f"{self.what}: {count} {self.unit}, {speed}, {format_duration(elapsed)} so far"
        if self.total is not None and 0 < self.done < self.total:
            text += f", {format_duration((self.total - self.done) / rate)} left"
        return f"{text}{' | ' + note if note else ''}"

    def _print(self, note: str = "", final: bool = False) -> None:
        if not self.enabled:
            return
        if self._terminal:
            sys.stderr.write("\r\033[K" + self.line(note) + ("\n" if final else ""))
        else:
            sys.stderr.write(self.line(note) + "\n")
        sys.stderr.flush()


def track(items: Iterable[T], what: str, total: int | None = None, unit: str = "items", enabled: bool = True) -> Iterator[T]:
    """Yields `items`, reporting progress."""
    with Progress(what, total, unit, enabled) as progress:
        for item in items:
            yield item
            progress.advance()
