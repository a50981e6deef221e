"""Published weights become a checkpoint of ours: to start from, to use, to export."""

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from unimo_ds.config import FinetuneConfig, ModelSection, RunConfig, VqaSection, dump_config, load_config, load_finetune_config
from unimo_ds.convert import roberta
from unimo_ds.convert.converted import Converted, filled, listed, shape_of
from unimo_ds.convert.huggingface import read_exported
from unimo_ds.convert.original import OriginalFolder, convert_original, is_of_optimiser
from unimo_ds.convert.tokenizers import open_tokenizer
from unimo_ds.engine.checkpoint_folder import PREFIX, Extras, write_checkpoint
from unimo_ds.errors import CheckpointError, ConfigError
from unimo_ds.model.unimo import UnimoModel
from unimo_ds.opening import build_model, head_facts
from unimo_ds.tasks.families import files_of, make_task
from unimo_ds.tokenizer import Tokenizer

_SHAPE = ("hidden_size", "layers", "heads")


@dataclass(frozen=True)
class Conversion:
    """What became of published weights.

    Attributes:
        checkpoint: where they are now.
        model: their shape.
        used: how many of the published files or weights found a place.
        mapped: how many parameters they make.
        new: names of those that were not, and have initial values.
        unused: names of what was found and has no place, as it is called there.
        remarks: what the user should know, a line each.
    """

    checkpoint: Path
    model: ModelSection
    used: int
    mapped: int
    new: tuple[str, ...]
    unused: tuple[str, ...]
    remarks: tuple[str, ...]

    @property
    def text(self) -> str:
        """For people."""
        of_optimiser = sum(map(is_of_optimiser, self.unused))
        others = [name for name in self.unused if not is_of_optimiser(name)]
        unused = [f"{of_optimiser} of the optimiser"] * bool(of_optimiser) + [listed(others)] * bool(others)
        shape = f"{self.model.layers} layers, {self.model.hidden_size} wide, {self.model.vocabulary_size:,} words"
        lines = [
            f"{self.checkpoint}: wrote a checkpoint of {shape}",
            f"  mapped   {self.used} of {self.used + len(self.unused)}, to {self.mapped} parameters",
            f"  new      {len(self.new)}{': ' + listed(self.new) if self.new else ''}",
            f"  unused   {len(self.unused)}{': ' + ', '.join(unused) if unused else ''}",
            "  missing  0",
        ]
        return "\n".join([*lines, *(f"  {remark}" for remark in self.remarks)])


@dataclass(frozen=True)
class _Plan:
    """What is made of the original's folder: a module, what it says of itself, and which parts the folder may lack."""

    build: Callable[[], nn.Module]
    model: ModelSection
    config_yaml: str | None = None  # None: the model alone
    family: str | None = None
    facts: dict[str, Any] | None = None
    optional: Sequence[str] = ()


def convert_unimo(source: Path, tokenizer_folder: Path, out: Path, recipe: Path | None = None) -> Conversion:
    """Makes a checkpoint of a folder of the original UNIMO.

    Args:
        source: holds one file a parameter.
        tokenizer_folder: holds RoBERTa's `vocab.json` and `merges.txt`, or is the original's `model_files/dict`.
        out: the new checkpoint.
        recipe: of a fine-tuning task, whose head is to be kept; or of a pre-training run.

    Raises:
        CheckpointError: the folder is none, is damaged or lacks parameters; `out` exists.
        ConfigError: the recipe is of a model of another shape, or of a task that the original has no head for.
        DataError: the tokenizer cannot be read.
    """
    _expect_free(out)
    folder = OriginalFolder(source)
    with tempfile.TemporaryDirectory() as temporary:
        tokenizer = open_tokenizer(tokenizer_folder, Path(temporary))
        plan = _plan(folder, folder.model_section(), tokenizer, recipe)
        wanted = {name.removeprefix(PREFIX): shape for name, shape in shape_of(plan.build).items()}
        converted = convert_original(folder, wanted, plan.optional, plan.family)
        origin = {"kind": "UNIMO", "folder": source.resolve().name, "sha256": _digest(source / name for name in converted.used)}
        left_out = [name for name in folder.of_tasks if name not in converted.used]
        remarks = _remarks(plan, left_out, tokenizer)
        return _write(out, plan, converted, tokenizer, origin, remarks)


def convert_roberta(source: Path, out: Path, feature_width: int, region_classes: int) -> Conversion:
    """Makes a checkpoint of a local RoBERTa of Hugging Face, with its tokenizer: the start of the paper's pre-training.

    Args:
        source: holds config.json, the weights as safetensors or bin, and vocab.json and merges.txt or tokenizer.json.
        out: the new checkpoint.
        feature_width: of the regions that the model is to see.
        region_classes: of their detector, background among them.

    Raises:
        CheckpointError: the folder has no whole RoBERTa; `out` exists.
        DataError: its tokenizer is missing or cannot be read.
    """
    _expect_free(out)
    model, converted = roberta.convert_roberta(*roberta.read_roberta(source), feature_width, region_classes)
    with tempfile.TemporaryDirectory() as temporary:
        files = sorted(source.glob("*.safetensors")) or sorted(source.glob("pytorch_model*.bin"))
        origin = {"kind": "RoBERTa", "folder": source.resolve().name, "sha256": _digest(files)}
        plan = _Plan(partial(UnimoModel, model), model)
        tokenizer = open_tokenizer(source, Path(temporary))
        remarks = ["the LayerNorm of regions starts as that of words", *_remarks(plan, [], tokenizer)]
        return _write(out, plan, converted, tokenizer, origin, remarks)


def import_huggingface(source: Path, out: Path) -> Conversion:
    """Makes the checkpoint again that an exported folder was made of, with the weights that the folder has now.

    A folder that transformers wrote after training may lack parts that its class has not: these are new.

    Args:
        source: what `unimo-ds export` wrote, or what was saved from it, with our files of the export beside.
        out: the new checkpoint.

    Raises:
        CheckpointError: the folder is none, is damaged, or has weights that do not fit its state; `out` exists.
        DataError: its tokenizer is damaged.
    """
    _expect_free(out)
    weights, extras = read_exported(source)
    model = ModelSection.model_validate(extras.state["model"])
    build: Callable[[], nn.Module] = partial(UnimoModel, model)
    if task_facts := extras.state.get("task"):
        config = FinetuneConfig.model_validate(yaml.safe_load(extras.config_yaml))
        build = partial(build_model, make_task(config.task, Tokenizer(source), task_facts), model)
    _expect_fitting(source, weights, {name.removeprefix(PREFIX): shape for name, shape in shape_of(build).items()})
    module, new = filled(build, Converted(weights, tuple(weights), ()))
    whole = {name.removeprefix(PREFIX): tensor for name, tensor in module.state_dict().items()}
    write_checkpoint(out, whole, extras)
    return Conversion(out, model, len(weights), len(weights), tuple(new), (), ())


def _expect_fitting(source: Path, weights: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> None:
    """Refuses weights that are unknown, of another shape, or missing, but for whole parts that pre-training can begin anew."""
    wrong = [name for name, value in weights.items() if shapes.get(name) != value.shape]
    needed = {name.split(".")[0] for name in weights} | {"embedding", "transformer", "head"}
    missing = [name for name in shapes if name not in weights and name.split(".")[0] in needed]
    if missing or wrong:
        said = [f"lacks {listed(missing)}"] * bool(missing) + [f"cannot place {listed(wrong)}"] * bool(wrong)
        raise CheckpointError(f"{source}/model.safetensors: does not fit the state beside it: {'; '.join(said)}")


def _expect_free(out: Path) -> None:
    """Refuses before the work what `write_checkpoint` would refuse after it."""
    if out.exists():
        raise CheckpointError(f"{out}: exists already; give another folder, or remove it")


def _plan(folder: OriginalFolder, model: ModelSection, tokenizer: Tokenizer, recipe: Path | None) -> _Plan:
    config = None if recipe is None else _read_recipe(recipe)
    if isinstance(config, FinetuneConfig):
        if isinstance(config.task, VqaSection):
            raise ConfigError(
                f"{recipe}: task.family = vqa: the original has no model of VQA; convert without --recipe, fine-tune"
            )
        task = make_task(config.task, tokenizer)
        of_texts = "regions" not in type(files_of(config.task.train)[0]).model_fields
        return _Plan(
            partial(build_model, task, model),
            model,
            dump_config(config),
            config.task.family,
            head_facts(config, task),
            ("embedding.region",) if of_texts else (),
        )
    if config is None:
        return _Plan(partial(UnimoModel, model), model, optional=folder.optional)
    different = [key for key in _SHAPE if getattr(config.model, key) != getattr(model, key)]
    if different:
        said = ", ".join(f"model.{key} = {getattr(config.model, key)}, {getattr(model, key)} there" for key in different)
        raise ConfigError(f"{recipe}: is of another model than {folder.path}: {said}")
    told = model.model_dump(
        exclude={"size", "initializer_range", "dropout", "attention_dropout", "layer_norm", "region_classes"}
    )
    model = config.model.model_copy(update=told)
    dumped = dump_config(config.model_copy(update={"model": model}))
    build = partial(UnimoModel, model, config.objectives.cmcl.temperature)
    return _Plan(build, model, dumped, optional=folder.optional)


def _read_recipe(path: Path) -> FinetuneConfig | RunConfig:
    try:
        of_task = "task" in yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, yaml.YAMLError):
        of_task = False  # `load_config` says what is wrong
    return load_finetune_config(path) if of_task else load_config(path)


def _remarks(plan: _Plan, left_out: Sequence[str], tokenizer: Tokenizer) -> list[str]:
    remarks = []
    if left_out:
        remarks.append(f"left out: {listed(left_out)}: of fine-tuning; --recipe recipes/tasks/TASK.yaml of its task keeps them")
    if plan.facts is not None and plan.facts.get("labels"):
        numbered = ", ".join(f"{number} {label}" for number, label in enumerate(plan.facts["labels"]))
        remarks.append(
            f"labels: {numbered}, in the recipe's order; the original's files have numbers only: see that `unimo-ds evaluate` "
            "gives a score above chance"
        )
    if not tokenizer.is_published:
        remarks.append("tokenizer: not RoBERTa's vocabulary, which is that of the published models")
    return remarks


def _digest(files: Iterable[Path]) -> str:
    """SHA-256 of files with their names."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.name}\n{path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def _write(
    out: Path, plan: _Plan, converted: Converted, tokenizer: Tokenizer, origin: dict[str, str], remarks: Sequence[str]
) -> Conversion:
    if tokenizer.size != plan.model.vocabulary_size:
        raise CheckpointError(
            f"{tokenizer.folder}: has {tokenizer.size:,} tokens, and the model vectors for {plan.model.vocabulary_size:,}; "
            "give the tokenizer that it was trained with"
        )
    module, new = filled(plan.build, converted)
    shape = plan.model.model_dump(mode="json")
    source = {**origin, "new": sorted({name.rpartition(".")[0] for name in new})}
    state = {"step": 0, "model": shape, "detector": {}, "source": source}
    if plan.facts is not None:
        state["task"] = plan.facts
    config_yaml = plan.config_yaml or yaml.safe_dump({"model": shape, "source": source}, sort_keys=False)
    weights = {name.removeprefix(PREFIX): tensor for name, tensor in module.state_dict().items()}
    write_checkpoint(out, weights, Extras(config_yaml, state, tokenizer.folder))
    return Conversion(
        out, plan.model, len(converted.used), len(converted.weights), tuple(new), converted.unused, tuple(remarks)
    )
