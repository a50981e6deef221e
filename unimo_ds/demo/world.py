"""Draws the demo world into a folder, with everything that a run needs and a download would otherwise bring.

OUT/images/{train,val,alone}/{split}_000000.jpg    pictures; those of `alone` have no captions
OUT/annotations/captions_{train,val}.json          COCO captions
OUT/annotations/instances_{train,val,alone}.json   COCO instances, to train the detector
OUT/vqa/v2_OpenEnded_world_{split}_questions.json  VQA v2 of train, val and val_knowledge, whose questions name
OUT/vqa/v2_world_{split}_annotations.json          things by what only the texts know of them
OUT/snli_ve/snli_ve_{train,dev}.jsonl              SNLI-VE
OUT/statements/{held_out,knowledge}_val.jsonl      true statements beside false ones (statements.py), as rewrites.py has them
OUT/text/{corpus,held_out}.txt                     texts without pictures, to train and to test
OUT/text/knowledge.json                            the facts that they tell
OUT/world.json                                     the manifest, written last
"""

import hashlib
import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from unimo_ds.demo import drawing, entailment, formats, grammar, knowledge, statements
from unimo_ds.demo import questions as asking
from unimo_ds.demo.formats import Drawn, Json
from unimo_ds.demo.questions import Question
from unimo_ds.demo.scene import SPLITS, Scene, compose, generator
from unimo_ds.errors import ConfigError
from unimo_ds.progress import Progress
from unimo_ds.rewrites import dump_caption

VERSION = 2
"""Raised whenever equal settings would draw or say something else than before."""

_QUESTION_SETS: tuple[tuple[str, str, Callable[[Scene, np.random.Generator], list[Question]]], ...] = (
    ("train", "train", asking.questions),
    ("val", "val", asking.questions),
    ("val_knowledge", "val", asking.knowledge_questions),
)
"""Name, split and author of each pair of VQA files."""

_HELD_OUT_PARAGRAPHS = 150
_MOST_A_SPLIT = 999_999
"""File names count with six digits, image ids leave as much room."""


@dataclass(frozen=True, slots=True)
class WorldConfig:
    """What is drawn: the number of pictures of each split and of paragraphs of text; equal settings give equal files."""

    train: int = 1500
    val: int = 200
    alone: int = 300
    paragraphs: int = 1200
    seed: int = 1

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 <= value <= _MOST_A_SPLIT:
                raise ConfigError(f"world {name} is {value}; allowed are 0 to {_MOST_A_SPLIT:,}")


@dataclass(frozen=True, slots=True)
class _Job:
    seed: int
    split: str
    index: int
    out: Path


def write_world(config: WorldConfig, out: Path, workers: int = 1) -> Json:
    """Draws the world into `out` and returns its manifest; a whole world with equal settings is kept as it is.

    With more than one worker the caller's main module must be importable (`if __name__ == "__main__"`): processes are
    spawned, because a caller may already run the threads of torch, which a fork would leave broken.
    """
    manifest_file = out / "world.json"
    found = _finished_world(config, out)
    if found is not None:
        return found
    manifest_file.unlink(missing_ok=True)
    _clear_pictures(out)
    drawn = _draw_all(config, out, workers)
    scenes = {split: [item.scene for item in items] for split, items in drawn.items()}
    files = {
        **_annotations(drawn, scenes),
        **_vqa(scenes),
        "snli_ve/snli_ve_train.jsonl": _snli_ve(scenes["train"]),
        "snli_ve/snli_ve_dev.jsonl": _snli_ve(scenes["val"]),
        "statements/held_out_val.jsonl": "".join(
            dump_caption(statement) for scene in scenes["val"] for statement in statements.held_out(scene)
        ),
        "statements/knowledge_val.jsonl": "".join(map(dump_caption, statements.knowledge(scenes["val"]))),
        "text/corpus.txt": knowledge.corpus(config.seed, config.paragraphs),
        "text/held_out.txt": knowledge.corpus(config.seed, _HELD_OUT_PARAGRAPHS, held_out=True),
        "text/knowledge.json": _dump(knowledge.fact_table()),
    }
    manifest: Json = {
        "version": VERSION,
        "config": asdict(config),
        "counts": {f"images/{split}": len(items) for split, items in scenes.items()},
        "sha256": {name: _write(out / name, text) for name, text in files.items()},
    }
    _write(manifest_file, json.dumps(manifest, indent=2) + "\n")
    return manifest


# --- what is there already -------------------------------------------------------------------------------------------


def _finished_world(config: WorldConfig, out: Path) -> Json | None:
    """The manifest in `out` if it is of these settings and all that it lists is there unchanged."""
    manifest_file = out / "world.json"
    if not manifest_file.is_file():
        return None
    manifest: Json = json.loads(manifest_file.read_text(encoding="utf-8"))
    if manifest.get("version") != VERSION or manifest.get("config") != asdict(config):
        return None
    pictures_there = all(len(list((out / folder).glob("*.jpg"))) == count for folder, count in manifest["counts"].items())
    return manifest if pictures_there and all(_unchanged(out / name, sha) for name, sha in manifest["sha256"].items()) else None


def _unchanged(path: Path, sha256: str) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256


def _clear_pictures(out: Path) -> None:
    """Removes the pictures of an earlier, perhaps larger, world; only files that have a world's names."""
    for split in SPLITS:
        folder = out / "images" / split
        folder.mkdir(parents=True, exist_ok=True)
        for picture in folder.glob(f"{split}_[0-9]*.jpg"):
            picture.unlink()


# --- pictures --------------------------------------------------------------------------------------------------------


def _draw_all(config: WorldConfig, out: Path, workers: int) -> dict[str, list[Drawn]]:
    counts = {"train": config.train, "val": config.val, "alone": config.alone}
    jobs = [_Job(config.seed, split, index, out) for split in SPLITS for index in range(counts[split])]
    drawn: dict[str, list[Drawn]] = {split: [] for split in SPLITS}
    with Progress("drawing the world", len(jobs), "pictures") as progress:
        for item in _drawn(jobs, workers):
            drawn[item.scene.split].append(item)
            progress.advance()
    return drawn


def _drawn(jobs: Sequence[_Job], workers: int) -> Iterator[Drawn]:
    if workers <= 1:
        yield from map(_draw, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(_draw, jobs, chunksize=32)


def _draw(job: _Job) -> Drawn:
    """Composes and paints one scene, saves its picture and measures what is seen on it."""
    scene = compose(job.seed, job.split, job.index)
    picture, owners = drawing.draw(scene.background, scene.things, _generator(scene, "pixels"))
    picture.save(job.out / "images" / formats.file_name(scene), quality=90)
    places = range(len(scene.things))
    areas = np.bincount(owners.ravel(), minlength=len(places) + 1)
    boxes = tuple(drawing.visible_box(owners, place) for place in places)
    return Drawn(scene, boxes, tuple(int(areas[place + 1]) for place in places))


# --- what is said about them -----------------------------------------------------------------------------------------


def _generator(scene: Scene, purpose: str) -> np.random.Generator:
    return generator(scene.seed, scene.split, scene.index, purpose)


def _captions(scene: Scene) -> list[str]:
    return grammar.captions(scene, _generator(scene, "captions"))


def _annotations(drawn: dict[str, list[Drawn]], scenes: dict[str, list[Scene]]) -> dict[str, str]:
    files = {f"annotations/instances_{split}.json": _dump(formats.coco_instances(items)) for split, items in drawn.items()}
    for split in ("train", "val"):
        told = [(scene, _captions(scene)) for scene in scenes[split]]
        files[f"annotations/captions_{split}.json"] = _dump(formats.coco_captions(told))
    return files


def _vqa(scenes: dict[str, list[Scene]]) -> dict[str, str]:
    files: dict[str, str] = {}
    for name, split, ask in _QUESTION_SETS:
        asked = [(scene, ask(scene, _generator(scene, "questions"))) for scene in scenes[split]]
        files[f"vqa/v2_OpenEnded_world_{name}_questions.json"] = _dump(formats.vqa_questions(asked, name))
        files[f"vqa/v2_world_{name}_annotations.json"] = _dump(formats.vqa_annotations(asked, name))
    return files


def _snli_ve(scenes: Sequence[Scene]) -> str:
    lines = [
        line
        for scene in scenes
        for line in formats.snli_ve(scene, _captions(scene)[0], entailment.hypotheses(scene, _generator(scene, "entailment")))
    ]
    return "".join(f"{json.dumps(line)}\n" for line in lines)


def _dump(data: object) -> str:
    return json.dumps(data) + "\n"


def _write(path: Path, text: str) -> str:
    """Writes a text file and returns the sha256 of its bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text.encode("utf-8")
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()
