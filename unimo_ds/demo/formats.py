"""The published file formats in which the demo world is written: COCO, VQA v2 and SNLI-VE.

Every function returns plain data ready for `json.dumps`. Ids are unique over all splits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from unimo_ds.demo.drawing import HEIGHT, WIDTH
from unimo_ds.demo.entailment import Hypothesis
from unimo_ds.demo.objects import COLOURS, KINDS
from unimo_ds.demo.questions import Question
from unimo_ds.demo.scene import SPLITS, Scene

Json = dict[str, Any]

_LICENSE: Json = {"id": 1, "name": "CC0 1.0", "url": "https://creativecommons.org/publicdomain/zero/1.0/"}
_IDS_PER_SPLIT = 1_000_000
_KIND_IDS = {kind.name: number for number, kind in enumerate(KINDS, start=1)}
_COLOUR_IDS = {colour.name: number for number, colour in enumerate(COLOURS, start=1)}


@dataclass(frozen=True, slots=True)
class Drawn:
    """A scene with what was measured on its picture: the visible box and the number of visible pixels of each thing."""

    scene: Scene
    boxes: tuple[tuple[float, float, float, float], ...]
    areas: tuple[int, ...]


def image_id(scene: Scene) -> int:
    return SPLITS.index(scene.split) * _IDS_PER_SPLIT + scene.index + 1


def image_stem(scene: Scene) -> str:
    """The file name without folder and ending, unique over all splits."""
    return f"{scene.split}_{scene.index:06}"


def file_name(scene: Scene) -> str:
    """Relative to the images folder, as COCO has it."""
    return f"{scene.split}/{image_stem(scene)}.jpg"


def coco_captions(told: Sequence[tuple[Scene, Sequence[str]]]) -> Json:
    return {
        **_coco_head("Captions of the unimo_ds demo world", [scene for scene, _ in told]),
        "annotations": [
            {"id": image_id(scene) * 10 + place, "image_id": image_id(scene), "caption": caption}
            for scene, captions in told
            for place, caption in enumerate(captions)
        ],
    }


def coco_instances(drawn: Sequence[Drawn]) -> Json:
    """COCO instances with `attribute_id` (the colour, from 1) beside `category_id` (the kind, from 1)."""
    return {
        **_coco_head("Objects of the unimo_ds demo world", [item.scene for item in drawn]),
        "annotations": [annotation for item in drawn for annotation in _instances_of(item)],
        "categories": [{"id": number, "name": name, "supercategory": "thing"} for name, number in _KIND_IDS.items()],
        "attributes": [{"id": number, "name": name} for name, number in _COLOUR_IDS.items()],
    }


def vqa_questions(asked: Sequence[tuple[Scene, Sequence[Question]]], split: str) -> Json:
    """The file `v2_OpenEnded_*_questions.json`."""
    return {
        **_vqa_head(split),
        "task_type": "Open-Ended",
        "questions": [
            {"image_id": image_id(scene), "question": question.text, "question_id": _question_id(scene, place)}
            for scene, questions in asked
            for place, question in enumerate(questions)
        ],
    }


def vqa_annotations(asked: Sequence[tuple[Scene, Sequence[Question]]], split: str) -> Json:
    """The file `v2_*_annotations.json`: ten answers a question, the commonest as `multiple_choice_answer`."""
    return {
        **_vqa_head(split),
        "annotations": [
            {
                "question_type": question.kind,
                "multiple_choice_answer": question.answer,
                "answers": [
                    {"answer": answer, "answer_confidence": "yes", "answer_id": number}
                    for number, answer in enumerate(question.answers, start=1)
                ],
                "image_id": image_id(scene),
                "answer_type": question.answer_type,
                "question_id": _question_id(scene, place),
            }
            for scene, questions in asked
            for place, question in enumerate(questions)
        ],
    }


def snli_ve(scene: Scene, premise: str, hypotheses: Sequence[Hypothesis]) -> list[Json]:
    """The lines of SNLI-VE for one picture; `Flickr30K_ID` is the stem of its file name, `sentence1` a caption of it."""
    stem = image_stem(scene)
    return [
        {
            "annotator_labels": [hypothesis.label] * 5,
            "captionID": f"{stem}.jpg#0",
            "gold_label": hypothesis.label,
            "pairID": f"{stem}.jpg#0r{place}{hypothesis.label[0]}",
            "sentence1": premise,
            "sentence2": hypothesis.text,
            "Flickr30K_ID": stem,
        }
        for place, hypothesis in enumerate(hypotheses, start=1)
    ]


def _question_id(scene: Scene, place: int) -> int:
    return image_id(scene) * 1000 + place


def _info(description: str) -> Json:
    return {"description": description, "version": "1.0", "year": 2026, "contributor": "unimo_ds"}


def _coco_head(description: str, scenes: Sequence[Scene]) -> Json:
    size = {"width": WIDTH, "height": HEIGHT, "license": _LICENSE["id"]}
    images = [{"id": image_id(scene), "file_name": file_name(scene), **size} for scene in scenes]
    return {"info": _info(description), "licenses": [_LICENSE], "images": images}


def _vqa_head(split: str) -> Json:
    info = _info("Questions about the unimo_ds demo world")
    license_ = {"name": _LICENSE["name"], "url": _LICENSE["url"]}
    return {"info": info, "license": license_, "data_type": "world", "data_subtype": split}


def _instances_of(item: Drawn) -> list[Json]:
    number = image_id(item.scene)
    return [
        {
            "id": number * 10 + place,
            "image_id": number,
            "category_id": _KIND_IDS[thing.kind],
            "attribute_id": _COLOUR_IDS[thing.colour],
            "bbox": list(box),
            "area": float(area),
            "segmentation": [],
            "iscrowd": 0,
        }
        for place, (thing, box, area) in enumerate(zip(item.scene.things, item.boxes, item.areas, strict=True))
    ]
