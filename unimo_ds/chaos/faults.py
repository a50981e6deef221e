"""The faults of a campaign: each waits for its moment in a run that trains, and strikes."""

import json
import random
import re
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial
from pathlib import Path

from unimo_ds.chaos.disk import SmallDisk
from unimo_ds.chaos.lives import Life
from unimo_ds.engine.checkpoint_folder import all_checkpoints, damage_of
from unimo_ds.errors import UnimoError

_PATIENCE = 120.0  # seconds for what a healthy run does in a few
OUTLIVED = 60.0  # seconds that ranks may outlive what was killed
_LESS_THAN_A_CHECKPOINT = 1 << 18  # bytes
_TAIL = 4096  # bytes of the metrics that hold the last line


class Kind(Enum):
    """What happens to the run."""

    ONE_RANK = "-9 of one rank"
    ALL = "-9 of all"
    LAUNCHER = "-9 of the launcher"
    TERM = "TERM"
    IN_SAVE = "-9 during a save"
    IN_LOAD = "-9 while loading"
    FULL = "disk full"
    FULL_AT_START = "disk full at the start"
    CUT = "a file of the newest checkpoint is cut"
    FLIPPED = "a bit of the newest checkpoint is flipped"


NEEDS_DISK = (Kind.FULL, Kind.FULL_AT_START)
_NEEDS_CHECKPOINTS = {Kind.IN_LOAD: 1, Kind.CUT: 2, Kind.FLIPPED: 2}


class UnexpectedError(UnimoError):
    """The run does not do what it should."""


@dataclass
class Strike:
    """What was done to a run, and what it must say of it.

    Attributes:
        when: the moment, in words.
        step: the last step that was in the log.
        ended: whether the run ends by it.
        expected: what one of the lines must match that are printed from then on; None: nobody is left to say anything.
        resumes_at: the step that the run must go on from.
        said: the line that does.
        seconds: until the run had recovered, where it did not end.
        ranks: the processes that were struck.
        problems: what was wrong already.
    """

    when: str
    step: int
    ended: bool = True
    expected: str | None = None
    resumes_at: int | None = None
    said: str = ""
    seconds: float = 0.0
    ranks: frozenset[int] = frozenset()
    problems: list[str] = field(default_factory=list)


class Striker:
    """Strikes the run in a folder.

    Args:
        run: the folder.
        rng: chooses moments and victims.
        disk: that the run is on, if it can be filled.
        start: starts the run once more.
        ended: is told when the run has ended, and nothing was started yet.
    """

    def __init__(
        self,
        run: Path,
        rng: random.Random,
        disk: SmallDisk | None,
        start: Callable[[], Life],
        ended: Callable[[Life], None],
    ) -> None:
        self._run, self._rng, self._disk, self._start, self._ended = run, rng, disk, start, ended

    def strike(self, kind: Kind, life: Life, after: int) -> Strike:
        """Waits until the run has done `after` steps, and lets `kind` happen.

        Raises:
            UnexpectedError: the run has ended before, or does nothing.
        """
        ranks = frozenset(life.ranks().values())
        return replace(self._strike(kind, life, after), ranks=ranks)

    def _strike(self, kind: Kind, life: Life, after: int) -> Strike:
        await_step(self._run, life, after)
        while len(whole_checkpoints(self._run)) < _NEEDS_CHECKPOINTS.get(kind, 0):
            await_step(self._run, life, last_step(self._run) + 1)
        if kind in (Kind.IN_LOAD, Kind.FULL_AT_START, Kind.CUT, Kind.FLIPPED):
            return self._strike_a_start(kind, life)
        if kind is Kind.FULL:
            return self._fill(life)
        ranks, before = life.ranks(), self._half_saved()
        if kind is Kind.IN_SAVE:
            self._await_save(life, before)
            time.sleep(self._rng.random() * 0.05)
        else:
            time.sleep(self._rng.random() * 0.15)
        if kind is Kind.TERM:
            life.signal(signal.SIGTERM)
            return Strike("in a step", last_step(self._run), expected=r"asked to stop \(.*saving")
        if kind is Kind.LAUNCHER:
            life.kill([life.launcher()])
            return Strike("in a step", last_step(self._run), expected=r"asked to stop \(its launcher has ended\).*saving")
        if kind is Kind.ALL or (kind is Kind.IN_SAVE and self._rng.random() < 0.5):
            life.kill()
            return Strike(f"{self._moment(before)}, all", last_step(self._run))
        victim = self._rng.choice(sorted(ranks))
        life.kill([ranks[victim]])
        alone = len(ranks) == 1 and life.setting.launcher in ("python", "srun") and not life.setting.supervised
        expected = None if alone else _names(victim, ranks[victim])
        return Strike(f"{self._moment(before)}, rank {victim}", last_step(self._run), expected=expected)

    def _damaged(self) -> set[Path]:
        return set(all_checkpoints(self._run / "checkpoints")).difference(whole_checkpoints(self._run))

    def _half_saved(self) -> set[tuple[str, int]]:
        """The hidden folders of saves that go on, or were killed."""
        found = set()
        for path in self._run.glob("checkpoints/.saving-*"):
            with suppress(FileNotFoundError):  # it has just become a checkpoint
                found.add((path.name, path.stat().st_ino))
        return found

    def _moment(self, before: set[tuple[str, int]]) -> str:
        """Whether a kill came in the middle of a save: by what it has left."""
        return "in a save" if self._half_saved() - before else "in a step"

    def _await_save(self, life: Life, before: set[tuple[str, int]]) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not self._half_saved() - before:
            if time.monotonic() > deadline:
                raise UnexpectedError(f"no save within {_PATIENCE:.0f} s: {last_line(life)}")
            time.sleep(0.001)

    def _strike_a_start(self, kind: Kind, life: Life) -> Strike:
        """What happens while nothing runs, or to a start."""
        life.kill()
        self._ended(life)
        step = last_step(self._run)
        if kind is Kind.IN_LOAD:
            again = self._start()
            moment = self._await_load(again)
            ranks = again.ranks()
            if again.setting.world == 1 or self._rng.random() < 0.5:
                again.kill()
                return Strike(f"{moment}, all", step)
            victim = self._rng.choice(sorted(ranks))
            again.kill([ranks[victim]])
            strike = Strike(f"{moment}, rank {victim}", step)
            if not again.wait(OUTLIVED):
                strike.problems.append(f"ranks outlive one that was killed while loading by {OUTLIVED:.0f} s")
                again.kill()
            strike.said = find_line(again.output(), _names(victim, ranks[victim])) or ""
            if not strike.said:
                strike.problems.append(f"nobody says that rank {victim} was killed: {last_line(again)}")
            return strike
        if kind is Kind.FULL_AT_START:
            return self._start_on_full_disk(step)
        newest, *older = whole_checkpoints(self._run)
        files = json.loads((newest / "MANIFEST.json").read_text(encoding="utf-8"))["files"]
        name = self._rng.choice(sorted(files))
        content = bytearray((newest / name).read_bytes())
        place = self._rng.randrange(len(content))
        if kind is Kind.CUT:
            del content[place:]
        else:
            content[place] ^= 1 << self._rng.randrange(8)
        (newest / name).write_bytes(content)
        return Strike(
            f"{newest.name}/{name}, byte {place:,}",
            step,
            expected=rf"WARNING: checkpoint passed over: .*{newest.name}: {re.escape(name)} ",
            resumes_at=step_of(older[0]),
        )

    def _await_load(self, life: Life) -> str:
        """Waits until a rank has a file of a checkpoint open, or mapped."""
        deadline, ranks, mark = time.monotonic() + _PATIENCE, dict[int, int](), str(self._run / "checkpoints/step-")
        while time.monotonic() < deadline and (len(ranks) < life.setting.world or life.processes()):
            if len(ranks) < life.setting.world:
                ranks = life.ranks()
            if any(_uses(pid, mark) for pid in ranks.values()):
                time.sleep(self._rng.random() * 0.02)
                return "reading a checkpoint"
            time.sleep(0.002)
        raise UnexpectedError(f"no checkpoint is read: {last_line(life)}")

    def _start_on_full_disk(self, step: int) -> Strike:
        assert self._disk is not None
        self._disk.fill(left=0)
        again = self._start()
        ended = again.wait(_PATIENCE)
        self._disk.free()
        strike = Strike("at a start", step)
        strike.said = find_line(again.output(), r"No space left on device.*free some space") or ""
        if not ended or not any(again.exit_codes()):
            strike.problems.append("a start on a full disk did not fail")
            again.kill()
        if not strike.said:
            strike.problems.append(f"it does not say why: {last_line(again)}")
        return strike

    def _fill(self, life: Life) -> Strike:
        """The disk is full over one save, at least; then there is space again."""
        assert self._disk is not None
        offset, step = life.log.stat().st_size, last_step(self._run)
        before = self._damaged()
        left = self._rng.choice([0, 0, self._rng.randrange(_LESS_THAN_A_CHECKPOINT)])
        strike = Strike("over a save", step, ended=False)
        # Again and again: a save that was going on removes the oldest checkpoint, and makes room for the next.
        strike.said = _await_line(life, offset, r"CHECKPOINT NOT SAVED at step", partial(self._disk.fill, left))
        _await_line(life, offset + life.output(offset).encode().index(strike.said.encode()), r"\] step \d+/")
        strike.problems += [f"{path.name} was damaged by the full disk" for path in sorted(self._damaged() - before)]
        offset, freed = life.log.stat().st_size, time.monotonic()
        self._disk.free()
        _await_line(life, offset, r"\] saved ")
        strike.seconds = time.monotonic() - freed
        return strike


def await_step(run: Path, life: Life, step: int) -> None:
    """Waits until the log of a run has `step`.

    Raises:
        UnexpectedError: the run has ended before, or does nothing.
    """
    deadline = time.monotonic() + _PATIENCE
    while last_step(run) < step:
        if time.monotonic() > deadline or not life.processes():
            raise UnexpectedError(f"it does not come to step {step}: {last_line(life)}")
        time.sleep(0.02)


def last_step(run: Path) -> int:
    """The last step in the log of a run; 0 where there is none."""
    try:
        with (run / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _TAIL))
            lines = file.read().decode(errors="replace").splitlines(keepends=True)
    except OSError:
        return 0
    return max(
        (int(found[1]) for line in lines if line.endswith("}\n") and (found := re.search(r'"step": (\d+)', line))), default=0
    )


def whole_checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run that are whole, newest first."""
    return [path for path in all_checkpoints(run / "checkpoints") if damage_of(path) is None]


def newest_step(run: Path) -> int:
    """The step that a run must go on from."""
    return next((step_of(path) for path in whole_checkpoints(run)), 0)


def find_line(output: str, pattern: str) -> str | None:
    """The first line of an output that matches."""
    return next((line.strip() for line in output.splitlines() if re.search(pattern, line)), None)


def step_of(checkpoint: Path) -> int:
    """After how many steps a checkpoint was saved."""
    return int(checkpoint.name.removeprefix("step-"))


def last_line(life: Life) -> str:
    """What a start of the run has printed last."""
    lines = life.output().strip().splitlines()
    return lines[-1] if lines else "it printed nothing"


def _names(rank: int, pid: int) -> str:
    """A pattern of the lines that name a killed rank: the ranks' own, torchrun's, deepspeed's, the supervisor's."""
    return rf"^error: .*\brank {rank} (\(|on node)|exitcode *: -9 \(pid: {pid}\)|return code = -9|exit code -9"


def _await_line(life: Life, offset: int, pattern: str, meanwhile: Callable[[], None] = lambda: None) -> str:
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline and life.processes():
        meanwhile()
        if (found := find_line(life.output(offset), pattern)) is not None:
            return found
        time.sleep(0.05)
    raise UnexpectedError(f"no line {pattern!r}: {last_line(life)}")


def _uses(pid: int, mark: str) -> bool:
    """Whether a process has a file open, or mapped, whose path begins so."""
    try:
        if mark in Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace"):
            return True
        return any(str(link.readlink()).startswith(mark) for link in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False
