"""Small sets of every family in the published formats, that can be learned: the noun of a text, or an image, says the label.

An image's regions all point the way of its noun, so that image and text of one noun fit each other.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save_file

from tests.helpers import random_regions
from tests.life.small_run import DETECTOR, ROOT
from unimo_ds.config import ModelSection
from unimo_ds.data.store import RegionStoreWriter, finish_store
from unimo_ds.model.unimo import UnimoModel
from unimo_ds.tokenizer import Tokenizer, train_tokenizer

NOUNS = ("cup", "ball", "tree", "house")
ANSWERS = ("red", "blue", "green", "white")
CLASSES = ("entailment", "contradiction", "neutral")
IMAGES = 32


@dataclass(frozen=True)
class Inputs:
    """Where the inputs lie."""

    folder: Path

    @property
    def checkpoint(self) -> Path:
        """A model of random weights, as pre-training leaves it."""
        return self.folder / "pretrained"

    def config(self, run: str, task: dict[str, Any], **training: Any) -> Path:
        """The YAML of a run."""
        content = {
            "folder": str(self.folder / run),
            "init": str(self.checkpoint),
            "task": task,
            "data": {"workers": 0},
            "training": {
                "epochs": 6,
                "batch_size": 16,
                "learning_rate": 2e-3,
                "precision": "fp32",
                "deepspeed": str(ROOT / "ds_configs/cpu.json"),
                "log_every": 1,
                **training,
            },
        }
        path = self.folder / f"{run}.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    def sentences(self) -> dict[str, Any]:
        """A task of classes."""
        files = {name: {"path": str(self.folder / f"{name}.tsv")} for name in ("train", "dev")}
        labels = [str(number) for number in range(len(NOUNS))]
        return {
            "family": "sentences",
            "labels": labels,
            "metric": "accuracy",
            "train": files["train"],
            "dev": {"dev": files["dev"]},
        }

    def similarity(self) -> dict[str, Any]:
        """A task of numbers, about two sentences of which the first says it."""
        files = {name: {"path": str(self.folder / f"similar_{name}.tsv")} for name in ("train", "dev")}
        return {"family": "sentences", "metric": "correlation", "train": files["train"], "dev": {"dev": files["dev"]}}

    def entailment(self) -> dict[str, Any]:
        """Whether a sentence is true of an image."""
        files = {
            name: {"path": str(self.folder / f"entailment_{name}.jsonl"), "regions": str(self.folder / "regions")}
            for name in ("train", "dev")
        }
        return {"family": "entailment", "train": files["train"], "dev": {"dev": files["dev"]}}

    def vqa(self) -> dict[str, Any]:
        """Questions about the colour that an image's noun has."""
        files = {
            name: {
                "questions": str(self.folder / f"{name}_questions.json"),
                "annotations": str(self.folder / f"{name}_annotations.json"),
                "regions": str(self.folder / "regions"),
                "images": "{}.jpg",
            }
            for name in ("train", "dev")
        }
        return {"family": "vqa", "train": [files["train"]], "dev": {"dev": files["dev"]}}

    def retrieval(self) -> dict[str, Any]:
        """Captions, each of one noun, of which there is one image."""
        files = {
            name: {"path": str(self.folder / f"{name}_flickr.json"), "splits": [name], "regions": str(self.folder / "regions")}
            for name in ("train", "dev")
        }
        return {"family": "retrieval", "negatives": 3, "train": files["train"], "dev": {"dev": files["dev"]}}

    def captioning(self) -> dict[str, Any]:
        """A caption names an image's noun and its colour."""
        files = {
            name: {"path": str(self.folder / f"{name}_captions.json"), "regions": str(self.folder / "regions")}
            for name in ("train", "dev")
        }
        decoding = {"beams": 3, "longest": 12, "shortest": 2}
        return {"family": "captioning", "train": files["train"], "dev": {"dev": files["dev"]}, "decoding": decoding}

    def writing(self) -> dict[str, Any]:
        """The colour that belongs to the noun of a sentence, in a sentence."""
        files = {name: {"path": str(self.folder / f"writing_{name}.jsonl")} for name in ("train", "dev")}
        task = {"family": "writing", "metric": "rouge", "train": files["train"], "dev": {"dev": files["dev"]}}
        return {**task, "decoding": {"beams": 2, "longest": 10}}

    def dialogue(self) -> dict[str, Any]:
        """The colour that belongs to the noun of a story, asked for twice."""
        files = {name: {"path": str(self.folder / f"dialogue_{name}.json")} for name in ("train", "dev")}
        task = {"family": "dialogue", "train": files["train"], "dev": {"dev": files["dev"]}}
        return {**task, "decoding": {"beams": 2, "longest": 6, "length_penalty": 0.0}}


def write_inputs(folder: Path) -> Inputs:
    """Files, a regions store, a tokenizer and a checkpoint of random weights."""
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(len(NOUNS), DETECTOR["feature_width"]))
    with RegionStoreWriter(folder / "regions", DETECTOR) as writer:
        for number in range(IMAGES):
            regions = random_regions(rng, int(rng.integers(3, 7)))
            regions.features_RF[:] = directions[number % len(NOUNS)] + 0.1 * rng.normal(size=regions.features_RF.shape)
            writer.write(f"{number}.jpg", regions)
    finish_store(folder / "regions")
    for name, count in (("train", 64), ("dev", 20)):
        _write_set(folder, name, count, rng)
    train_tokenizer(
        [
            f"A {noun} is {answer}. What colour is the? It is {answer}. The {noun} is here."
            for noun in NOUNS
            for answer in ANSWERS
        ],
        300,
        folder / "tokenizer",
    )
    _write_checkpoint(folder / "pretrained", folder / "tokenizer")
    return Inputs(folder)


def _write_set(folder: Path, name: str, count: int, rng: np.random.Generator) -> None:
    nouns = rng.integers(len(NOUNS), size=count)
    others = rng.integers(len(NOUNS), size=count)
    images = [int(noun + len(NOUNS) * rng.integers(IMAGES // len(NOUNS))) for noun in nouns]
    rows = [f"The {NOUNS[noun]} is {rng.choice(ANSWERS)}.\t{noun}" for noun in nouns]
    (folder / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
    rows = [f"{n}\tA {NOUNS[a]}.\tA {NOUNS[b]}.\t{1.5 * a}" for n, (a, b) in enumerate(zip(nouns, others, strict=True))]
    (folder / f"similar_{name}.tsv").write_text("\n".join(["index\tsentence1\tsentence2\tscore", *rows]) + "\n")
    said = [
        (image, NOUNS[noun if n % 2 else (noun + 1) % len(NOUNS)], n % 2)
        for n, (image, noun) in enumerate(zip(images, nouns, strict=True))
    ]
    objects = [
        {"Flickr30K_ID": str(image), "sentence2": f"A {noun}.", "pairID": f"{n}", "gold_label": CLASSES[0 if true else 1]}
        for n, (image, noun, true) in enumerate(said)
    ]
    (folder / f"entailment_{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in objects))
    questions = [
        {"question_id": n, "image_id": image, "question": "What colour is the thing?"} for n, image in enumerate(images)
    ]
    annotations = [
        {
            "question_id": n,
            "image_id": image,
            "multiple_choice_answer": ANSWERS[noun],
            "answers": [{"answer": ANSWERS[noun] if k < 8 else "grey", "answer_id": k + 1} for k in range(10)],
        }
        for n, (image, noun) in enumerate(zip(images, nouns, strict=True))
    ]
    listed = [{"id": image, "file_name": f"{image}.jpg"} for image in sorted(set(images))]
    told = [
        {"image_id": image, "caption": f"A {NOUNS[image % len(NOUNS)]} is {ANSWERS[image % len(NOUNS)]}."} for image in images
    ]
    # One image of each noun, so that all others are truly others.
    said_of = ("The {}.", "A {}.", "The {} is here.", "A {} is here.", "What colour is the {}?", "A {} is.")
    flickr = [
        {
            "imgid": image,
            "filename": f"{image}.jpg",
            "split": name,
            "sentences": [{"raw": words.format(NOUNS[noun])} for words in (said_of if name == "train" else said_of[:1])],
        }
        for noun, image in {image % len(NOUNS): image for image in images}.items()
    ]
    (folder / f"{name}_flickr.json").write_text(json.dumps({"images": flickr, "dataset": "flickr30k"}))
    (folder / f"{name}_captions.json").write_text(json.dumps({"images": listed, "annotations": told}))
    texts = [{"source": f"The {NOUNS[noun]} is here.", "target": f"It is {ANSWERS[noun]}."} for noun in nouns]
    (folder / f"writing_{name}.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    stories = [_story(n, noun) for n, noun in enumerate(nouns[: count // 2])]
    (folder / f"dialogue_{name}.json").write_text(json.dumps({"version": "1.0", "data": stories}))
    (folder / f"{name}_questions.json").write_text(json.dumps({"questions": questions}))
    (folder / f"{name}_annotations.json").write_text(json.dumps({"annotations": annotations}))


def _story(number: int, noun: int) -> dict[str, Any]:
    """A story and two turns, both about the colour."""
    questions = [{"turn_id": 1, "input_text": "What colour is it?"}, {"turn_id": 2, "input_text": "Sure?"}]
    answers = [{"turn_id": turn, "input_text": ANSWERS[noun]} for turn in (1, 2)]
    return {"id": f"story {number}", "story": f"A {NOUNS[noun]}.", "questions": questions, "answers": answers}


def _write_checkpoint(folder: Path, tokenizer: Path) -> None:
    (folder / "tokenizer").mkdir(parents=True)
    for file in ("vocab.json", "merges.txt"):
        (folder / "tokenizer" / file).write_bytes((tokenizer / file).read_bytes())
    shape = {"size": "tiny", "hidden_size": 32, "layers": 2, "heads": 2, "dropout": 0.0, "attention_dropout": 0.0}
    facts = {"vocabulary_size": Tokenizer(tokenizer).size, "feature_width": DETECTOR["feature_width"], "region_classes": 20}
    model = ModelSection.model_validate({**shape, **facts})
    torch.manual_seed(0)
    save_file(UnimoModel(model).state_dict(), folder / "model.safetensors")
    state = {"step": 1, "model": model.model_dump(mode="json"), "detector": DETECTOR}
    (folder / "state.json").write_text(json.dumps(state))
