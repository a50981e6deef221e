"""Who is missing when ranks wait in vain: each rank says where it stands, and looks at the others when it waits.

    ranks/rank-0001.json     where the rank stands, written again by a thread every few seconds: a sign of life
    ranks/rank-0001.stacks   what its threads were doing when it gave up
    ranks/failure.txt        the cause, in one line, by the first rank that gave up

The files are in the run folder, which all ranks share, and not in the store of the process group, which ends with rank 0. They
are compared with themselves a while later, never with a clock of another machine.
"""

import faulthandler
import json
import os
import platform
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch.distributed as dist

from unimo_ds import distributed
from unimo_ds.config import TimeoutsSection
from unimo_ds.processes import has_ended
from unimo_ds.progress import say

Phase = Literal["start_up", "prepare", "first_step", "step", "save", "evaluation"]

_LONGEST_BEAT = 5.0  # seconds between signs of life
_LOOKS = 5  # a rank whose file has not changed at so many looks in a row is silent: its process has stopped, or is gone
_HONEST = 10.0  # a step may take so many times what the longest one took
_LISTED = 8  # ranks in one line, at most
_COLLECTIVES = ("/torch/distributed/", "/deepspeed/comm/")


class Watch:
    """Watches over the ranks of a run from its start to its end; does nothing where there is one rank.

    Where a phase takes longer than it may, or a connection breaks, the process ends with exit code 1, and one rank prints which
    rank is missing or slow.

    Args:
        folder: of the run.
        timeouts: the run's section.
    """

    def __init__(self, folder: Path, timeouts: TimeoutsSection) -> None:
        self._here = distributed.environment()
        self._timeouts = timeouts
        self._folder = folder / "ranks"
        self._main = threading.get_ident()
        self._stand: tuple[Phase, int, float] = ("start_up", 0, time.monotonic())
        self._longest_step = 0.0
        self._beat = min(_LONGEST_BEAT, timeouts.shortest / (2 * _LOOKS))
        self._seen: dict[int, Any] = {}  # the others' files at the last look
        self._unchanged: dict[int, int] = {}  # at how many looks in a row each was the same
        self._beats = 0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Watch":
        if self._here.world_size > 1:
            self._folder.mkdir(parents=True, exist_ok=True)
            for name in ("failure.txt", f"{self._name}.json", f"{self._name}.stacks", f"{self._name}.traceback"):
                (self._folder / name).unlink(missing_ok=True)
            self._write()  # host and process are known from now on, however soon it ends
            self._thread.start()
        return self

    def enter(self, phase: Phase, step: int = 0) -> None:
        """Says that this rank goes on to `phase`, after `step` steps."""
        before, _, since = self._stand
        now = time.monotonic()
        if before == "step":
            self._longest_step = max(self._longest_step, now - since)
        self._stand = (phase, step, now)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._here.world_size == 1:
            return
        if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error)):
            with suppress(OSError):
                (self._folder / f"{self._name}.traceback").write_text("".join(traceback.format_exception(error)))
            self._give_up(self._broken_connection(str(error).strip().splitlines()[-1]))
        self._closed.set()
        self._thread.join(self._beat)  # its last word would come after ours
        self._write("ended without error" if error is None else f"ended with {type(error).__name__}: {error}")

    @property
    def _name(self) -> str:
        return f"rank-{self._here.rank:04}"

    def _run(self) -> None:
        """The thread: signs of life, and a look at the others where this rank waits too long."""
        while not self._closed.wait(self._beat):
            self._write()
            phase, _, since = self._stand
            waited, limit = time.monotonic() - since, self._limit()
            if waited < self._timeouts.shortest / 2:  # thousands of ranks need not read each other's files all the time
                self._seen = self._unchanged = {}
                continue
            silent = self._look()
            if waited > limit or (silent and phase != "start_up"):
                self._give_up(self._verdict(silent, waited))

    def _look(self) -> list[int]:
        """Looks at the files of all; the ranks that are silent. Counted in looks: a file system that hangs delays these too."""
        now = self._all()
        same = {rank: self._seen.get(rank, now) == stand for rank, stand in now.items()}
        self._unchanged = {rank: self._unchanged.get(rank, 0) + 1 if same[rank] else 0 for rank in now}
        self._seen = now
        return [rank for rank, looks in self._unchanged.items() if looks >= _LOOKS]

    def _limit(self) -> float:
        """Seconds that the phase may take."""
        phase = self._stand[0]
        limit = float(getattr(self._timeouts, phase))
        return max(limit, _HONEST * self._longest_step) if phase == "step" else limit

    def _write(self, ended: str | None = None) -> None:
        """A sign of life; a disk that refuses it is no reason to end."""
        self._beats += 1
        phase, step, since = self._stand
        where, waiting = self._where()
        stand = {
            "beat": f"{os.getpid()}-{self._beats}",
            "host": platform.node(),
            "pid": os.getpid(),
            "phase": phase,
            "step": step,
            "seconds": round(time.monotonic() - since, 1),
            "where": where,
            "waiting": waiting,
            "ended": ended,
        }
        temporary = self._folder / f".{self._name}"
        try:
            temporary.write_text(json.dumps(stand), encoding="utf-8")
            temporary.replace(self._folder / f"{self._name}.json")
        except OSError:
            with suppress(OSError):  # a full disk takes no content; the time of change needs no space
                os.utime(self._folder / f"{self._name}.json")

    def _where(self) -> tuple[str, bool]:
        """The line that the main thread is at, and whether it waits for other ranks there."""
        frame = sys._current_frames().get(self._main)
        if frame is None:
            return "unknown", False
        code = frame.f_code
        where = f"{code.co_name} ({'/'.join(code.co_filename.split('/')[-2:])}:{frame.f_lineno})"
        waiting = False
        while frame is not None and not waiting:
            waiting = any(part in frame.f_code.co_filename for part in _COLLECTIVES)
            frame = frame.f_back
        return where, waiting

    def _all(self) -> dict[int, Any]:
        """Where every rank stands, this one included, by rank; None where a rank has left no word."""
        found: dict[int, Any] = {}
        for rank in range(self._here.world_size):
            path = self._folder / f"rank-{rank:04}.json"
            try:
                found[rank] = {**json.loads(path.read_text(encoding="utf-8")), "written": path.stat().st_mtime_ns}
            except (OSError, ValueError):
                found[rank] = None
        return found

    def _verdict(self, silent: list[int], waited: float) -> str:
        """The rank that the others wait for, and what is known of it."""
        phase, step, _ = self._stand
        now = self._seen
        within = f"within {waited:.0f} s (training.timeouts.{phase} = {getattr(self._timeouts, phase)})"
        if phase == "start_up":
            if silent:
                missing = self._listed(silent, distributed.place_of)
                return f"{len(silent)} of {self._here.world_size} ranks did not join {within}: {missing}"
            meeting = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            return f"all {self._here.world_size} ranks run, but did not meet at {meeting} {within}: check address and firewall"
        busy = [rank for rank, stand in now.items() if rank not in silent and not stand["waiting"]]
        blamed = silent or busy or list(now)
        described = self._listed(blamed, lambda rank: self._described(rank, now[rank]))
        if silent:
            return f"after step {step}, in {phase}, no sign of life for {self._timeouts.shortest} s of {described}"
        what = "does not go on while the others wait" if busy else "does not go on"
        return f"after step {step}, {phase} did not end {within}: {what}: {described}"

    def _broken_connection(self, reason: str) -> str:
        """Who ended, when a connection broke: on this machine seen at once, elsewhere by a sign of life that does not come."""
        before = self._all()
        gone = [rank for rank, stand in before.items() if stand is not None and (stand["ended"] or _is_dead(stand))]
        now = before
        if not gone:
            time.sleep(3 * self._beat)
            now = self._all()
            gone = [rank for rank in now if now[rank] is None or now[rank] == before[rank] or now[rank]["ended"]]
        _, step, _ = self._stand
        if not gone:
            return f"after step {step}, a connection between ranks broke, and all ranks live: {reason}"
        described = self._listed(gone, lambda rank: self._described(rank, now[rank]))
        return f"after step {step}, a rank has ended: {described} (here: {reason})"

    def _described(self, rank: int, stand: Any) -> str:
        if stand is None:
            return distributed.place_of(rank)
        at = f"rank {rank} ({stand['host']}, pid {stand['pid']})"
        if stand["ended"]:
            return f"{at} {stand['ended']}"
        return f"{at}, last seen in {stand['phase']} after step {stand['step']}, at {stand['where']}"

    @staticmethod
    def _listed(ranks: Sequence[int], words: Callable[[int], str]) -> str:
        return "; ".join(map(words, ranks[:_LISTED])) + (f"; and {len(ranks) - _LISTED} more" if len(ranks) > _LISTED else "")

    def _give_up(self, verdict: str) -> None:
        """Leaves word and ends the process: the first rank that does says why, aloud."""
        line = f"{verdict}. Where each rank stood: {self._folder}"
        try:
            with suppress(OSError), (self._folder / f"{self._name}.stacks").open("w", encoding="utf-8") as file:
                faulthandler.dump_traceback(file)
            if self._is_first_to_say(line):
                say(f"error: {line}", error=True)
        finally:
            os._exit(1)

    def _is_first_to_say(self, line: str) -> bool:
        """Writes down the cause, unless another rank has. On a full disk each rank says it aloud."""
        try:
            with (self._folder / "failure.txt").open("x", encoding="utf-8") as file:
                file.write(line + "\n")
        except FileExistsError:
            return False
        except OSError:
            return True
        return True


def _is_dead(stand: Any) -> bool:
    """Whether the process of a rank is known to have ended: it is of this machine, and gone."""
    return stand["host"] == platform.node() and has_ended(stand["pid"])
