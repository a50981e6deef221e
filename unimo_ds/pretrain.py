"""Pre-training: the loop that joins data, model, objectives and engine.

Started by `unimo-ds pretrain`, by `deepspeed --module unimo_ds.pretrain`, by `torchrun -m unimo_ds.pretrain` or by `srun`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from unimo_ds import distributed, nvidia_apex
from unimo_ds.batch import Batch
from unimo_ds.config import ModelSection, RunConfig, dump_config, load_config
from unimo_ds.data.corpus import Corpus, prepare_corpora
from unimo_ds.data.loader import PretrainingData, StepData, load_steps
from unimo_ds.engine.checkpoint import resume
from unimo_ds.engine.checkpoint_folder import Extras, find_checkpoint, read_state, read_weights
from unimo_ds.engine.engine import Engine, StepResult, check_settings, learning_rate
from unimo_ds.engine.run_lock import alone_in
from unimo_ds.engine.run_log import RunLog
from unimo_ds.engine.watch import Watch
from unimo_ds.errors import CheckpointError, ConfigError, StoreError
from unimo_ds.evaluate import HeldOut, evaluate_model, open_held_out, write_evaluation
from unimo_ds.model.unimo import UnimoModel, parameter_groups
from unimo_ds.objectives.meter import readings
from unimo_ds.objectives.pretraining import NAMES, PretrainingModel, Totals, loss_weights
from unimo_ds.processes import is_finished
from unimo_ds.rewrites import LEVELS
from unimo_ds.tokenizer import Tokenizer
from unimo_ds.training_run import Interval, TrainingRun, go_on_from, start


def pretrain(config: RunConfig) -> Path | None:
    """Runs, or goes on with, the run that `config` describes. Every rank must call it.

    Returns:
        The last checkpoint; None if the disk refused it.

    Raises:
        UnimoError: the configuration, an input or the run folder is wrong; the message says what to do.
    """
    nvidia_apex.check(config.model.layer_norm, config.training.optimizer)
    check_settings(config.training)
    timeouts = config.training.timeouts
    with alone_in(config.folder, timeouts.start_up / 2), Watch(config.folder, timeouts) as watch:
        return _pretrain(config, watch)


def _pretrain(config: RunConfig, watch: Watch) -> Path | None:
    here = distributed.initialise(config.training.timeouts.longest)
    watch.enter("prepare")
    tokenizer = Tokenizer(config.data.tokenizer)
    corpora = _open_corpora(config)
    config, detector = _fit_to_data(config, tokenizer, corpora)
    held_out = open_held_out(config, tokenizer, show=here.rank == 0)
    if held_out is not None and detector:
        held_out.expect_detector(detector, "the regions that are trained on")
    checkpoint = find_checkpoint(config.folder / "checkpoints")
    step = _check_resumable(config, checkpoint, detector, tokenizer)
    if step >= config.training.steps and is_finished(config.folder):
        _say_finished(config, step)
        return checkpoint
    engine = _build_engine(config, checkpoint)
    if checkpoint is not None:
        resume(engine, checkpoint)
    go_on_from(config.folder, step)
    data = PretrainingData(config, corpora, tokenizer, config.model.feature_width, here.rank, here.world_size)
    log = RunLog(config.folder, enabled=here.rank == 0)
    log.start(dump_config(config), {corpus.name: _manifest(corpus) for corpus in corpora}, here.world_size, step)
    log.say(_opening(config, engine, corpora, step))
    try:
        return PretrainingRun(config, engine, data, held_out, log, detector, checkpoint, watch).train(step)
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
        unimo = UnimoModel(config.model, config.objectives.cmcl.temperature)
        unimo.transformer.activation_checkpointing = config.training.activation_checkpointing
        return PretrainingModel(unimo, config.objectives)

    source = checkpoint or config.init
    weights = read_weights(source) if source is not None else None
    if weights is not None:
        with torch.device("meta"):
            missing = [name for name, _ in build().named_parameters() if name not in weights]
        if missing:
            raise CheckpointError(f"{source}: lacks {', '.join(missing[:3])} and others: it was fine-tuned for a task")
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


class PretrainingRun(TrainingRun):
    """A run over a mixture of corpora."""

    def __init__(
        self,
        config: RunConfig,
        engine: Engine,
        data: PretrainingData,
        held_out: HeldOut | None,
        log: RunLog,
        detector: dict[str, Any],
        checkpoint: Path | None,
        watch: Watch,
    ) -> None:
        super().__init__(config.folder, config.seed, config.training, engine, log, checkpoint, watch)
        self._config, self._data, self._held_out, self._detector = config, data, held_out, detector
        self._per_step = sum(corpus.per_step for corpus in config.data.corpora)

    def _steps(self, first: int) -> Iterator[StepData[Batch]]:
        data = self._config.data
        return load_steps(self._data, first, self._training.steps, data.workers, data.prefetch_steps)

    def _totals(self, counts: list[float]) -> Totals:
        return Totals(*counts)

    def _evaluation_due(self, step: int) -> bool:
        every = self._config.evaluation.every if self._config.evaluation else 0
        return step == self._training.steps or (every > 0 and step % every == 0)

    def _report(self, step: int, interval: Interval, result: StepResult) -> None:
        """Losses are means over the interval, the rest is of the last step."""
        sums = interval.sums()
        losses = {f"loss/{name}": value / interval.steps for name, value in zip(NAMES, sums, strict=False)}
        weights = loss_weights(self._config.objectives)
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
            **interval.speed(),
        }
        self._log.write(values)
        parts = "  ".join(f"{name} {losses[f'loss/{name}']:.3f}" for name, weight in zip(NAMES, weights, strict=True) if weight)
        self._log.say(
            f"step {step}/{self._training.steps}  loss {values['loss']:.3f}  {parts}  lr {values['lr']:.1e}  "
            f"|g| {result.gradient_norm:.2f}  t {temperature:.3f}  {values['positions_per_second']:,.0f} positions/s  "
            f"data wait {100 * values['data_wait']:.0f} %  {self._left(step)} left"
        )

    def _temperature(self) -> float:
        """The learned temperature; a pass of one module, so that ZeRO-3 gathers its parameter."""
        module = self._engine.module
        assert isinstance(module, PretrainingModel) and module.unimo.temperature is not None
        with torch.no_grad():
            return float(module.unimo.temperature())

    def _evaluate(self, step: int) -> None:
        if self._held_out is None:
            return
        module = self._engine.module
        assert isinstance(module, PretrainingModel)
        evaluation = evaluate_model(module.unimo, self._held_out, self._config.model.feature_width)
        self._log.write({"step": step, **evaluation.numbers})
        path = self._config.folder / "evaluation.json"
        self._log.attempt(path.name, lambda: write_evaluation(evaluation, path))
        numbers = evaluation.numbers
        self._log.say(
            f"held-out pairs at step {step}: image to text R@1 {100 * numbers['eval/i2t_r1']:.1f} %, text to image R@1 "
            f"{100 * numbers['eval/t2i_r1']:.1f} % (chance {100 * numbers['eval/t2i_r1_chance']:.1f} %), masked words "
            f"{100 * numbers['eval/mlm_accuracy']:.1f} % right"
        )

    def _extras(self, step: int) -> Extras:
        config = self._config
        state = {
            "step": step,
            "samples": step * self._per_step,
            "model": config.model.model_dump(mode="json"),
            "detector": self._detector,
            "world_size": distributed.world_size(),
        }
        return Extras(dump_config(config), state, config.data.tokenizer)


def main(arguments: list[str] | None = None) -> int:
    """`CONFIG.yaml [a.b=c ...]`, as every launcher calls it; returns the exit code."""
    return start("unimo_ds.pretrain", lambda path, overrides: pretrain(load_config(path, overrides)), arguments)


if __name__ == "__main__":
    distributed.leave(main())
