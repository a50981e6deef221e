"""Inputs of a run of seconds: random regions in a real store, captions, texts, a trained tokenizer."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from unimo_ds.data.store import RegionStoreWriter, finish_store
from unimo_ds.regions import Regions
from unimo_ds.tokenizer import train_tokenizer

DETECTOR = {"architecture": "none: random numbers", "weights_sha256": "0" * 64, "feature_width": 24, "classes": 19}
_NOUNS = ["cup", "ball", "tree", "house", "fish", "star", "boat", "book", "lamp", "chair"]
COLOURS = ["red", "green", "blue", "white", "black", "brown"]


def write_inputs(folder: Path, images: int = 24, detector: dict[str, Any] = DETECTOR) -> None:
    """A store of random regions, captions that name two things, a text corpus and a tokenizer."""
    rng = np.random.default_rng(0)
    with RegionStoreWriter(folder / "regions", detector) as writer:
        for number in range(images):
            writer.write(f"{number:04}.jpg", random_regions(rng, int(rng.integers(5, 12))))
    finish_store(folder / "regions")
    captions = [
        {
            "id": number,
            "image_id": number // 2,
            "caption": f"A {a_colour(rng)} {a_noun(rng)} is beside a {a_colour(rng)} {a_noun(rng)}.",
        }
        for number in range(2 * images)
    ]
    files = [{"id": number, "file_name": f"{number:04}.jpg"} for number in range(images)]
    (folder / "captions.json").write_text(json.dumps({"images": files, "annotations": captions}))
    texts = [" ".join(f"The {a_noun(rng)} near the {a_noun(rng)} was {a_colour(rng)}." for _ in range(4)) for _ in range(40)]
    (folder / "texts.txt").write_text("\n\n".join(texts))
    train_tokenizer([str(caption["caption"]) for caption in captions] + texts, 400, folder / "tokenizer")


def random_regions(rng: np.random.Generator, count: int, width: int = 24, classes: int = 20, kept: int = 4) -> Regions:
    """An image of 200 x 160 with `count` regions of `width` numbers, each with `kept` of the classes."""
    corners = rng.random((count, 2)) * 100
    sizes = rng.random((count, 2)) * 50 + 5
    return Regions(
        200,
        160,
        np.concatenate([corners, corners + sizes], axis=1).astype("f4"),
        rng.random((count, width)).astype("f2"),
        rng.integers(0, classes, (count, kept)).astype("u2"),
        rng.random((count, kept)).astype("f2"),
        rng.integers(0, 5, count).astype("u2"),
        rng.random(count).astype("f2"),
    )


def a_noun(rng: np.random.Generator) -> str:
    """One of a few things."""
    return str(rng.choice(_NOUNS))


def a_colour(rng: np.random.Generator) -> str:
    """One of a few."""
    return str(rng.choice(COLOURS))


def run_content(inputs: Path, folder: Path) -> dict[str, Any]:
    """The YAML content of a tiny run on `write_inputs`' files: pairs, texts and images in every step.

    Args:
        inputs: where the files are.
        folder: of the run.
    """
    regions = str(inputs / "regions")
    pairs = {"name": "pairs", "kind": "pairs", "format": "coco_captions", "path": str(inputs / "captions.json")}
    texts = {"name": "texts", "kind": "texts", "format": "plain_text", "path": str(inputs / "texts.txt")}
    images = {"name": "images", "kind": "images", "format": "regions", "regions": regions}
    return {
        "folder": str(folder),
        "model": {"size": "tiny", "hidden_size": 32, "layers": 2, "heads": 2},
        "data": {
            "tokenizer": str(inputs / "tokenizer"),
            "prepared": str(inputs / "prepared"),
            "corpora": [
                {**pairs, "regions": regions, "per_step": 6},
                {**texts, "per_step": 3},
                {**images, "per_step": 3},
            ],
            "workers": 0,
        },
        "training": {
            "learning_rate": 2e-4,
            "warmup_steps": 2,
            "precision": "fp32",
            "checkpoint_every": 4,
            "log_every": 1,
            "log_samples": True,
        },
    }


def write_run(content: dict[str, Any], path: Path) -> None:
    """Writes the configuration of a run."""
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
