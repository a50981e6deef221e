"""An image and a question to an answer: VQA v2 (unimo-spec, 7.6).

The paper says nothing of its recipe; this is UNITER's (arXiv:1909.11740): the commonest answers of the training annotations are
classes, each with the soft score that the official accuracy would give it, and the loss is a binary cross-entropy, summed over
the answers. The pooled image and text are multiplied, as for matching.

Shape suffixes: see `unimo_ds.batch`; B examples, C answers, K kept answers.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimo_ds.batch import Batch
from unimo_ds.config import ModelSection, VqaFiles, VqaSection
from unimo_ds.data.packing import Floats, Packer
from unimo_ds.data.prepared import Rejects
from unimo_ds.data.store import RegionStore
from unimo_ds.errors import DataError
from unimo_ds.files import read_json, text_of
from unimo_ds.metrics.answers import normalize_vqa_answer, vqa_accuracy, vqa_soft_targets
from unimo_ds.model.task_heads import AnswerHead
from unimo_ds.model.unimo import UnimoModel
from unimo_ds.tasks.classification import add_pair
from unimo_ds.tasks.files import number_or_name
from unimo_ds.tasks.task import Example, Judged, Task, Tokens

_KEPT = 10  # likeliest answers to a question


class Vqa(Task[VqaFiles]):
    """VQA v2 with a vocabulary of answers.

    Args:
        answers: the classes, normalised.
    """

    heads = ("text_pooler", "image_pooler")
    chosen_by = "accuracy"
    ending = ".json"

    def __init__(self, answers: Sequence[str]) -> None:
        self._answers = tuple(answers)
        self._numbers = {answer: number for number, answer in enumerate(answers)}

    @property
    def facts(self) -> dict[str, Any]:
        return {"answers": list(self._answers)}

    @property
    def score_names(self) -> Sequence[str]:
        return self._answers

    def read(self, files: VqaFiles, rejects: Rejects, teach: bool) -> Iterator[Example]:
        store, key_of = RegionStore(files.regions), _key_of(files.images)
        answers = _answers_of(files.annotations, rejects) if files.annotations is not None else None
        for place, question in enumerate(read_json(files.questions, "questions")["questions"]):
            try:
                yield self._example(question, store, key_of, answers)
            except ValueError as error:
                rejects(f"{files.questions}: questions[{place}]: {error}")

    def _example(self, question: Any, store: RegionStore, key_of: Any, answers: dict[int, list[str]] | None) -> Example:
        text, name, image = text_of(question, "question"), question.get("question_id"), key_of(question.get("image_id"))
        if image not in store:
            raise ValueError(f"image {image!r} has no regions in {store.folder}")
        if answers is not None and name not in answers:
            raise ValueError(f"question_id {name!r} has no annotation")
        return Example(str(name), (text,), image, store, None if answers is None else answers[name])

    def build_head(self, model: ModelSection) -> nn.Module:
        return AnswerHead(model, len(self._answers))

    def add(self, packer: Packer, example: Example, tokens: Tokens, number: int) -> None:
        add_pair(packer, example, tokens, number)

    def targets(self, examples: Sequence[Example]) -> Tensor:
        targets_BC = torch.zeros(len(examples), len(self._answers))
        for row, example in enumerate(examples):
            for answer, score in vqa_soft_targets(example.label).items() if example.label else ():
                if answer in self._numbers:
                    targets_BC[row, self._numbers[answer]] = score
        return targets_BC

    def output(self, unimo: UnimoModel, head: nn.Module, batch: Batch) -> Tensor:
        image_BD, text_BD = unimo.pooled(batch)
        scores_BC: Tensor = head(text_BD * image_BD)
        return scores_BC

    def answers(self, unimo: UnimoModel, head: nn.Module, batch: Batch) -> Iterable[Any]:
        """The likeliest answers to each question with their probabilities, float32 [B, 2, K], the best first.

        A set has hundreds of thousands of questions: the scores of thousands of answers to each would fill the memory.
        """
        best = self.output(unimo, head, batch).sigmoid().topk(min(_KEPT, len(self._answers)))
        found: Floats = torch.stack([best.indices.float(), best.values], dim=1).cpu().numpy()
        return found

    def losses(self, output: Tensor, targets: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(output, targets, reduction="none").sum(1)

    def score(self, answers: Sequence[Any], examples: Sequence[Example]) -> dict[str, float]:
        return {"accuracy": vqa_accuracy(self._chosen(answers), [example.label for example in examples])}

    def judge(self, answers: Sequence[Any], examples: Sequence[Example]) -> list[Judged]:
        """The soft score of each answer, ordered by the probability of the one that most annotators gave."""
        return [
            self._judge(best_2K, chosen, example.label)
            for best_2K, chosen, example in zip(answers, self._chosen(answers), examples, strict=True)
        ]

    def _judge(self, best_2K: Floats, chosen: str, given: list[str]) -> Judged:
        counts = Counter(map(normalize_vqa_answer, given)).most_common()
        truth = ", ".join(f"{answer} ({count} of {len(given)})" for answer, count in counts)
        kept = dict(zip(*best_2K.tolist(), strict=True))
        belief = kept.get(self._numbers.get(counts[0][0]), 0.0)  # none of the likeliest, or too rare to be a class
        return Judged(chosen, truth, vqa_accuracy([chosen], [given]), belief)

    def predictions(self, answers: Sequence[Any], examples: Sequence[Example]) -> str:
        """The file that the VQA challenge takes."""
        pairs = zip(examples, self._chosen(answers), strict=True)
        return json.dumps([{"question_id": number_or_name(example.name), "answer": answer} for example, answer in pairs])

    def likeliest(self, answer: Any) -> list[tuple[str, float]]:
        """The best answers to a question with their probabilities, the likeliest first; `answer` as `answers` gives it."""
        return [(self._answers[int(number)], probability) for number, probability in zip(*answer.tolist(), strict=True)]

    def _chosen(self, answers: Sequence[Any]) -> list[str]:
        return [self._answers[int(best_2K[0, 0])] for best_2K in answers]


def common_answers(section: VqaSection) -> list[str]:
    """The answers that training questions have as their commonest one often enough, the most frequent first.

    Raises:
        DataError: a file cannot be read, or no answer is given so often.
    """
    counts: Counter[str] = Counter()
    for files in section.train:
        if files.annotations is None:
            raise DataError(f"task.train: {files.questions} has no annotations; answers are learned from them")
        for annotation in read_json(files.annotations, "annotations")["annotations"]:
            if isinstance(annotation, dict) and isinstance(annotation.get("multiple_choice_answer"), str):
                counts[normalize_vqa_answer(annotation["multiple_choice_answer"])] += 1
    found = [answer for answer, count in counts.items() if count >= section.answer_count]
    if not found:
        raise DataError(f"task.answer_count = {section.answer_count}: no answer of task.train is given so often; lower it")
    return sorted(found, key=lambda answer: (-counts[answer], answer))


def _answers_of(path: Path, rejects: Rejects) -> dict[int, list[str]]:
    """The ten human answers to each question."""
    found: dict[int, list[str]] = {}
    for place, annotation in enumerate(read_json(path, "annotations")["annotations"]):
        try:
            answers = [text_of(answer, "answer") for answer in annotation["answers"]]
            if not answers:
                raise ValueError("'answers' is empty")
            found[int(annotation["question_id"])] = answers
        except (KeyError, TypeError, ValueError) as error:
            rejects(f"{path}: annotations[{place}]: {error}")
    return found


def _key_of(images: str | Path) -> Any:
    """A function from an image's number to its key in the regions store.

    Raises:
        DataError: the listing cannot be read.
    """
    template = str(images)
    if "{" in template:
        return template.format
    try:
        listed = {image["id"]: image["file_name"] for image in read_json(Path(template), "images")["images"]}
    except (KeyError, TypeError) as error:
        raise DataError(f"{template}: an image of its list `images` lacks id or file_name ({error})") from error
    return lambda number: listed.get(number, f"number {number}, which {template} does not list")
