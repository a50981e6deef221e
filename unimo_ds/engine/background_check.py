"""Reads the checkpoints of a run from the disk again while training goes on: damage is known before they are needed."""

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from unimo_ds.engine.checkpoint_folder import all_checkpoints, damage_of

_BLOCK = 1 << 22
_BYTES_A_SECOND = 100e6  # a share of what disks give: the data of the next steps comes from them too
_LOWEST_PRIORITY = 19


class _StoppedError(Exception):
    """The check was asked to rest."""


class BackgroundCheck:
    """Checks between two saves, in a thread of its own; those that were not looked at for longest come first.

    Args:
        folder: the run's `checkpoints`.
        report: is told once, from that thread, of a checkpoint that is damaged, and what is wrong with it.
        enabled: False on all ranks but 0.
    """

    def __init__(self, folder: Path, report: Callable[[Path, str], None], enabled: bool) -> None:
        self._folder, self._report, self._enabled = folder, report, enabled
        self._looked_at: list[Path] = []  # the last one at the end
        self._resting = threading.Event()
        self._thread: threading.Thread | None = None
        self.damaged: set[Path] = set()

    def begin(self, saved: Path | None) -> None:
        """Goes through what is kept now; `saved` is new."""
        if not self._enabled:
            return
        if saved is not None:
            self.damaged.discard(saved)
            self._looked_at = [path for path in self._looked_at if path != saved]
        self._resting.clear()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def rest(self) -> None:
        """Ends the check, done or not: what it looks at may change from now on."""
        self._resting.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)  # Linux: of this thread alone
        kept = all_checkpoints(self._folder)
        self._looked_at = [path for path in self._looked_at if path in kept]
        for checkpoint in [path for path in kept if path not in self._looked_at] + list(self._looked_at):
            if checkpoint in self.damaged:
                continue
            try:
                damage = damage_of(checkpoint, read=self._read)
            except _StoppedError:
                return
            self._looked_at = [*(path for path in self._looked_at if path != checkpoint), checkpoint]
            if damage is not None:
                self.damaged.add(checkpoint)
                self._report(checkpoint, damage)

    def _read(self, path: Path) -> Iterator[bytes]:
        """What is on the disk: what the memory holds of the file is dropped first, and not kept afterwards."""
        with path.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while block := file.read(_BLOCK):
                yield block
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                if self._resting.wait(len(block) / _BYTES_A_SECOND):
                    raise _StoppedError
