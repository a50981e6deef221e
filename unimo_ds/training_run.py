"""The loop that pre-training and fine-tuning share: steps, agreement of the ranks, log, checkpoints, and stopping in time."""

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from unimo_ds import distributed
from unimo_ds.config import TrainingSection
from unimo_ds.data.loader import StepData
from unimo_ds.engine.background_check import BackgroundCheck
from unimo_ds.engine.checkpoint import resume, save_checkpoint
from unimo_ds.engine.checkpoint_folder import Extras, checkpoint_name, find_checkpoint, read_guards, read_state, read_weights
from unimo_ds.engine.engine import Engine, Passes, StepResult
from unimo_ds.engine.guards import Guards, LeftOut
from unimo_ds.engine.run_log import DAMAGED, LEFT_OUT, ROLLED_BACK, RunLog, SampleLog, forget_after, rolled_back, was_evaluated
from unimo_ds.engine.signals import StopRequest
from unimo_ds.engine.watch import Watch
from unimo_ds.errors import TrainingError, UnimoError
from unimo_ds.files import replace_text
from unimo_ds.processes import without_local_rank
from unimo_ds.progress import format_duration, say


class StepTotals(Protocol):
    """Counts of a step over all ranks and micro-batches: what its losses are divided by."""

    @property
    def positions(self) -> float:
        """Positions of all streams."""


@dataclass
class Interval:
    """What has been summed up since the last line of the log, over the steps that were not left out."""

    start: float
    measured: Tensor | None = None
    last: StepResult | None = None
    steps: int = 0
    positions: float = 0.0
    waited: float = 0.0

    def add(self, result: StepResult, positions: float, waited: float) -> None:
        """Adds a step."""
        self.measured = result.measured if self.measured is None else self.measured + result.measured
        self.last = result
        self.steps += 1
        self.positions += positions
        self.waited += waited

    def sums(self) -> list[float]:
        """What was measured, over all ranks; every rank must call it."""
        assert self.measured is not None
        sums: list[float] = distributed.sum_over_ranks(self.measured).tolist()
        return sums

    def speed(self) -> dict[str, float]:
        """For the log: positions a second, and the share of the time that was spent waiting for data."""
        seconds = time.monotonic() - self.start
        return {"positions_per_second": self.positions / seconds, "data_wait": self.waited / seconds}


class TrainingRun(ABC):
    """One run of the loop.

    Args:
        folder: of the run.
        seed: of dropout.
        training: the run's section.
        engine: holds the module.
        log: of rank 0.
        checkpoint: that the run goes on from.
        watch: is told where the run stands.
    """

    def __init__(
        self,
        folder: Path,
        seed: int,
        training: TrainingSection,
        engine: Engine,
        log: RunLog,
        checkpoint: Path | None,
        watch: Watch,
    ) -> None:
        self._watch = watch
        self._folder, self._seed, self._training, self._engine, self._log = folder, seed, training, engine, log
        self._samples = SampleLog(folder, distributed.rank(), training.log_samples)
        self._guards = Guards(training.guards, {} if checkpoint is None else read_guards(checkpoint))
        self._check = BackgroundCheck(folder / "checkpoints", self._tell_of_damage, enabled=distributed.rank() == 0)
        self._started = time.monotonic()
        self._first_step = 0
        self._checkpoint = checkpoint  # the last; None where the disk has refused it

    @abstractmethod
    def _steps(self, first: int) -> Iterator[StepData[Any]]:
        """This rank's part of the steps from `first` to the last."""

    @abstractmethod
    def _totals(self, counts: list[float]) -> StepTotals:
        """The denominators, from the counts of the batches summed over ranks."""

    def _passes(self, batches: list[Any]) -> Passes:
        """What the engine runs of the micro-batches of a step: each of them once."""
        return batches

    @abstractmethod
    def _report(self, step: int, interval: Interval, result: StepResult) -> None:
        """One line of the log. Every rank calls it."""

    @abstractmethod
    def _evaluation_due(self, step: int) -> bool:
        """Whether the model is to be evaluated after `step` steps."""

    @abstractmethod
    def _evaluate(self, step: int) -> None:
        """Evaluates and logs. Every rank calls it."""

    @abstractmethod
    def _extras(self, step: int) -> Extras:
        """What a checkpoint carries beside tensors."""

    def train(self, step: int) -> Path | None:
        """Trains from `step` to the end, or until asked to stop; returns the last checkpoint."""
        self._first_step = step
        stop = StopRequest()
        undone = distributed.from_rank_0(rolled_back(self._folder) if distributed.rank() == 0 else set())
        try:
            if step > 0 and self._evaluation_due(step) and not self._was_evaluated(step):  # the run was killed before it was
                self._evaluate_after(step)
            interval = Interval(time.monotonic())
            waiting = time.monotonic()
            self._watch.enter("first_step", step)
            for step_data in self._steps(step):
                waited = time.monotonic() - waiting
                totals, stopping = self._agree(step_data, stop)
                if stopping:
                    self._stop(step, stop)
                    return self._checkpoint
                step = step_data.step + 1
                if step not in undone:
                    result = self._step(step_data, totals)
                    left_out = self._guards.judge(step, result)
                    if left_out is None:
                        interval.add(result, totals.positions, waited)
                    elif self._leave_out(step_data, result, left_out):
                        interval = Interval(time.monotonic())
                if (step % self._training.log_every == 0 or step == self._training.steps) and interval.last is not None:
                    self._report(step, interval, interval.last)
                    interval = Interval(time.monotonic())
                if step % self._training.checkpoint_every == 0 or step == self._training.steps:
                    self._save(step)
                if self._evaluation_due(step):  # after the save: whatever it meets, the training is kept
                    self._evaluate_after(step)
                    interval.start = time.monotonic()
                waiting = time.monotonic()
                self._watch.enter("step", step)
        finally:
            stop.restore()
            self._check.rest()
            self._samples.close()
        if self._checkpoint is not None:
            # An exit code alone is not trusted: teardown of the process group can abort after the work is done.
            self._leave_mark("DONE", step)
        self._log.say(f"done: {self._folder}")
        return self._checkpoint

    def _leave_mark(self, name: str, step: int) -> None:
        self._log.attempt(name, lambda: replace_text(self._folder / name, f"{step}\n"))

    def _was_evaluated(self, step: int) -> bool:
        found: bool = distributed.from_rank_0(distributed.rank() == 0 and was_evaluated(self._folder, step))
        return found

    def _evaluate_after(self, step: int) -> None:
        self._watch.enter("evaluation", step)
        self._evaluate(step)

    def _agree(self, step_data: StepData[Any], stop: StopRequest) -> tuple[StepTotals, bool]:
        """Sums the counts of all ranks, and learns whether any rank was asked to stop, in one message."""
        late = self._training.stop_after_minutes
        wants = stop.received is not None or (late is not None and time.monotonic() - self._started > 60 * late)
        counts = torch.stack([batch.counts().tensor() for batch in step_data.batches]).sum(0)
        message = torch.cat([counts, torch.tensor([int(wants)])]).to(distributed.device())
        *totals, wanting = distributed.sum_over_ranks(message).tolist()
        for problem in step_data.problems:
            say(f"WARNING: step {step_data.step + 1}: {problem}", error=True)
        return self._totals([float(total) for total in totals]), wanting > 0

    def _step(self, step_data: StepData[Any], totals: StepTotals) -> StepResult:
        # Dropout is a function of (seed, step, rank), so that a resumed run repeats it without stored generator states.
        torch.manual_seed(hash((self._seed, step_data.step, distributed.rank())) & 0x7FFFFFFF)
        batches = [batch.to(distributed.device()) for batch in step_data.batches]
        result = self._engine.step(step_data.step, self._passes(batches), totals, self._guards.accept)
        self._samples.write(step_data.step + 1, [(draw.corpus, draw.number, draw.index) for draw in step_data.draws])
        return result

    def _leave_out(self, step_data: StepData[Any], result: StepResult, left_out: LeftOut) -> bool:
        """Writes down a step that was left out, and goes back to the last checkpoint if that is wanted; whether it has.

        Raises:
            TrainingError: too many in a row were left out.
        """
        step, guards = step_data.step + 1, self._training.guards
        draws = [(draw.corpus, draw.number, draw.index) for draw in step_data.draws]
        values = {"cause": left_out.cause, "loss": result.loss, "samples": distributed.gather_objects(draws)}
        wanted = left_out.spike and guards.spike == "roll_back"
        if wanted:
            self._watch.enter("prepare", step)  # a checkpoint is read and checked: no step takes as long
        checkpoint = find_checkpoint(self._folder / "checkpoints") if wanted else None
        self._log.say(f"step {step} left out: {left_out.cause}")
        if checkpoint is None:
            self._log.write_event(step, LEFT_OUT, values)
        else:  # the event first: after a kill it says which steps are not to be done again
            state = read_state(checkpoint)
            self._log.write_event(step, ROLLED_BACK, {"to_step": state["step"], **values})
            self._engine.load_weights(read_weights(checkpoint))
            resume(self._engine, checkpoint)
            self._guards.go_back(read_guards(checkpoint))
            self._log.say(f"rolled back to {checkpoint}: steps {state['step'] + 1} to {step} are left out")
        if self._guards.exhausted:
            steps = self._guards.in_a_row
            raise TrainingError(
                f"{self._folder}: steps {steps[0]} to {step} were left out, which training.guards.left_out_in_a_row = "
                f"{guards.left_out_in_a_row} does not allow, the last because {left_out.cause}. Their samples are in "
                f"{self._folder / 'events.jsonl'}; look at a step of pre-training with `unimo-ds explain {self._folder} "
                f"--step {steps[0]}`. If the data is sound, lower training.learning_rate; started again, the run goes on from "
                "its last checkpoint."
            )
        return checkpoint is not None

    def _left(self, step: int) -> str:
        """How long the rest will take, in words."""
        done = step - self._first_step
        return format_duration((time.monotonic() - self._started) / done * (self._training.steps - step))

    def _save(self, step: int) -> None:
        started = time.monotonic()
        self._watch.enter("save", step)
        checkpoints, keep = self._folder / "checkpoints", self._training.keep_checkpoints
        extras = self._extras(step)
        extras = replace(extras, state={**extras.state, "guards": self._guards.state})
        self._check.rest()
        self._checkpoint = save_checkpoint(self._engine, checkpoints, step, extras, keep, self._check.damaged)
        self._check.begin(self._checkpoint)
        if self._checkpoint is not None:
            self._log.say(f"saved {self._checkpoint} in {time.monotonic() - started:.1f} s")

    def _tell_of_damage(self, checkpoint: Path, damage: str) -> None:
        keep = self._training.keep_checkpoints
        self._log.say(f"WARNING: checkpoint damaged: {checkpoint}: {damage}; it does not count among the {keep} that are kept")
        step = int(checkpoint.name.removeprefix("step-"))
        self._log.write_event(step, DAMAGED, {"checkpoint": checkpoint.name, "damage": damage})

    def _stop(self, step: int, stop: StopRequest) -> None:
        """Saves and leaves; a file tells the batch script that the job wants to be started again."""
        reason = stop.received or "another rank's request, or training.stop_after_minutes"
        self._log.say(f"asked to stop ({reason}) after step {step}: saving")
        saved = self._folder / "checkpoints" / checkpoint_name(step)
        if step > self._first_step and self._checkpoint != saved:
            self._save(step)
        self._leave_mark("REQUEUE", step)


def go_on_from(folder: Path, step: int) -> None:
    """Makes a run folder as it was after `step` steps; every rank must call it."""
    if distributed.rank() == 0:
        forget_after(folder, step)
        for mark in ("REQUEUE", "DONE"):
            (folder / mark).unlink(missing_ok=True)
    distributed.barrier()


def start(module: str, run: Callable[[Path, list[str]], object], arguments: list[str] | None) -> int:
    """`CONFIG.yaml [a.b=c ...]`, as every launcher calls a module; returns the exit code."""
    words = without_local_rank(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0].startswith("-"):
        print(f"usage: python -m {module} CONFIG.yaml [key.path=value ...]", file=sys.stderr)
        return 2
    try:
        run(Path(words[0]), words[1:])
    except UnimoError as error:
        if distributed.environment().rank == 0:
            say(f"error: {error}", error=True)
        return 1
    return 0
