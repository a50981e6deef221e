"""Pre-training: the loop that joins data, model, objectives and engine.

Started by `unimo-ds pretrain`, by `deepspeed --module unimo_ds.pretrain`, by `torchrun -m unimo_ds.pretrain` or by `srun`.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unimo_ds import distributed, nvidia_apex
from unimo_ds.batch import Counts
from unimo_ds.config import ModelSection, RunConfig, dump_config, load_config
from unimo_ds.data.corpus import Corpus, prepare_corpora
from unimo_ds.data.loader import PretrainingData, StepData, load_steps
from unimo_ds.engine.checkpoint import Extras, find_checkpoint, read_state, read_weights, resume, save_checkpoint
from unimo_ds.engine.engine import Engine, StepResult, check_settings, learning_rate
from unimo_ds.engine.run_log import RunLog, SampleLog, forget_after
from unimo_ds.engine.signals import StopRequest
from unimo_ds.errors import CheckpointError, ConfigError, StoreError, UnimoError
from unimo_ds.evaluate import HeldOut, evaluate_model, open_held_out, write_evaluation
from unimo_ds.model.unimo import Unimo, parameter_groups
from unimo_ds.objectives.meter import readings
from unimo_ds.objectives.pretraining import NAMES, PretrainingModel, Totals, loss_weights
from unimo_ds.progress import format_duration
from unimo_ds.rewrites import LEVELS
from unimo_ds.tokenizer import Tokenizer


def pretrain(config: RunConfig) -> Path | None:
    """Runs, or goes on with, the run that `config` describes. Every rank must call it.

    Returns:
        The last checkpoint; None if the disk refused it.

    Raises:
        UnimoError: the configuration, an input or the run folder is wrong; the message says what to do.
    """
    nvidia_apex.check(config.model.layer_norm, config.training.optimizer)
    check_settings(config.training)
    here = distributed.initialise(config.training.collective_timeout_seconds)
    tokenizer = Tokenizer(config.data.tokenizer)
    corpora = _open_corpora(config)
    config, detector = _fit_to_data(config, tokenizer, corpora)
    held_out = open_held_out(config, tokenizer, show=here.rank == 0)
    if held_out is not None and detector:
        held_out.expect_detector(detector, "the regions that are trained on")
    checkpoint = find_checkpoint(config.folder / "checkpoints")
    step = _check_resumable(config, checkpoint, detector, tokenizer)
    if step >= config.training.steps:
        _say_finished(config, step)
        return checkpoint
    engine = _build_engine(config, checkpoint)
    if checkpoint is not None:
        resume(engine, checkpoint)
    if here.rank == 0:
        forget_after(config.folder, step)
        for mark in ("REQUEUE", "DONE"):
            (config.folder / mark).unlink(missing_ok=True)
    distributed.barrier()
    data = PretrainingData(config, corpora, tokenizer, config.model.feature_width, here.rank, here.world_size)
    log = RunLog(config.folder, enabled=here.rank == 0)
    log.start(dump_config(config), {corpus.name: _manifest(corpus) for corpus in corpora}, here.world_size, step)
    log.say(_opening(config, engine, corpora, step))
    run = _Run(config, engine, data, held_out, log, SampleLog(config.folder, here.rank, config.training.log_samples), detector)
    try:
        return run.train(step)
    finally:
        log.close()


def _manifest(corpus: Corpus) -> dict[str, Any]:
    """What the receipt says of a corpus."""
    candidates = {"rewrites": corpus.rewrites, "neighbours": corpus.neighbours}
    return {**corpus.manifest, **{name: found.manifest for name, found in candidates.items() if found is not None}}


def _say_finished(config: RunConfig, step: int) -> None:
    if distributed.rank() == 0:
        total = config.training.steps
        print(f"{config.folder}: already at step {step} of {total}; raise training.steps, or choose another folder")


def _open_corpora(config: RunConfig) -> list[Corpus]:
    """Rank 0 prepares what is not ready; then all open it."""
    if distributed.rank() == 0:
        prepare_corpora(config.data, config.data.corpora)
    distributed.barrier()
    return prepare_corpora(config.data, config.data.corpora, show=False)


def _fit_to_data(config: RunConfig, tokenizer: Tokenizer, corpora: Sequence[Corpus]) -> tuple[RunConfig, dict[str, Any]]:
    """Takes vocabulary, feature width and classes from the data; what was given must agree with it.

    Raises:
        StoreError: two corpora have regions of different detectors.
        ConfigError: a given value disagrees with the data.
    """
    stores = [corpus.store for corpus in corpora if corpus.store is not None]
    stores += [store for corpus in corpora if corpus.neighbours is not None for store in corpus.neighbours.stores]
    for store in stores[1:]:
        store.expect_detector(stores[0].detector, f"the store {stores[0].folder} of the same run")
    found = {"vocabulary_size": tokenizer.size}
    if stores and config.objectives.mrc > 0 and stores[0].detector.get("kept_classes") == 0:
        raise ConfigError(
            f"objectives.mrc = {config.objectives.mrc}, but {stores[0].folder} has no classes (its published file had none): "
            "set objectives.mrc=0, or extract the regions with a detector"
        )
    if stores:
        found |= {"feature_width": stores[0].feature_width, "region_classes": int(stores[0].detector["classes"]) + 1}
    for key, value in found.items():
        given = getattr(config.model, key)
        if key in config.model.model_fields_set and given != value:
            raise ConfigError(f"model.{key} = {given}, but the data has {value}; leave the key out to take it from the data")
    model = ModelSection.model_validate({**config.model.model_dump(), **found})
    return config.model_copy(update={"model": model}), stores[0].detector if stores else {}


_FREE_TO_CHANGE = ("size", "dropout", "attention_dropout", "initializer_range", "layer_norm")  # no weight depends on them


def _check_resumable(config: RunConfig, checkpoint: Path | None, detector: dict[str, Any], tokenizer: Tokenizer) -> int:
    """The step to go on from.

    Raises:
        StoreError: the checkpoint (or `init`) was trained on another detector's regions.
        CheckpointError: it holds a model of another shape, or was trained with another tokenizer.
    """
    source = checkpoint or config.init
    if source is None:
        return 0
    if not (source / "state.json").exists():
        raise CheckpointError(f"init = {source}: has no state.json: not a checkpoint folder of unimo_ds (step-00000100, say)")
    state = read_state(source)
    theirs, ours = state["model"], config.model.model_dump(mode="json")
    different = [key for key in ours if theirs.get(key) != ours[key] and key not in _FREE_TO_CHANGE]
    if different:
        details = "; ".join(f"model.{key}: {theirs.get(key)} there, {ours[key]} here" for key in different)
        raise CheckpointError(f"{source}: holds another model; {details}")
    if Tokenizer(source / "tokenizer").fingerprint != tokenizer.fingerprint:
        raise CheckpointError(
            f"{source}: was trained with another tokenizer than data.tokenizer = {config.data.tokenizer}: its word vectors "
            f"would stand for other words. Use {source / 'tokenizer'}, or start a new run without this checkpoint."
        )
    if detector and state["detector"] and detector != state["detector"]:
        store = next(corpus.regions for corpus in config.data.corpora if corpus.regions is not None)
        raise StoreError(
            f"{store}: made by another detector than the regions which {source} was trained on. "
            f"Extract the features again with that detector ({state['detector'].get('architecture')}, weights "
            f"{str(state['detector'].get('weights_sha256'))[:12]}), or start a new run without this checkpoint."
        )
    return int(state["step"]) if checkpoint is not None else 0


def _build_engine(config: RunConfig, checkpoint: Path | None) -> Engine:
    def build() -> PretrainingModel:
        torch.manual_seed(config.seed)
        unimo = Unimo(config.model, config.objectives.cmcl.temperature)
        unimo.transformer.activation_checkpointing = config.training.activation_checkpointing
        return PretrainingModel(unimo, config.objectives)

    source = checkpoint or config.init
    weights = read_weights(source) if source is not None else None
    return Engine(build, lambda module: parameter_groups(module, config.training.weight_decay), config.training, weights)


def _opening(config: RunConfig, engine: Engine, corpora: Sequence[Corpus], step: int) -> str:
    parameters = sum(getattr(p, "ds_numel", p.numel()) for p in engine.module.parameters())
    mixture = ", ".join(f"{corpus.section.per_step} of {len(corpus):,} {corpus.name}" for corpus in corpora)
    if config.objectives.joint and any(corpus.section.kind == "pairs" for corpus in corpora):
        mixture += f"; each pair: {_candidates_in_words(config, corpora)}"
    start = f"resumed at step {step}" if step else "new run"
    return (
        f"{config.folder}: {start}, {parameters / 1e6:.1f} M parameters, {distributed.world_size()} ranks, ZeRO stage "
        f"{engine.stage}, {config.training.precision}, {config.training.steps} steps; each step: {mixture}"
    )


def _candidates_in_words(config: RunConfig, corpora: Sequence[Corpus]) -> str:
    """What a pair is compared with, and what is missing of it: a count without a file to draw from draws nothing."""
    wanted = config.objectives.candidates
    counts = [("step_negatives", "captions of the step", None), ("positives", "rewritten positives", "rewrites")]
    counts += [(f"{level}_negatives", f"{level} negatives", "rewrites") for level in LEVELS]
    counts += [("images", "retrieved images", "neighbours"), ("texts", "retrieved texts", "neighbours")]
    pairs = [corpus.section for corpus in corpora if corpus.section.kind == "pairs"]
    drawn, missing = [], set()
    for key, words, source in counts:
        count = getattr(wanted, key)
        if count and source is not None and not any(getattr(section, source) for section in pairs):
            missing.add(source)
        elif count:
            drawn.append(f"up to {count} {words}")
    without = f" (no corpus has {' or '.join(sorted(missing))}: none of those are drawn)" if missing else ""
    return (", ".join(drawn) or "no candidates") + without


@dataclass
class _Interval:
    """What has been summed up since the last line of the log."""

    start: float
    measured: Tensor | None = None
    steps: int = 0
    positions: float = 0.0
    waited: float = 0.0

    def add(self, measured: Tensor, positions: float, waited: float) -> None:
        self.measured = measured if self.measured is None else self.measured + measured
        self.steps += 1
        self.positions += positions
        self.waited += waited


class _Run:
    """One run of the loop."""

    def __init__(
        self,
        config: RunConfig,
        engine: Engine,
        data: PretrainingData,
        held_out: HeldOut | None,
        log: RunLog,
        samples: SampleLog,
        detector: dict[str, Any],
    ) -> None:
        self._config, self._training, self._engine, self._data = config, config.training, engine, data
        self._held_out, self._log, self._samples, self._detector = held_out, log, samples, detector
        self._per_step = sum(corpus.per_step for corpus in config.data.corpora)
        self._started = time.monotonic()
        self._first_step = 0

    def train(self, step: int) -> Path | None:
        """Trains from `step` to the end, or until asked to stop; returns the last checkpoint."""
        self._first_step = step
        stop = StopRequest()
        interval = _Interval(time.monotonic())
        checkpoint: Path | None = None
        try:
            waiting = time.monotonic()
            for step_data in load_steps(
                self._data, step, self._training.steps, self._config.data.workers, self._config.data.prefetch_steps
            ):
                waited = time.monotonic() - waiting
                totals, stopping = self._agree(step_data, stop)
                if stopping:
                    return self._stop(step, stop)
                result = self._step(step_data, totals)
                step = step_data.step + 1
                interval.add(result.measured, totals.positions, waited)
                if step % self._training.log_every == 0 or step == self._training.steps:
                    self._report(step, interval, result)
                    interval = _Interval(time.monotonic())
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
            (self._config.folder / "DONE").write_text(f"{step}\n", encoding="utf-8")
        self._log.say(f"done: {self._config.folder}")
        return checkpoint

    def _evaluation_due(self, step: int) -> bool:
        every = self._config.evaluation.every if self._config.evaluation else 0
        return step == self._training.steps or (every > 0 and step % every == 0)

    def _agree(self, step_data: StepData, stop: StopRequest) -> tuple[Totals, bool]:
        """Sums the counts of all ranks, and learns whether any rank was asked to stop, in one message."""
        late = self._training.stop_after_minutes
        wants = stop.received is not None or (late is not None and time.monotonic() - self._started > 60 * late)
        counts = sum((batch.counts() for batch in step_data.batches), Counts(0, 0, 0, 0, 0)).tensor()
        message = torch.cat([counts, torch.tensor([int(wants)])]).to(distributed.device())
        *totals, wanting = distributed.sum_over_ranks(message).tolist()
        for problem in step_data.problems:
            print(f"WARNING: step {step_data.step + 1}: {problem}", file=sys.stderr, flush=True)
        return Totals(*map(float, totals)), wanting > 0

    def _step(self, step_data: StepData, totals: Totals) -> StepResult:
        # Dropout is a function of (seed, step, rank), so that a resumed run repeats it without stored generator states.
        torch.manual_seed(hash((self._config.seed, step_data.step, distributed.rank())) & 0x7FFFFFFF)
        batches = [batch.to(distributed.device()) for batch in step_data.batches]
        result = self._engine.step(step_data.step, batches, totals)
        self._samples.write(step_data.step + 1, [(draw.corpus, draw.number, draw.index) for draw in step_data.draws])
        return result

    def _report(self, step: int, interval: _Interval, result: StepResult) -> None:
        """One line of the log: losses are means over the interval, the rest is of the last step."""
        assert interval.measured is not None
        sums = distributed.sum_over_ranks(interval.measured).tolist()
        losses = {f"loss/{name}": value / interval.steps for name, value in zip(NAMES, sums, strict=False)}
        weights = loss_weights(self._config.objectives)
        seconds = time.monotonic() - interval.start
        temperature = self._temperature()
        values: dict[str, float | int] = {
            "step": step,
            "samples": step * self._per_step,
            "loss": sum(weight * value for weight, value in zip(weights, losses.values(), strict=True)),
            **losses,
            "lr": learning_rate(self._training, step - 1),
            "grad_norm": result.gradient_norm,
            "temperature": temperature,
            **readings(sums[len(NAMES) :]),
            "positions_per_second": interval.positions / seconds,
            "data_wait": interval.waited / seconds,
        }
        self._log.write(values)
        done = step - self._first_step
        left = (time.monotonic() - self._started) / done * (self._training.steps - step)
        parts = "  ".join(f"{name} {losses[f'loss/{name}']:.3f}" for name, weight in zip(NAMES, weights, strict=True) if weight)
        self._log.say(
            f"step {step}/{self._training.steps}  loss {values['loss']:.3f}  {parts}  lr {values['lr']:.1e}  "
            f"|g| {result.gradient_norm:.2f}  t {temperature:.3f}  {values['positions_per_second']:,.0f} positions/s  "
            f"data wait {100 * values['data_wait']:.0f} %  {format_duration(left)} left"
        )

    def _temperature(self) -> float:
        """The learned temperature; a pass of one module, so that ZeRO-3 gathers its parameter."""
        module = self._engine.module
        assert isinstance(module, PretrainingModel)
        with torch.no_grad():
            return float(module.unimo.temperature())

    def _evaluate(self, step: int) -> None:
        if self._held_out is None:
            return
        module = self._engine.module
        assert isinstance(module, PretrainingModel)
        evaluation = evaluate_model(module.unimo, self._held_out, self._config.model.feature_width)
        self._log.write({"step": step, **evaluation.numbers})
        if distributed.rank() == 0:
            write_evaluation(evaluation, self._config.folder / "evaluation.json")
        numbers = evaluation.numbers
        self._log.say(
            f"held-out pairs at step {step}: image to text R@1 {100 * numbers['eval/i2t_r1']:.1f} %, text to image R@1 "
            f"{100 * numbers['eval/t2i_r1']:.1f} % (chance {100 * numbers['eval/t2i_r1_chance']:.1f} %), masked words "
            f"{100 * numbers['eval/mlm_accuracy']:.1f} % right"
        )

    def _save(self, step: int) -> Path | None:
        config = self._config
        state = {
            "step": step,
            "samples": step * self._per_step,
            "model": config.model.model_dump(mode="json"),
            "detector": self._detector,
            "world_size": distributed.world_size(),
        }
        extras = Extras(dump_config(config), state, config.data.tokenizer)
        started = time.monotonic()
        saved = save_checkpoint(self._engine, config.folder / "checkpoints", step, extras, self._training.keep_checkpoints)
        if saved is not None:
            self._log.say(f"saved {saved} in {time.monotonic() - started:.1f} s")
        return saved

    def _stop(self, step: int, stop: StopRequest) -> Path | None:
        """Saves and leaves; a file tells the batch script that the job wants to be started again."""
        reason = stop.received or "another rank's request, or training.stop_after_minutes"
        self._log.say(f"asked to stop ({reason}) after step {step}: saving")
        saved = self._save(step) if step > self._first_step else None
        if distributed.rank() == 0:
            (self._config.folder / "REQUEUE").write_text(f"{step}\n", encoding="utf-8")
        return saved


def main(arguments: list[str] | None = None) -> int:
    """`CONFIG.yaml [a.b=c ...]`, as every launcher calls it; returns the exit code."""
    words = [word for word in (sys.argv[1:] if arguments is None else arguments) if not word.startswith("--local_rank")]
    if not words or words[0].startswith("-"):
        print("usage: python -m unimo_ds.pretrain CONFIG.yaml [key.path=value ...]", file=sys.stderr)
        return 2
    try:
        pretrain(load_config(Path(words[0]), words[1:]))
    except UnimoError as error:
        if distributed.environment().rank == 0:
            print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    distributed.leave(main())
