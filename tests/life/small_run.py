"""A run of seconds for the life tests: a real regions store, real captions files, a trained tokenizer, real processes."""

import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tests.helpers import random_regions
from tests.life.ranks import Process, Rank
from unimo_ds.data.store import RegionStoreWriter, finish_store
from unimo_ds.neighbours import write_neighbours
from unimo_ds.rewrites import Rewrite, RewrittenCaption, dump_caption, pair_digest
from unimo_ds.tokenizer import train_tokenizer

ROOT = Path(__file__).parents[2]
DETECTOR = {"architecture": "none: random numbers", "weights_sha256": "0" * 64, "feature_width": 24, "classes": 19}
_NOUNS = ["cup", "ball", "tree", "house", "fish", "star", "boat", "book", "lamp", "chair"]
_COLOURS = ["red", "green", "blue", "white", "black", "brown"]


def write_inputs(folder: Path, images: int = 24) -> None:
    """A store of random regions, captions that name two things, a text corpus and a tokenizer."""
    rng = np.random.default_rng(0)
    with RegionStoreWriter(folder / "regions", DETECTOR) as writer:
        for number in range(images):
            writer.write(f"{number:04}.jpg", random_regions(rng, int(rng.integers(5, 12))))
    finish_store(folder / "regions")
    captions = [
        {
            "id": number,
            "image_id": number // 2,
            "caption": f"A {_colour(rng)} {_noun(rng)} is beside a {_colour(rng)} {_noun(rng)}.",
        }
        for number in range(2 * images)
    ]
    files = [{"id": number, "file_name": f"{number:04}.jpg"} for number in range(images)]
    (folder / "captions.json").write_text(json.dumps({"images": files, "annotations": captions}))
    texts = [" ".join(f"The {_noun(rng)} near the {_noun(rng)} was {_colour(rng)}." for _ in range(4)) for _ in range(40)]
    (folder / "texts.txt").write_text("\n\n".join(texts))
    train_tokenizer([caption["caption"] for caption in captions] + texts, 400, folder / "tokenizer")


def write_candidates(folder: Path) -> None:
    """Rewritten captions of all but the last caption, and neighbours of all: images of the same store, sentences."""
    content = json.loads((folder / "captions.json").read_text())
    names = [image["file_name"] for image in content["images"]]
    captions = [(names[each["image_id"]], each["caption"]) for each in content["annotations"]]
    lines = []
    for number, (image, text) in enumerate(captions[:-1]):
        colour = text.split()[1]
        other = next(each for each in _COLOURS if each not in text)
        negatives = [
            Rewrite(text.replace(colour, other, 1), "word", f"attribute: {colour} -> {other}", (2, 2 + len(other))),
            Rewrite(f"A {other} star is beside a {other} boat.", "phrase", "phrase"),
            Rewrite(captions[(number + 7) % len(captions)][1], "sentence", "a caption of another image"),
        ]
        positives = (Rewrite(text.replace("is beside", "stands beside"), "sentence", "said again"),) if number % 2 else ()
        lines.append(dump_caption(RewrittenCaption(image, text, positives, tuple(negatives))))
    (folder / "rewrites").mkdir(exist_ok=True)
    (folder / "rewrites/rewrites-00000-of-00001.jsonl").write_text("".join(lines))
    rng = np.random.default_rng(1)
    sentences = [f"The {_noun(rng)} is {_colour(rng)}." for _ in range(20)]
    rows = {
        "pairs": np.array([pair_digest(*caption) for caption in captions], np.uint64),
        "pair_images": np.array([names.index(image) for image, _ in captions]),
        "image_rows": (np.arange(len(names))[:, None] + np.arange(1, 4)) % len(names),
        "image_scores": np.zeros((len(names), 3)),
        "text_rows": rng.integers(0, len(sentences), (len(captions), 2)),
        "text_scores": np.zeros((len(captions), 2)),
    }
    found = [(0, name) for name in names]
    write_neighbours(folder / "neighbours", {"stores": [str(folder / "regions")]}, rows, found, sentences)


def _noun(rng: np.random.Generator) -> str:
    return str(rng.choice(_NOUNS))


def _colour(rng: np.random.Generator) -> str:
    return str(rng.choice(_COLOURS))


def write_config(folder: Path, run: str, candidates: bool = False, **training: Any) -> Path:
    """The YAML of a run named `run` on the inputs in `folder`, if wanted with what `write_candidates` wrote."""
    corpora = [
        {
            "name": "pairs",
            "kind": "pairs",
            "format": "coco_captions",
            "path": "captions.json",
            "regions": "regions",
            "per_step": 6,
        },
        {"name": "texts", "kind": "texts", "format": "plain_text", "path": "texts.txt", "per_step": 3},
        {"name": "images", "kind": "images", "format": "regions", "regions": "regions", "per_step": 3},
    ]
    for corpus in corpora:
        corpus.update({key: str(folder / str(corpus[key])) for key in ("path", "regions") if key in corpus})
    if candidates:
        corpora[0].update({key: str(folder / key) for key in ("rewrites", "neighbours")})
    content = {
        "folder": str(folder / run),
        "model": {"size": "tiny", "hidden_size": 32, "layers": 2, "heads": 2},
        "data": {
            "tokenizer": str(folder / "tokenizer"),
            "prepared": str(folder / "prepared"),
            "corpora": corpora,
            "workers": 0,
        },
        "training": {
            "steps": 12,
            "learning_rate": 2e-4,
            "warmup_steps": 2,
            "precision": "fp32",
            "deepspeed": str(ROOT / "ds_configs/cpu.json"),
            "checkpoint_every": 4,
            "log_every": 1,
            "log_samples": True,
            **training,
        },
    }
    path = folder / f"{run}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def flip_a_byte(database: Path, inside: bytes) -> None:
    """Changes one byte of a record of an LMDB file, wherever a copy of it stands: LMDB leaves old pages behind."""
    content = bytearray(database.read_bytes())
    place = content.find(inside)
    assert place >= 0
    while place >= 0:
        content[place + 7] ^= 4
        place = content.find(inside, place + 1)
    database.write_bytes(bytes(content))


def environment() -> dict[str, str]:
    """Of a child process: one thread, no ranks of its own."""
    dropped = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    kept = {key: value for key, value in os.environ.items() if key not in dropped and not key.startswith("SLURM_")}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_ranks(module: str, world: int, *words: str) -> list[Rank]:
    """Starts the ranks of a module as a launcher would, with torchrun's variables, each in a process group of its own."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world)}
    ranks = []
    for rank in range(world):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world)}
        ranks.append(Rank(module, words, {**environment(), **meeting, **own}, ROOT))
    return ranks


def start(config: Path, world: int, *overrides: str, module: str = "unimo_ds.pretrain") -> list[Rank]:
    """Starts the ranks of a run."""
    return start_ranks(module, world, str(config), *overrides)


def finish(processes: Sequence[Process], timeout: float = 240) -> list[str]:
    """Waits for all; their outputs."""
    return [process.communicate(timeout=timeout)[0] for process in processes]


def run_ranks(module: str, world: int, *words: str) -> list[str]:
    """Runs a module on some ranks to the end; the outputs of the ranks.

    Raises:
        AssertionError: a rank failed, with what it printed.
    """
    processes = start_ranks(module, world, *words)
    outputs = finish(processes)
    assert all(process.returncode == 0 for process in processes), "\n".join(outputs)
    return outputs


def run(config: Path, world: int, *overrides: str, module: str = "unimo_ds.pretrain") -> list[str]:
    """Runs to the end (`run_ranks`)."""
    return run_ranks(module, world, str(config), *overrides)


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The step lines of a run's metrics."""
    path = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []
    return [line for line in lines if "loss" in line]


def losses(folder: Path) -> list[dict[str, float]]:
    """What must not change between runs, step by step."""
    kept = ("step", "samples", "loss", "loss/mlm", "loss/seq2seq", "loss/mrfr", "loss/mrc", "loss/cmcl", "lr", "grad_norm")
    return [{key: line[key] for key in kept} for line in metrics(folder)]


def samples(folder: Path) -> dict[int, list[tuple[int, int]]]:
    """For each step the sorted `(corpus, draw)` of all ranks."""
    steps: dict[int, list[tuple[int, int]]] = {}
    for path in sorted(folder.glob("samples-rank*.jsonl")):
        for line in path.read_text().splitlines():
            content = json.loads(line)
            steps.setdefault(content["step"], []).extend((corpus, draw) for corpus, draw, _ in content["samples"])
    return {step: sorted(drawn) for step, drawn in sorted(steps.items())}
