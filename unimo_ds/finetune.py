"""Fine-tuning a pre-trained model on one task, its evaluation and its predictions.

Started by `unimo-ds finetune`, by `deepspeed --module unimo_ds.finetune`, by `torchrun -m unimo_ds.finetune` or by `srun`.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from unimo_ds import distributed, nvidia_apex
from unimo_ds.batch import FIRST_POSITION
from unimo_ds.config import FinetuneConfig, ModelSection, TrainingSection, dump_config, load_finetune_config
from unimo_ds.data.loader import StepData, load_steps
from unimo_ds.engine.checkpoint import resume
from unimo_ds.engine.checkpoint_folder import Extras, find_checkpoint, mark_best, read_state, read_weights
from unimo_ds.engine.engine import Engine, Passes, StepResult, check_settings, learning_rate
from unimo_ds.engine.run_lock import alone_in
from unimo_ds.engine.run_log import RunLog
from unimo_ds.engine.watch import Watch
from unimo_ds.errors import CheckpointError, ConfigError, DataError
from unimo_ds.files import replace_text
from unimo_ds.model.unimo import parameter_groups
from unimo_ds.opening import Finetuned, Start, build_model, head_facts, open_finetuned, open_set, read_start
from unimo_ds.processes import is_finished
from unimo_ds.tasks.adversarial import Rounds
from unimo_ds.tasks.answering import answers_of, score_set
from unimo_ds.tasks.examples import ExampleSet, TaskSteps
from unimo_ds.tasks.families import make_task
from unimo_ds.tasks.report import ReportSet, render_report
from unimo_ds.tasks.task import Task, TaskBatch, TaskModel, TaskTotals
from unimo_ds.training_run import Interval, TrainingRun, go_on_from
from unimo_ds.training_run import start as start_run
from unimo_ds.vision.pictures import check_folder

_NEW_AT_FINE_TUNING = ("head.", "unimo.embedding.text.voice.")  # parameters that a start may lack


def finetune(config: FinetuneConfig) -> Path | None:
    """Runs, or goes on with, the run that `config` describes. Every rank must call it.

    Returns:
        The last checkpoint; None if the disk refused it.

    Raises:
        UnimoError: the configuration, an input or the run folder is wrong; the message says what to do.
    """
    timeouts = config.training.timeouts
    with alone_in(config.folder, timeouts.start_up / 2), Watch(config.folder, timeouts) as watch:
        return _finetune(config, watch)


def _finetune(config: FinetuneConfig, watch: Watch) -> Path | None:
    here = distributed.initialise(config.training.timeouts.longest)
    watch.enter("prepare")
    start = read_start(config.init)
    nvidia_apex.check(start.model.layer_norm, config.training.optimizer)
    check_settings(config.training)
    _check_lengths(config, start.model)
    task = make_task(config.task, start.tokenizer)
    train = open_set("train", config.task.train, config, task, start, teach=True)
    if not start.detector:  # converted weights know none: from here on it is that of the training set
        start = replace(start, detector=train.detector)
    dev = {name: open_set(f"dev {name}", part, config, task, start, teach=False) for name, part in config.task.dev.items()}
    for name, examples in dev.items():
        if unlabelled := examples.unlabelled:
            raise DataError(
                f"task.dev.{name}: {len(unlabelled)} of {len(examples)} examples have no label, first {unlabelled[0]!r}; "
                "a dev set is scored: leave them out, or move the set to task.test"
            )
    training = config.training.for_examples(len(train))
    checkpoint = find_checkpoint(config.folder / "checkpoints")
    step = _step_of(checkpoint, config, start, task)
    if step >= training.steps and is_finished(config.folder):
        if here.rank == 0:
            print(
                f"{config.folder}: already at step {step} of {training.steps}; raise training.epochs, or choose another folder"
            )
        return checkpoint
    engine = _build_engine(config, training, task, start, checkpoint)
    if checkpoint is not None:
        resume(engine, checkpoint)
    go_on_from(config.folder, step)
    log = RunLog(config.folder, enabled=here.rank == 0)
    sizes = {"train": len(train), **{f"dev {name}": len(examples) for name, examples in dev.items()}}
    log.start(dump_config(config), sizes, here.world_size, step)
    shown = ", ".join(f"{count:,} of {name}" for name, count in sizes.items())
    log.say(
        f"{config.folder}: {f'resumed at step {step}' if step else 'new run'}, {config.task.family} from {config.init}, "
        f"{here.world_size} ranks, ZeRO stage {engine.stage}, {training.precision}, {training.steps} steps of "
        f"{config.training.batch_size}; examples: {shown}"
    )
    steps = TaskSteps(
        train, config.training.batch_size, config.data.positions_per_micro_batch, config.seed, start.model.feature_width
    )
    try:
        return FinetuningRun(config, training, engine, task, start, steps, dev, log, checkpoint, watch).train(step)
    finally:
        log.close()


def _step_of(checkpoint: Path | None, config: FinetuneConfig, start: Start, task: Task[Any]) -> int:
    """The step to go on from.

    Raises:
        CheckpointError: the run's checkpoint holds another model, or is of another task or other answers.
    """
    if checkpoint is None:
        return 0
    state = read_state(checkpoint)
    if state["model"] != start.model.model_dump(mode="json"):
        raise CheckpointError(
            f"{checkpoint}: was started from a model of another shape than init = {start.checkpoint}; choose another folder"
        )
    if state["task"] != head_facts(config, task) or state["chosen_by"] != task.chosen_by:
        raise CheckpointError(
            f"{checkpoint}: its head was trained for another task, or other answers than task.train or task.labels give, or "
            f"its best checkpoint was chosen by {state['chosen_by']}, not {task.chosen_by}; choose another folder"
        )
    return int(state["step"])


def _check_lengths(config: FinetuneConfig, model: ModelSection) -> None:
    """Refuses, before any work is done, texts that are longer than the model has positions for.

    Raises:
        ConfigError: names the key.
    """
    most = model.max_positions - FIRST_POSITION
    section = config.task.model_dump()
    wanted = {
        "data.max_text_tokens": config.data.max_text_tokens,
        "task.max_target_tokens": section.get("max_target_tokens", 0),
        "task.decoding.longest": section.get("decoding", {}).get("longest", 0),
    }
    for key, tokens in wanted.items():
        if tokens > most:
            raise ConfigError(f"{key} = {tokens}: the model of init = {config.init} has positions for {most}; lower it")


def _build_engine(
    config: FinetuneConfig, training: TrainingSection, task: Task[Any], start: Start, checkpoint: Path | None
) -> Engine:
    def build() -> TaskModel:
        torch.manual_seed(config.seed)
        model = build_model(task, start.model)
        model.unimo.transformer.activation_checkpointing = training.activation_checkpointing
        return model

    if checkpoint is not None:
        weights: dict[str, torch.Tensor] | None = read_weights(checkpoint)
    else:
        weights = None if config.random_weights else _fitting_weights(config, task, start)
    return Engine(build, lambda module: parameter_groups(module, training.weight_decay), training, weights)


def _fitting_weights(config: FinetuneConfig, task: Task[Any], start: Start) -> dict[str, torch.Tensor]:
    """The weights of the start, without a head of other classes (MNLI's before STS-B, or one for other answers).

    Raises:
        CheckpointError: the start lacks weights of the model itself, or has them in another shape.
    """
    weights = read_weights(start.checkpoint)
    if start.facts != head_facts(config, task):
        weights = {name: value for name, value in weights.items() if not name.startswith("head.")}
    with torch.device("meta"):
        wanted = {name: parameter.shape for name, parameter in build_model(task, start.model).named_parameters()}
    fitting = {name: weights[name] for name, shape in wanted.items() if name in weights and weights[name].shape == shape}
    lacking = [name for name in wanted if name not in fitting and not name.startswith(_NEW_AT_FINE_TUNING)]
    if lacking:
        raise CheckpointError(
            f"init = {start.checkpoint}: lacks {', '.join(lacking[:3])}{' and others' if len(lacking) > 3 else ''}: it was "
            "fine-tuned for a task that does not read them; start from a pre-trained checkpoint"
        )
    return fitting


class FinetuningRun(TrainingRun):
    """A run on the training set of a task."""

    def __init__(
        self,
        config: FinetuneConfig,
        training: TrainingSection,
        engine: Engine,
        task: Task[Any],
        start: Start,
        steps: TaskSteps,
        dev: dict[str, ExampleSet],
        log: RunLog,
        checkpoint: Path | None,
        watch: Watch,
    ) -> None:
        super().__init__(config.folder, config.seed, training, engine, log, checkpoint, watch)
        self._config, self._task, self._start, self._data, self._dev = config, task, start, steps, dev

    def _steps(self, first: int) -> Iterator[StepData[TaskBatch]]:
        data = self._config.data
        return load_steps(self._data, first, self._training.steps, data.workers, data.prefetch_steps)

    def _totals(self, counts: list[float]) -> TaskTotals:
        return TaskTotals(*counts)

    def _passes(self, batches: list[TaskBatch]) -> Passes:
        section = self._task.adversarial
        return batches if section is None else Rounds(batches, section, self._start.model.hidden_size)

    def _report(self, step: int, interval: Interval, result: StepResult) -> None:
        values = {
            "step": step,
            "samples": step * self._config.training.batch_size,
            "loss": interval.sums()[0] / interval.steps,
            "lr": learning_rate(self._training, step - 1),
            "grad_norm": result.gradient_norm,
            **interval.speed(),
        }
        self._log.write(values)
        self._log.say(
            f"step {step}/{self._training.steps}  loss {values['loss']:.4f}  lr {values['lr']:.1e}  "
            f"|g| {values['grad_norm']:.2f}  {values['positions_per_second']:,.0f} positions/s  "
            f"data wait {100 * values['data_wait']:.0f} %  {self._left(step)} left"
        )

    def _evaluation_due(self, step: int) -> bool:
        return step % self._training.checkpoint_every == 0 or step == self._training.steps

    def _evaluate(self, step: int) -> None:
        module = self._engine.module
        assert isinstance(module, TaskModel)
        numbers = {
            f"eval/{name}_{metric}": value
            for name, examples in self._dev.items()
            for metric, value in score_set(module, examples, self._start.model.feature_width).items()
        }
        self._log.write({"step": step, **numbers})
        self._log.say(f"dev at step {step}: " + ", ".join(f"{name[5:]} {value:.4f}" for name, value in numbers.items()))
        self._log.attempt("the mark of the best checkpoint", lambda: self._mark_best(step, numbers))

    def _mark_best(self, step: int, numbers: dict[str, float]) -> None:
        chosen_by = f"eval/{next(iter(self._dev))}_{self._task.chosen_by}"
        if mark_best(self._folder / "checkpoints", step, numbers[chosen_by]):
            self._log.say(f"the best so far by {chosen_by[5:]}")

    def _extras(self, step: int) -> Extras:
        start = self._start
        state = {
            "step": step,
            "samples": step * self._config.training.batch_size,
            "model": start.model.model_dump(mode="json"),
            "detector": start.detector,
            "task": head_facts(self._config, self._task),
            "chosen_by": self._task.chosen_by,
            "world_size": distributed.world_size(),
        }
        return Extras(dump_config(self._config), state, start.tokenizer.folder)


def evaluate_finetuned(path: Path, overrides: list[str], images: Path | None = None) -> dict[str, float]:
    """Scores the dev sets of a run; every rank must call it.

    Prints the numbers and writes them beside the checkpoint as `evaluation.json`, and the best and worst answers as
    `report.html`. A set without labels has no numbers and no answers there, and that is said.

    Args:
        path: as in `open_finetuned`.
        overrides: of the run's configuration.
        images: the folder that image keys are paths below, for the report; None: boxes are drawn on an empty canvas.

    Returns:
        The numbers; those of `Task.further_scores` on rank 0 only.

    Raises:
        ConfigError: `images` is no folder.
    """
    check_folder(images)
    distributed.initialise(timeout_seconds=600)
    found = open_finetuned(path, overrides)
    width, task = found.start.model.feature_width, found.task
    sets = {name: found.open_set(f"dev {name}", part) for name, part in found.config.task.dev.items()}
    answers = {name: answers_of(found.model, each, width) for name, each in sets.items() if not each.unlabelled}
    scores = {name: task.score(found_answers, sets[name].examples) for name, found_answers in answers.items()}
    if distributed.rank() == 0:
        _report(found, sets, answers, scores, images)
    return _by_set(scores)


def _report(
    found: Finetuned,
    sets: dict[str, ExampleSet],
    answers: dict[str, list[Any]],
    scores: dict[str, dict[str, float]],
    images: Path | None,
) -> None:
    """Adds what is scored once only to `scores`, and writes and prints all."""
    remarks = [f"dev {name}: not all examples have labels: it is not scored" for name in sets if name not in answers]
    reported = []
    for name, each in sets.items():
        judged = []
        if name in answers:
            further, lacking = found.task.further_scores(answers[name], each.examples)
            scores[name].update(further)
            remarks += [line for line in lacking if line not in remarks]
            judged = found.task.judge(answers[name], each.examples)
        reported.append(ReportSet(name, scores.get(name, {}), each.examples, judged))
    numbers = json.dumps(_by_set(scores), indent=1)
    replace_text(found.checkpoint / "evaluation.json", numbers)
    title = f"{found.config.folder}: {found.config.task.family}"
    page = render_report(title, found.checkpoint, found.task.chosen_by, reported, remarks, images)
    replace_text(found.checkpoint / "report.html", page)
    print("\n".join([*remarks, numbers, f"{found.checkpoint / 'report.html'}: the best and worst answers"]))


def _by_set(scores: dict[str, dict[str, float]]) -> dict[str, float]:
    return {f"{name}_{metric}": value for name, own in scores.items() for metric, value in own.items()}


def predict_sets(path: Path, out: Path, overrides: list[str]) -> list[Path]:
    """Writes the predictions for every dev and test set of a run, in the form of the task's public evaluation.

    Args:
        path: as in `open_finetuned`.
        out: folder for one file a set.
        overrides: of the run's configuration.

    Returns:
        The files.
    """
    distributed.initialise(timeout_seconds=600)
    found = open_finetuned(path, overrides)
    written = []
    for name, part in {**found.config.task.dev, **found.config.task.test}.items():
        examples = found.open_set(name, part)
        answers = answers_of(found.model, examples, found.start.model.feature_width)
        file = out / f"{name}{found.task.ending}"
        if distributed.rank() == 0:
            out.mkdir(parents=True, exist_ok=True)
            replace_text(file, found.task.predictions(answers, examples.examples))
        written.append(file)
    return written


def main(arguments: list[str] | None = None) -> int:
    """`CONFIG.yaml [a.b=c ...]`, as every launcher calls it; returns the exit code."""
    return start_run("unimo_ds.finetune", lambda path, words: finetune(load_finetune_config(path, words)), arguments)


if __name__ == "__main__":
    distributed.leave(main())
