"""A run of seconds for the life tests: a real regions store, real captions files, a trained tokenizer, real processes."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.life.ranks import Process, Rank
from unimo_ds.chaos.inputs import COLOURS, a_colour, a_noun, run_content, write_run
from unimo_ds.chaos.inputs import DETECTOR as DETECTOR
from unimo_ds.chaos.inputs import write_inputs as write_inputs
from unimo_ds.chaos.lives import free_port as free_port
from unimo_ds.chaos.verdicts import read_samples
from unimo_ds.neighbours import write_neighbours
from unimo_ds.rewrites import Rewrite, RewrittenCaption, dump_caption, pair_digest

ROOT = Path(__file__).parents[2]


def write_candidates(folder: Path) -> None:
    """Rewritten captions of all but the last caption, and neighbours of all: images of the same store, sentences."""
    content = json.loads((folder / "captions.json").read_text())
    names = [image["file_name"] for image in content["images"]]
    captions = [(names[each["image_id"]], each["caption"]) for each in content["annotations"]]
    lines = []
    for number, (image, text) in enumerate(captions[:-1]):
        colour = text.split()[1]
        other = next(each for each in COLOURS if each not in text)
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
    sentences = [f"The {a_noun(rng)} is {a_colour(rng)}." for _ in range(20)]
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


def write_config(folder: Path, run: str, candidates: bool = False, **training: Any) -> Path:
    """The YAML of a run named `run` on the inputs in `folder`, if wanted with what `write_candidates` wrote."""
    content = run_content(folder, folder / run)
    if candidates:
        content["data"]["corpora"][0].update({key: str(folder / key) for key in ("rewrites", "neighbours")})
    content["training"].update({"steps": 12, "deepspeed": str(ROOT / "ds_configs/cpu.json"), **training})
    path = folder / f"{run}.yaml"
    write_run(content, path)
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
    steps = sorted(read_samples(folder).items())
    return {step: sorted((corpus, draw) for corpus, draw, _ in drawn) for step, drawn in steps}
