"""Tiny models of random weights that say different things of different inputs, as runs leave them but written without one.

And a few pictures of the drawn world, with the regions that the packaged detector finds in them.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from unimo_ds.config import FinetuneConfig, ModelSection, dump_config
from unimo_ds.data.store import RegionStore
from unimo_ds.demo.world import WorldConfig, write_world
from unimo_ds.engine.checkpoint_folder import PREFIX, Extras, write_checkpoint
from unimo_ds.extraction import ExtractionPlan, extract_features
from unimo_ds.model.unimo import UnimoModel
from unimo_ds.opening import build_model, head_facts
from unimo_ds.regions import Regions
from unimo_ds.tasks.families import make_task
from unimo_ds.tokenizer import Tokenizer, train_tokenizer

PICTURES = 4


@dataclass(frozen=True)
class SmallWorld:
    """Pictures, their regions, and sets of tasks about them."""

    folder: Path

    @property
    def tokenizer(self) -> Path:
        return self.folder / "tokenizer"

    @property
    def store(self) -> RegionStore:
        return RegionStore(self.folder / "regions")

    @property
    def pictures(self) -> list[Path]:
        return sorted((self.folder / "world/images/val").iterdir())

    @property
    def regions(self) -> list[Regions]:
        return [self.store.get(f"val/{path.name}") for path in self.pictures]

    def task(self, family: str) -> dict[str, Any]:
        """A task whose only dev set is of the pictures; what it would be taught does not matter."""
        world, regions = self.folder / "world", str(self.folder / "regions")
        captions = {"path": str(world / "annotations/captions_val.json"), "regions": regions}
        questions = {
            "questions": str(world / "vqa/v2_OpenEnded_world_val_questions.json"),
            "annotations": str(world / "vqa/v2_world_val_annotations.json"),
            "regions": regions,
            "images": captions["path"],
        }
        sentences = {"path": str(world / "snli_ve/snli_ve_dev.jsonl"), "regions": regions, "images": "val/{}.jpg"}
        files: dict[str, Any] = {"vqa": questions, "entailment": sentences}.get(family, captions)
        task = {"family": family, "train": [files] if family == "vqa" else files, "dev": {"val": files}}
        further = {"vqa": {"answer_count": 1}, "captioning": {"decoding": {"beams": 2, "longest": 8, "shortest": 2}}}
        return {**task, **further.get(family, {})}


def write_small_world(folder: Path) -> SmallWorld:
    """Draws the pictures and finds their regions as `tools/extract_features.py` does."""
    write_world(WorldConfig(train=0, val=PICTURES, alone=0, paragraphs=1), folder / "world")
    extract_features(ExtractionPlan(images=folder / "world/images", out=folder / "regions", workers=0))
    told = json.loads((folder / "world/annotations/captions_val.json").read_text())["annotations"]
    train_tokenizer((each["caption"] for each in told), 400, folder / "tokenizer")
    return SmallWorld(folder)


def write_pretrained(folder: Path, tokenizer: Path, detector: dict[str, Any], width: int, **config: Any) -> Path:
    """A checkpoint of pre-training; `config` are sections of its run."""
    model = _shape(tokenizer, width)
    torch.manual_seed(1)
    return _write(folder, UnimoModel(model).state_dict(), tokenizer, yaml.safe_dump(config), model, detector)


def write_tuned(folder: Path, tokenizer: Path, detector: dict[str, Any], width: int, task: dict[str, Any], **data: Any) -> Path:
    """A checkpoint of a fine-tuning run; `data` is the section of its configuration."""
    sections = {"folder": folder, "init": folder, "task": task, "data": data, "training": {"epochs": 1, "batch_size": 1}}
    config = FinetuneConfig.model_validate(sections)
    made, model = make_task(config.task, Tokenizer(tokenizer)), _shape(tokenizer, width)
    torch.manual_seed(10)  # all three classes of entailment are said
    weights = {name.removeprefix(PREFIX): value for name, value in build_model(made, model).state_dict().items()}
    return _write(folder, weights, tokenizer, dump_config(config), model, detector, task=head_facts(config, made))


def _shape(tokenizer: Path, width: int) -> ModelSection:
    shape = {"size": "tiny", "hidden_size": 32, "layers": 2, "heads": 2, "initializer_range": 0.3, "max_positions": 66}
    return ModelSection.model_validate({**shape, "vocabulary_size": Tokenizer(tokenizer).size, "feature_width": width})


def _write(
    folder: Path,
    weights: dict[str, torch.Tensor],
    tokenizer: Path,
    config: str,
    model: ModelSection,
    detector: dict[str, Any],
    **facts: Any,
) -> Path:
    state = {"step": 0, "model": model.model_dump(mode="json"), "detector": detector, **facts}
    write_checkpoint(folder, weights, Extras(config, state, tokenizer))
    return folder
