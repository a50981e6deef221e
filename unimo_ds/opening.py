"""Opens checkpoints: what a run starts from, and fine-tuned models with all that their tasks need.

Imports no DeepSpeed: whoever only uses a model does not wait for it.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unimo_ds import distributed
from unimo_ds.config import FinetuneConfig, ModelSection, load_finetune_config
from unimo_ds.engine.checkpoint_folder import best_checkpoint, find_checkpoint, read_model_weights, read_state, read_weights
from unimo_ds.errors import CheckpointError, ConfigError
from unimo_ds.model.unimo import UnimoModel
from unimo_ds.tasks.examples import ExampleSet
from unimo_ds.tasks.families import files_of, make_task
from unimo_ds.tasks.task import Task, TaskModel
from unimo_ds.tokenizer import Tokenizer

PRETRAINING = "pre-training"  # in the place of a family


@dataclass(frozen=True)
class Start:
    """What a run starts from: a checkpoint's shape, tokenizer and regions' detector."""

    checkpoint: Path
    model: ModelSection
    tokenizer: Tokenizer
    detector: dict[str, Any]
    facts: dict[str, Any]  # of the task that it was fine-tuned for (`head_facts`); of pre-training none

    @property
    def family(self) -> str:
        """Of the task that it was fine-tuned for, or else `PRETRAINING`."""
        return str(self.facts.get("family", PRETRAINING))


def read_start(path: Path) -> Start:
    """Reads what a checkpoint says of itself; of a run folder the best one, or the newest. Every rank must call it.

    Raises:
        CheckpointError: it is neither.
    """
    checkpoint = find_start(path)
    if (path / "unimo_ds_state.json").exists():
        raise CheckpointError(
            f"{path}: is an exported model; `python tools/convert_weights.py huggingface {path} --out CHECKPOINT` makes a "
            "checkpoint of it"
        )
    if checkpoint is None or not (checkpoint / "state.json").exists():
        raise CheckpointError(
            f"{path}: neither a checkpoint folder of unimo_ds (with state.json) nor a run folder with checkpoints/; "
            "give one of them (a fine-tuning run: set init to it); published weights are converted first, by "
            "tools/convert_weights.py"
        )
    state = read_state(checkpoint)
    model = ModelSection.model_validate(state["model"])
    return Start(checkpoint, model, Tokenizer(checkpoint / "tokenizer"), state["detector"], state.get("task", {}))


def find_start(path: Path) -> Path | None:
    """The checkpoint that a path stands for: itself, or the best or else the newest one of a run folder."""
    if (path / "model.safetensors").exists():
        return path
    return best_checkpoint(path / "checkpoints") or find_checkpoint(path / "checkpoints")


def open_unimo(checkpoint: Path, model: ModelSection) -> UnimoModel:
    """The model of a checkpoint of pre-training, in evaluation mode and float32, on the CPU.

    Raises:
        CheckpointError: it holds another model than this program makes of `model`.
    """
    with torch.device("meta"):  # no initial values: they would be replaced
        unimo = UnimoModel(model)
    try:
        unimo.load_state_dict(read_model_weights(checkpoint), assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{checkpoint}: was written by another version of this program ({reason})") from error
    return unimo.eval()


def open_set(name: str, part: Any, config: FinetuneConfig, task: Task[Any], start: Start, teach: bool) -> ExampleSet:
    """Reads a set; its regions must be of the detector that the start was trained with, and of one in any case."""
    examples = ExampleSet.read(name, task, files_of(part), start.tokenizer, config.data, teach, show=distributed.rank() == 0)
    expected, whose = start.detector, f"the checkpoint {start.checkpoint}, or task.train where that knows none"
    for store in examples.stores:
        if expected:
            store.expect_detector(expected, whose)
        else:
            expected, whose = store.detector, f"the store {store.folder} of the same set"
    return examples


def head_facts(config: FinetuneConfig, task: Task[Any]) -> dict[str, Any]:
    """What a head is of: the family, and what its numbers stand for."""
    return {"family": config.task.family, **task.facts}


def build_model(task: Task[Any], model: ModelSection) -> TaskModel:
    """The model with a task's head, and with those of its own that the task reads."""
    unimo = UnimoModel(model)
    unimo.keep_heads(task.heads)
    if task.voices:
        unimo.add_voices(model)
    return TaskModel(unimo, task, model)


@dataclass(frozen=True)
class Finetuned:
    """A fine-tuned model with all that its task needs."""

    checkpoint: Path
    config: FinetuneConfig
    task: Task[Any]
    start: Start
    model: TaskModel

    def open_set(self, name: str, part: Any) -> ExampleSet:
        """Reads a set of the task."""
        return open_set(name, part, self.config, self.task, self.start, teach=False)


def is_finetuned(path: Path) -> bool:
    """Whether a run folder, or a checkpoint, is of a fine-tuning run and not of pre-training."""
    file = path / "config.yaml"
    return file.exists() and re.search(r"^task:", file.read_text(encoding="utf-8"), re.MULTILINE) is not None


def open_task(start: Start, overrides: list[str]) -> tuple[FinetuneConfig, Task[Any]]:
    """The configuration and the task of a fine-tuned checkpoint, without its weights.

    Raises:
        ConfigError: the overrides make another task of it.
    """
    config = load_finetune_config(start.checkpoint / "config.yaml", overrides)
    task = make_task(config.task, start.tokenizer, start.facts)
    if start.facts != head_facts(config, task):
        raise ConfigError(
            f"{start.checkpoint}: was trained for another task, or other labels; task.family and task.labels are its own"
        )
    return config, task


def open_finetuned(path: Path, overrides: list[str]) -> Finetuned:
    """A checkpoint of a fine-tuning run, or the best one of a run folder; on this rank's device. Every rank must call it.

    Raises:
        CheckpointError: there is none.
        ConfigError: the overrides make another task of it.
    """
    start = read_start(path)
    config, task = open_task(start, overrides)
    model = build_model(task, start.model)
    model.load_state_dict(read_weights(start.checkpoint))
    model.to(distributed.device())
    return Finetuned(start.checkpoint, config, task, start, model)
