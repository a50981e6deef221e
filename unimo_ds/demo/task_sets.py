"""Sets of the tasks, made of the drawn world's own files and written in the forms that such sets are published in.

- `captions_*.json`, as COCO: those of the first pictures alone, among which retrieval searches;
- `pairs_*.tsv`, as MNLI: a caption and a statement, which the picture entails, contradicts, or neither;
- `similar_*.tsv`, as STS-B: two captions, and from 0 to 5 how much of what their pictures show is the same;
- `told_*.jsonl`, as Gigaword: four captions of a picture to the fifth;
- `questions_*.json`, as SQuAD: all captions of a picture, and the world's questions about it with their answers.
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from unimo_ds.files import replace_text

_SPLITS = {"train": "train", "val": "dev"}  # of the world; of its SNLI-VE
_PAIRS_A_PICTURE = 2
_QUESTIONED = {"train": 500, "val": 50}  # pictures: to search for a text takes long on a CPU
_FOUND = {"train": 1500, "val": 50}  # pictures: every one is scored with every caption

Things = set[tuple[int, int]]  # kinds with colours


def write_task_sets(world: Path, out: Path) -> None:
    """Writes the sets of both splits.

    Args:
        world: the drawn world, as `tools/draw_world.py` wrote it.
        out: folder.
    """
    out.mkdir(parents=True, exist_ok=True)
    for split, entailment_split in _SPLITS.items():
        captions = _captions(world, split)
        statements = (world / f"snli_ve/snli_ve_{entailment_split}.jsonl").read_text(encoding="utf-8").splitlines()
        replace_text(out / f"captions_{split}.json", json.dumps(_few_captions(world, split)))
        replace_text(out / f"pairs_{split}.tsv", _pairs([json.loads(line) for line in statements]))
        replace_text(out / f"similar_{split}.tsv", _similar(captions, _things(world, split)))
        replace_text(out / f"told_{split}.jsonl", _told(captions))
        replace_text(out / f"questions_{split}.json", json.dumps(_questions(world, split, captions)))


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _few_captions(world: Path, split: str) -> dict[str, Any]:
    content = _read(world / f"annotations/captions_{split}.json")
    images = content["images"][: _FOUND[split]]
    numbers = {image["id"] for image in images}
    return {"images": images, "annotations": [each for each in content["annotations"] if each["image_id"] in numbers]}


def _captions(world: Path, split: str) -> dict[int, list[str]]:
    told: dict[int, list[str]] = defaultdict(list)
    for annotation in _read(world / f"annotations/captions_{split}.json")["annotations"]:
        told[annotation["image_id"]].append(annotation["caption"])
    return told


def _things(world: Path, split: str) -> dict[int, Things]:
    seen: dict[int, Things] = defaultdict(set)
    for annotation in _read(world / f"annotations/instances_{split}.json")["annotations"]:
        seen[annotation["image_id"]].add((annotation["category_id"], annotation["attribute_id"]))
    return seen


def _pairs(statements: list[dict[str, str]]) -> str:
    rows = [f"{each['pairID']}\t{each['sentence1']}\t{each['sentence2']}\t{each['gold_label']}" for each in statements]
    return "\n".join(["index\tsentence1\tsentence2\tgold_label", *rows, ""])


def _similar(captions: dict[int, list[str]], things: dict[int, Things]) -> str:
    """For each picture its own captions, and those of the pictures that come next to it when all are put in a random order."""
    rng, pictures = np.random.default_rng(0), list(captions)
    rows = ["index\tsentence1\tsentence2\tscore"]
    for place, picture in enumerate(rng.permutation(pictures).tolist()):
        for other in (picture, *rng.choice(pictures, _PAIRS_A_PICTURE).tolist()):
            shared, all_things = things[picture] & things[other], things[picture] | things[other]
            first, second = rng.choice(captions[picture]), rng.choice(captions[other])
            rows.append(f"{place}-{other}\t{first}\t{second}\t{5 * len(shared) / max(1, len(all_things)):.2f}")
    return "\n".join([*rows, ""])


def _told(captions: dict[int, list[str]]) -> str:
    rows = [{"source": " ".join(several[:-1]), "target": several[-1]} for several in captions.values() if len(several) > 1]
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def _questions(world: Path, split: str, captions: dict[int, list[str]]) -> dict[str, Any]:
    asked = _read(world / f"vqa/v2_OpenEnded_world_{split}_questions.json")["questions"]
    answers = {
        each["question_id"]: each["multiple_choice_answer"]
        for each in _read(world / f"vqa/v2_world_{split}_annotations.json")["annotations"]
    }
    paragraphs: dict[int, list[dict[str, Any]]] = {picture: [] for picture in list(captions)[: _QUESTIONED[split]]}
    for question in (each for each in asked if each["image_id"] in paragraphs):
        answer = answers[question["question_id"]]
        start = " ".join(captions[question["image_id"]]).find(answer)  # -1: the captions do not say it
        paragraphs[question["image_id"]].append(
            {
                "id": str(question["question_id"]),
                "question": question["question"],
                "answers": [{"text": answer, "answer_start": start}],
            }
        )
    listed = [{"context": " ".join(captions[picture]), "qas": questions} for picture, questions in paragraphs.items()]
    return {"version": "1.1", "data": [{"title": "the drawn world", "paragraphs": listed}]}
