"""One or two sentences to a class or a number: SST-2, CoLA, MNLI with AX, STS-B (unimo-spec, 7.1).

Files are tab-separated, without quoting: as the GLUE benchmark gives them, or as the original release has them (`text_a`,
`text_b`, `label`, `qid`). Columns are found by the names in the first line; CoLA's training and dev files have none.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unimo_ds.batch import Batch
from unimo_ds.config import ModelSection, SentenceFiles, SentencesSection
from unimo_ds.data.packing import Packer
from unimo_ds.data.prepared import Rejects
from unimo_ds.errors import DataError
from unimo_ds.metrics.classification import accuracy, matthews_correlation, pearson_correlation, spearman_correlation
from unimo_ds.model.task_heads import SentenceHead
from unimo_ds.model.unimo import UnimoModel
from unimo_ds.tasks.classification import Classes, add_text
from unimo_ds.tasks.files import lines
from unimo_ds.tasks.task import Example, Judged, Task, Tokens

_TEXTS = (("text_a", "text_b"), ("sentence1", "sentence2"), ("question", "sentence"), ("premise", "hypothesis"))
_ALONE = ("text_a", "sentence")
_LABELS = ("gold_label", "label", "score")  # MNLI has columns of single annotators beside `gold_label`
_NAMES = ("qid", "index", "id")
_COLA = {"label": 1, "sentence": 3}  # its columns in files without names


class Sentences(Task[SentenceFiles]):
    """A task of sentences."""

    heads = ("text_pooler",)
    ending = ".tsv"

    def __init__(self, section: SentencesSection) -> None:
        self._classes = Classes(section.labels) if section.labels else None
        self._metric = section.metric
        self.chosen_by = section.metric

    @property
    def facts(self) -> dict[str, Any]:
        return {"labels": list(self._classes.names) if self._classes is not None else []}

    @property
    def score_names(self) -> Sequence[str]:
        return ("score",) if self._classes is None else self._classes.names

    def read(self, files: SentenceFiles, rejects: Rejects, teach: bool) -> Iterator[Example]:
        columns: dict[str, int] | None = None
        for number, line in lines(files.path, rejects):
            fields = line.split("\t")
            if columns is None:
                columns, is_header = _columns(fields, str(files.path))
                if is_header:
                    continue
            try:
                yield self._example(fields, columns, number)
            except (ValueError, IndexError, DataError) as error:
                reason = "has too few columns" if isinstance(error, IndexError) else error
                rejects(f"{files.path}:{number}: {reason}: {line[:60]!r}")

    def _example(self, fields: list[str], columns: dict[str, int], number: int) -> Example:
        texts = [fields[columns[name]].strip() for name in ("first", "second") if name in columns]
        if not all(texts):
            raise ValueError("a sentence is empty")
        name = fields[columns["name"]] if "name" in columns else str(number)
        if "label" not in columns:
            return Example(name, tuple(texts))
        label = fields[columns["label"]].strip()
        return Example(name, tuple(texts), label=_number(label) if self._classes is None else self._classes.number(label))

    def build_head(self, model: ModelSection) -> nn.Module:
        return SentenceHead(model, 1 if self._classes is None else len(self._classes.names))

    def add(self, packer: Packer, example: Example, tokens: Tokens, number: int) -> None:
        add_text(packer, tokens, number)

    def targets(self, examples: Sequence[Example]) -> Tensor:
        if self._classes is not None:
            return self._classes.targets(examples)
        return torch.tensor([example.label or 0.0 for example in examples], dtype=torch.float32)

    def output(self, unimo: UnimoModel, head: nn.Module, batch: Batch) -> Tensor:
        _, text_BD = unimo.pooled(batch)
        scores_BC: Tensor = head(text_BD)
        return scores_BC

    def losses(self, output: Tensor, targets: Tensor) -> Tensor:
        return (output[:, 0] - targets).square() if self._classes is None else self._classes.losses(output, targets)

    def score(self, answers: Sequence[Any], examples: Sequence[Example]) -> dict[str, float]:
        labels = np.array([example.label for example in examples])
        if self._classes is None:
            numbers = np.array(answers)[:, 0]
            pearson, spearman = pearson_correlation(numbers, labels), spearman_correlation(numbers, labels)
            return {"pearson": pearson, "spearman": spearman, "correlation": (pearson + spearman) / 2}
        chosen = np.argmax(answers, axis=1)
        found = {"accuracy": accuracy(chosen, labels)}
        return {**found, "matthews": matthews_correlation(chosen, labels)} if self._metric == "matthews" else found

    def judge(self, answers: Sequence[Any], examples: Sequence[Example]) -> list[Judged]:
        """Of numbers minus the squared error, of classes whether it is right."""
        if self._classes is not None:
            return self._classes.judge(answers, examples)
        pairs = [(float(row[0]), float(example.label)) for row, example in zip(answers, examples, strict=True)]
        return [Judged(f"{number:.3f}", f"{label:g}", -((number - label) ** 2)) for number, label in pairs]

    def predictions(self, answers: Sequence[Any], examples: Sequence[Example]) -> str:
        """GLUE's submission files: `index` and `prediction`."""
        labels = [f"{row[0]:.3f}" for row in answers] if self._classes is None else self._classes.chosen(answers)
        rows = (f"{example.name}\t{label}" for example, label in zip(examples, labels, strict=True))
        return "\n".join(["index\tprediction", *rows]) + "\n"


def _number(label: str) -> float:
    number = float(label)
    if not math.isfinite(number):
        raise ValueError(f"label {label!r} is no finite number")
    return number


def _columns(fields: list[str], where: str) -> tuple[dict[str, int], bool]:
    """Where the sentences, the label and the name stand, and whether these fields are the names of columns.

    Raises:
        DataError: no sentence is among the columns.
    """
    places = {name.strip(): place for place, name in enumerate(fields)}
    found: dict[str, int] = {}
    pair = next((names for names in _TEXTS if all(name in places for name in names)), None)
    if pair is not None:
        found = {"first": places[pair[0]], "second": places[pair[1]]}
    elif alone := [name for name in _ALONE if name in places]:
        found = {"first": places[alone[0]]}
    elif len(fields) == 4 and fields[1] in ("0", "1"):
        return {"first": _COLA["sentence"], "label": _COLA["label"]}, False
    else:
        known = ", ".join("/".join(names) for names in (*_TEXTS, *zip(_ALONE)))
        raise DataError(f"{where}:1: no sentences among the columns {', '.join(fields)[:200]}; known are {known}")
    for key, names in (("label", _LABELS), ("name", _NAMES)):
        present = [name for name in names if name in places]
        if present:
            found[key] = places[present[0]]
    return found, True
