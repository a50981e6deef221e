"""The loop that pre-training and fine-tuning share: steps, agreement of the ranks, log, checkpoints, and stopping in time."""

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from unimo_ds import distributed
from unimo_ds.config import TrainingSection
from unimo_ds.data.loader import StepData
from unimo_ds.engine.checkpoint import save_checkpoint
from unimo_ds.engine.checkpoint_folder import Extras
from unimo_ds.engine.engine import Engine, Passes, StepResult
from unimo_ds.engine.run_log import RunLog, SampleLog, forget_after
from unimo_ds.engine.signals import StopRequest
from unimo_ds.errors import UnimoError
from unimo_ds.processes import without_local_rank
from unimo_ds.progress import format_duration


class StepTotals(Protocol):
    """Counts of a step over all ranks and micro-batches: what its losses are divided by."""

    @property
    def positions(self) -> float:
        """Positions of all streams."""


@dataclass
class Interval:
    """What has been summed up since the last line of the log."""

    start: float
    measured: Tensor | None = None
    steps: int = 0
    positions: float = 0.0
    waited: float = 0.0

    def add(self, measured: Tensor, positions: float, waited: float) -> None:
        """Adds a step."""
        self.measured = measured if self.measured is None else self.measured + measured
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
    """

    def __init__(self, folder: Path, seed: int, training: TrainingSection, engine: Engine, log: RunLog) -> None:
        self._folder, self._seed, self._training, self._engine, self._log = folder, seed, training, engine, log
        self._samples = SampleLog(folder, distributed.rank(), training.log_samples)
        self._started = time.monotonic()
        self._first_step = 0

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
        interval = Interval(time.monotonic())
        checkpoint: Path | None = None
        try:
            waiting = time.monotonic()
            for step_data in self._steps(step):
                waited = time.monotonic() - waiting
                totals, stopping = self._agree(step_data, stop)
                if stopping:
                    return self._stop(step, stop)
                result = self._step(step_data, totals)
                step = step_data.step + 1
                interval.add(result.measured, totals.positions, waited)
                if step % self._training.log_every == 0 or step == self._training.steps:
                    self._report(step, interval, result)
                    interval = Interval(time.monotonic())
                if step % self._training.checkpoint_every == 0 or step == self._training.steps:
                    checkpoint = self._save(step)
                if self._evaluation_due(step):  # after the save: whatever it meets, the training is kept
                    self._evaluate(step)
                    interval.start = time.monotonic()
                waiting = time.monotonic()
        finally:
            stop.restore()
        if distributed.rank() == 0 and checkpoint is not None:
            # An exit code alone is not trusted: teardown of the process group can abort after the work is done.
            (self._folder / "DONE").write_text(f"{step}\n", encoding="utf-8")
        self._log.say(f"done: {self._folder}")
        return checkpoint

    def _agree(self, step_data: StepData[Any], stop: StopRequest) -> tuple[StepTotals, bool]:
        """Sums the counts of all ranks, and learns whether any rank was asked to stop, in one message."""
        late = self._training.stop_after_minutes
        wants = stop.received is not None or (late is not None and time.monotonic() - self._started > 60 * late)
        counts = torch.stack([batch.counts().tensor() for batch in step_data.batches]).sum(0)
        message = torch.cat([counts, torch.tensor([int(wants)])]).to(distributed.device())
        *totals, wanting = distributed.sum_over_ranks(message).tolist()
        for problem in step_data.problems:
            print(f"WARNING: step {step_data.step + 1}: {problem}", file=sys.stderr, flush=True)
        return self._totals([float(total) for total in totals]), wanting > 0

    def _step(self, step_data: StepData[Any], totals: StepTotals) -> StepResult:
        # Dropout is a function of (seed, step, rank), so that a resumed run repeats it without stored generator states.
        torch.manual_seed(hash((self._seed, step_data.step, distributed.rank())) & 0x7FFFFFFF)
        batches = [batch.to(distributed.device()) for batch in step_data.batches]
        result = self._engine.step(step_data.step, self._passes(batches), totals)
        self._samples.write(step_data.step + 1, [(draw.corpus, draw.number, draw.index) for draw in step_data.draws])
        return result

    def _left(self, step: int) -> str:
        """How long the rest will take, in words."""
        done = step - self._first_step
        return format_duration((time.monotonic() - self._started) / done * (self._training.steps - step))

    def _save(self, step: int) -> Path | None:
        started = time.monotonic()
        checkpoints, keep = self._folder / "checkpoints", self._training.keep_checkpoints
        saved = save_checkpoint(self._engine, checkpoints, step, self._extras(step), keep)
        if saved is not None:
            self._log.say(f"saved {saved} in {time.monotonic() - started:.1f} s")
        return saved

    def _stop(self, step: int, stop: StopRequest) -> Path | None:
        """Saves and leaves; a file tells the batch script that the job wants to be started again."""
        reason = stop.received or "another rank's request, or training.stop_after_minutes"
        self._log.say(f"asked to stop ({reason}) after step {step}: saving")
        saved = self._save(step) if step > self._first_step else None
        if distributed.rank() == 0:
            (self._folder / "REQUEUE").write_text(f"{step}\n", encoding="utf-8")
        return saved


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
            print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    return 0
