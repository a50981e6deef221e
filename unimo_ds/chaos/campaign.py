"""The campaign: a run is struck again and again, goes on each time, and is compared with one that was left alone."""

import json
import platform
import random
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unimo_ds.chaos import inputs
from unimo_ds.chaos.disk import SmallDisk
from unimo_ds.chaos.faults import (
    NEEDS_DISK,
    OUTLIVED,
    Kind,
    Strike,
    Striker,
    UnexpectedError,
    find_line,
    last_line,
    last_step,
    newest_step,
    step_of,
    whole_checkpoints,
)
from unimo_ds.chaos.lives import Life, Setting
from unimo_ds.chaos.verdicts import Computed, Lineage, judge_again, judge_curve, judge_samples, read_samples, read_steps
from unimo_ds.config import load_config
from unimo_ds.data.corpus import prepare_corpora
from unimo_ds.engine.checkpoint_folder import all_checkpoints, damage_of
from unimo_ds.errors import UnimoError
from unimo_ds.processes import is_finished
from unimo_ds.progress import Progress

EVERY, KEPT = 4, 3  # steps between checkpoints, and how many stay
STEPS_A_FAULT = 2 * EVERY  # of the run: more than a fault lets it advance, so that the last one comes before its end
_MEGABYTES = 64
AGAIN = 1e-5  # relative, of a step that is done again where float32 sums are rounded otherwise
CURVE = 1e-3  # of a loss of about 17, after hundreds of such steps: float32 keeps 1e-6 of it, and each step builds on the last
_RECOVERY = 120.0  # seconds until a run that was struck must train again
_RUN = 600.0  # seconds for what is left of a run


@dataclass
class Row:
    """A fault, and what became of the run.

    Attributes:
        number: counted from 1.
        kind: of the fault.
        step: the last in the log when the run had ended.
        when: the moment, in words.
        before, after: how the run was started before and after.
        said: the line that names the cause.
        resumed_at: the step that the run went on from; None: it did not end.
        seconds: until it trained again.
        lost: steps that had to be done again.
        again: how these compare, in words.
        problems: none in a run that does as it should.
        start: which of the starts that have trained was struck.
    """

    number: int
    kind: str
    step: int = 0
    when: str = ""
    before: str = ""
    after: str = ""
    said: str = ""
    resumed_at: int | None = None
    seconds: float = 0.0
    lost: int = 0
    again: str = ""
    problems: list[str] = field(default_factory=list)
    start: int = 0


@dataclass
class Outcome:
    """A campaign's end.

    Attributes:
        rows: one a fault.
        steps: of the run.
        ours, undisturbed: the numbers of each step.
        apart: the largest difference of a loss.
        problems: of the run as a whole.
        seconds: that it took.
    """

    rows: list[Row]
    steps: int
    ours: dict[int, dict[str, float]]
    undisturbed: dict[int, dict[str, float]]
    apart: float
    problems: list[str]
    seconds: float

    @property
    def right(self) -> bool:
        """Whether all went as it should."""
        return not self.problems and not any(row.problems for row in self.rows)


class Campaign:
    """Strikes a run of pre-training.

    Args:
        folder: for everything that the campaign writes; emptied first.
        kills: number of faults.
        minutes: after which no more begin.
        seed: of all that is random.
    """

    def __init__(self, folder: Path, kills: int, minutes: float, seed: int) -> None:
        self._folder, self._rng = folder, random.Random(seed)
        self._began = time.monotonic()
        self._deadline = self._began + 60 * minutes
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._disk, self._not_possible = _small_disk(folder / "disk")
        self._alone, self._run = folder / "undisturbed", folder / "disk/run"
        self._kinds = _kinds(kills, self._rng)
        self._steps = STEPS_A_FAULT * (kills + 2)
        self._lives: list[Life] = []
        self._starts = 0  # of the run that have trained
        self._lineage: Lineage = ()  # of the steps that the present start goes on from
        self._saved: dict[int, Lineage] = {0: ()}  # of each checkpoint
        self._computed: dict[int, list[Computed]] = {}
        self._striker = Striker(self._run, self._rng, self._disk, self._start, self._ended)

    def go(self) -> Outcome:
        """Runs all of it.

        Raises:
            UnimoError: even the run that is left alone does not end, or after a fault no start trains at all.
        """
        inputs.write_inputs(self._folder)
        try:
            self._leave_one_alone()
            rows, life = self._strike_all()
            problems = self._finish(life)
            for row in rows:
                self._compare_again(row)
            ours, undisturbed = read_steps(self._run), read_steps(self._alone)
            apart, wrong = judge_curve(ours, undisturbed, CURVE)
            problems += wrong + self._judge_samples()
        finally:
            for each in self._lives:
                each.kill()
            self._keep_logs()
        if len(rows) < len(self._kinds):
            problems.append(f"time was up after {len(rows)} of {len(self._kinds)} faults")
        seconds = time.monotonic() - self._began
        return Outcome(rows, self._steps, ours, undisturbed, apart, problems, seconds)

    def _leave_one_alone(self) -> None:
        print(f"a run of {self._steps} steps that is left alone ..", flush=True)
        life = self._new_life(Setting("python", 1, 0, 0, False), self._alone)
        if not life.wait(_RUN) or not is_finished(self._alone):
            raise UnimoError(f"the run that is left alone does not end; what it says is in {life.log}")

    def _new_life(self, setting: Setting, run: Path) -> Life:
        content = inputs.run_content(self._folder, run)
        content["model"] |= {"dropout": 0.0, "attention_dropout": 0.0}  # whose masks depend on the number of ranks
        content["training"] |= {"steps": self._steps, "checkpoint_every": EVERY, "keep_checkpoints": KEPT}
        content["training"] |= {"deepspeed": "ds_configs/zero0.json", "timeouts": {"start_up": 60, "step": 30}}
        config = self._folder / f"{run.name}.yaml"
        inputs.write_run(content, config)
        life = Life(setting, config, run, self._folder / f"start-{len(self._lives):03}.log")
        self._lives.append(life)
        return life

    def _start(self, kind: Kind | None = None) -> Life:
        """Starts the run on a random number of ranks and a random stage, so that `kind` can strike it."""
        world = self._rng.choice([1, 1, 2, 2, 2, 3])
        supervised = kind in (Kind.ONE_RANK, Kind.LAUNCHER, Kind.IN_SAVE) and self._rng.random() < 0.6
        launchers = ["torchrun"] if world == 3 else ["torchrun", "torchrun", "deepspeed"]  # which takes longest to start
        if kind is not Kind.LAUNCHER and not supervised:
            launchers += 3 * (["python"] if world == 1 else ["srun"])
        return self._new_life(
            Setting(self._rng.choice(launchers), world, self._rng.randrange(4), self._rng.randrange(2), supervised), self._run
        )

    def _strike_all(self) -> tuple[list[Row], Life]:
        """The rows, and the start of the run that trains at the end."""
        rows: list[Row] = []
        life = self._start(self._kinds[0])
        self._await_training(life, 0)
        with Progress("chaos", len(self._kinds), "faults") as progress:
            for number, kind in enumerate(self._kinds, 1):
                if time.monotonic() > self._deadline:
                    break
                row = Row(number, kind.value, before=str(life.setting), start=self._starts)
                if kind in NEEDS_DISK and self._disk is None:
                    row.when = f"not possible here: {self._not_possible}"
                else:
                    life = self._strike(row, kind, life)
                rows.append(row)
                progress.advance(note=f"step {row.step} of {self._steps}, {row.kind}: {'; '.join(row.problems) or 'right'}")
        return rows, life

    def _strike(self, row: Row, kind: Kind, life: Life) -> Life:
        """Fills in the row of a fault; the start of the run that trains after it."""
        following = self._kinds[row.number] if row.number < len(self._kinds) else None
        try:
            if kind is Kind.LAUNCHER and life.setting.launcher not in ("torchrun", "deepspeed"):
                life.kill()
                self._ended(life)
                starts = len(self._receipts())
                life = self._start(kind)
                self._await_training(life, starts)
                row.before, row.start = str(life.setting), self._starts
            offset, logged = life.log.stat().st_size, last_step(self._run)
            after = min(max(logged, len(self._lineage)) + self._rng.randint(1, STEPS_A_FAULT), self._steps - STEPS_A_FAULT)
            strike = self._striker.strike(kind, life, after)
            row.step, row.when, row.seconds = strike.step, strike.when, strike.seconds
            row.said = self._without_places(strike.said)
            row.problems = strike.problems
            if strike.ended:
                life = self._recover(row, kind, strike, life, offset, following)
        except UnexpectedError as error:
            row.problems.append(str(error))
            for each in self._lives:
                each.kill()
            self._ended(life)
            starts = len(self._receipts())
            life = self._start(following)
            try:
                self._await_training(life, starts)
            except UnexpectedError as again:
                raise UnimoError(f"fault {row.number}, {row.kind}: {error}; and then: {again}") from error
        row.after = str(life.setting)
        return life

    def _recover(self, row: Row, kind: Kind, strike: Strike, life: Life, offset: int, following: Kind | None) -> Life:
        """Sees the struck start end, and the next one train: started by the supervisor, or else by us as a user would."""
        struck = time.monotonic()
        by_itself = self._await_end(life, strike, offset)
        self._ended(life)
        expected = newest_step(self._run) if strike.resumes_at is None else strike.resumes_at
        row.step = max(row.step, last_step(self._run))
        if kind in (Kind.TERM, Kind.LAUNCHER) and expected != row.step:
            row.problems.append(f"it ended after step {row.step} without saving it")
        starts = self._receipts()
        following_life = life if by_itself else self._start(following)
        row.resumed_at = self._await_training(following_life, len(starts))
        row.seconds = time.monotonic() - struck
        row.lost = row.step - row.resumed_at
        if row.resumed_at != expected:
            row.problems.append(f"it went on from step {row.resumed_at}, though step {expected} was saved whole")
        if strike.expected is None:
            row.said = row.said or "(nobody is left)"
        else:
            output = life.output(offset) + ("" if by_itself else following_life.output())
            row.said = self._without_places(find_line(output, strike.expected) or "")
            if not row.said:
                row.problems.append(f"no line matches {strike.expected!r}")
        return following_life

    def _without_places(self, said: str) -> str:
        return said.replace(str(self._run), "RUN").replace(f"({platform.node()}, ", "(HOST, ")

    def _await_end(self, life: Life, strike: Strike, offset: int) -> bool:
        """Whether the supervisor has started the run again, once all ranks that were struck have ended."""
        deadline = time.monotonic() + OUTLIVED
        while True:
            restarted = find_line(life.output(offset), r"^restart \d+ of ") is not None
            living = life.processes()
            if not living or (restarted and not strike.ranks & living.keys()):
                return bool(living)
            if time.monotonic() > deadline:
                raise UnexpectedError(f"processes outlive the fault by {OUTLIVED:.0f} s: {sorted(living)}")
            time.sleep(0.05)

    def _await_training(self, life: Life, starts: int) -> int:
        """The step that a start of the run goes on from, as soon as it has done the next."""
        deadline = time.monotonic() + _RECOVERY
        while len(found := self._receipts()) <= starts or last_step(self._run) <= found[-1]["from_step"]:
            if time.monotonic() > deadline or not life.processes():
                raise UnexpectedError(f"it does not go on: {last_line(life)}")
            time.sleep(0.05)
        step = int(found[-1]["from_step"])
        self._starts += 1
        self._lineage = self._saved[step]
        return step

    def _receipts(self) -> list[dict[str, Any]]:
        path = self._run / "receipt.json"
        return list(json.loads(path.read_text(encoding="utf-8"))["starts"]) if path.exists() else []

    def _ended(self, life: Life) -> None:
        """Remembers what the present start of the run has computed, before the next one forgets what it does again."""
        steps, done = read_steps(self._run), len(self._lineage)
        lineage = self._lineage + (life.setting.numbers,) * (max(steps, default=done) - done)
        for step, numbers in steps.items():
            if step > done and all(each.start != self._starts for each in self._computed.get(step, [])):
                self._computed.setdefault(step, []).append(Computed(self._starts, lineage[:step], numbers))
        self._saved |= {step: lineage[:step] for step in map(step_of, whole_checkpoints(self._run)) if step > done}

    def _finish(self, life: Life) -> list[str]:
        """Lets the run come to its end; what is wrong there."""
        if not life.wait(_RUN) or not is_finished(self._run):
            return [f"after the last fault the run does not end: {last_line(life)}"]
        self._ended(life)
        checkpoints = self._run / "checkpoints"
        problems = [f"{path.name} is left over" for path in checkpoints.glob(".*-step-*")]
        found = all_checkpoints(checkpoints)
        problems += [f"{path.name}: {damage}" for path in found if (damage := damage_of(path)) is not None]
        if [step_of(path) for path in found] != [self._steps - EVERY * number for number in range(KEPT)]:
            problems.append(f"its checkpoints are {', '.join(path.name for path in found)}")
        return problems

    def _compare_again(self, row: Row) -> None:
        """Compares the steps that had to be done again with what they were."""
        if row.resumed_at is None or row.lost == 0:
            return
        twice = {}
        for step in range(row.resumed_at + 1, row.step + 1):
            computed = [each for each in self._computed.get(step, []) if each.start >= row.start]
            if len(computed) > 1:  # else the next fault came before it was done again
                twice[step] = (computed[0], computed[1])
        row.again, wrong = judge_again(twice, AGAIN)
        row.problems += wrong

    def _judge_samples(self) -> list[str]:
        config = load_config(self._folder / "run.yaml", [])
        corpora = prepare_corpora(config.data, config.data.corpora, show=False)
        per_step = [corpus.section.per_step for corpus in corpora]
        return judge_samples(read_samples(self._run), self._steps, per_step, [len(corpus) for corpus in corpora])

    def _keep_logs(self) -> None:
        """Copies what the small disk holds of the run, which ends with this program."""
        if self._run.exists():
            shutil.copytree(self._run, self._folder / "run", ignore=shutil.ignore_patterns("checkpoints", "tensorboard"))


def _kinds(count: int, rng: random.Random) -> list[Kind]:
    """Every kind in turn, each time in another order."""
    kinds: list[Kind] = []
    while len(kinds) < count:
        kinds += rng.sample(list(Kind), len(Kind))
    return kinds[:count]


def _small_disk(folder: Path) -> tuple[SmallDisk | None, str]:
    """The disk, or why there is none."""
    try:
        return SmallDisk(folder, _MEGABYTES), ""
    except UnimoError as error:
        return None, str(error)
