"""An image and a sentence: does the one entail the other, contradict it, or neither? SNLI-VE (unimo-spec, 7.4)."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from unimo_ds.batch import Batch
from unimo_ds.config import AdversarialSection, EntailmentFiles, EntailmentSection, ModelSection
from unimo_ds.data.packing import Packer
from unimo_ds.data.prepared import Rejects
from unimo_ds.data.store import RegionStore
from unimo_ds.errors import DataError
from unimo_ds.files import text_of
from unimo_ds.metrics.classification import accuracy
from unimo_ds.model.task_heads import EntailmentHead
from unimo_ds.model.unimo import UnimoModel
from unimo_ds.tasks.adversarial import AdversarialTask
from unimo_ds.tasks.classification import Classes, add_pair
from unimo_ds.tasks.files import lines, opening
from unimo_ds.tasks.id_files import Hypothesis, read_id_hypotheses
from unimo_ds.tasks.task import Example, Judged, Tokens
from unimo_ds.tokenizer import Tokenizer

_USUAL: tuple[str, ...] = EntailmentSection.model_fields["labels"].default


class Entailment(AdversarialTask[EntailmentFiles]):
    """SNLI-VE.

    Args:
        tokenizer: of the run; for the release's files, which hold ids.
        adversarial: how it is taught on perturbed inputs, if it is.
        labels: the classes in the order of the head's scores.
    """

    heads = ("text_pooler", "image_pooler")
    chosen_by = "accuracy"
    ending = ".jsonl"

    def __init__(
        self, tokenizer: Tokenizer, adversarial: AdversarialSection | None = None, labels: Sequence[str] = _USUAL
    ) -> None:
        self.adversarial = adversarial
        self._tokenizer, self._classes = tokenizer, Classes(labels)

    @property
    def facts(self) -> dict[str, Any]:
        return {"labels": list(self._classes.names)}

    @property
    def score_names(self) -> Sequence[str]:
        return self._classes.names

    def read(self, files: EntailmentFiles, rejects: Rejects, teach: bool) -> Iterator[Example]:
        store = RegionStore(files.regions)
        is_json = opening(files.path).startswith("{")
        for row in _json_rows(files.path, rejects) if is_json else read_id_hypotheses(files.path, self._tokenizer, rejects):
            try:
                yield self._example(row, files, store)
            except (ValueError, DataError) as error:
                rejects(f"{row.place}: {error}")

    def _example(self, row: Hypothesis, files: EntailmentFiles, store: RegionStore) -> Example:
        image = files.images.format(row.image)
        if image not in store:
            raise ValueError(f"image {image!r} has no regions in {store.folder}")
        # The release does not tell whether its files have names or numbers; a number is taken as the place among the names.
        label = dict(enumerate(self._classes.names)).get(int(row.label), row.label) if row.label.isdecimal() else row.label
        return Example(row.name, (row.text,), image, store, self._classes.number(label) if label else None)

    def build_head(self, model: ModelSection) -> nn.Module:
        return EntailmentHead(model, len(self._classes.names))

    def add(self, packer: Packer, example: Example, tokens: Tokens, number: int) -> None:
        add_pair(packer, example, tokens, number)

    def targets(self, examples: Sequence[Example]) -> Tensor:
        return self._classes.targets(examples)

    def output(self, unimo: UnimoModel, head: nn.Module, batch: Batch, perturbation_WD: Tensor | None = None) -> Tensor:
        image_BD, text_BD = unimo.pooled(batch, perturbation_WD)
        scores_BC: Tensor = head(text_BD + image_BD)
        return scores_BC

    def losses(self, output: Tensor, targets: Tensor) -> Tensor:
        return self._classes.losses(output, targets)

    def scored(
        self, unimo: UnimoModel, head: nn.Module, batch: Batch, targets: Tensor, perturbation_WD: Tensor
    ) -> tuple[Tensor, Tensor]:
        scores_BC = self.output(unimo, head, batch, perturbation_WD)
        return self.losses(scores_BC, targets), scores_BC

    def likeliest(self, answer: Any) -> list[tuple[str, float]]:
        """The classes with their probabilities, the likeliest first; `answer` as `answers` gives it."""
        return self._classes.likeliest(answer)

    def score(self, answers: Sequence[Any], examples: Sequence[Example]) -> dict[str, float]:
        return {"accuracy": accuracy(np.argmax(answers, axis=1), np.array([example.label for example in examples]))}

    def judge(self, answers: Sequence[Any], examples: Sequence[Example]) -> list[Judged]:
        return self._classes.judge(answers, examples)

    def predictions(self, answers: Sequence[Any], examples: Sequence[Example]) -> str:
        """JSON Lines with SNLI-VE's own `pairID`."""
        chosen = self._classes.chosen(answers)
        rows = (json.dumps({"pairID": item.name, "prediction": label}) for item, label in zip(examples, chosen, strict=True))
        return "".join(f"{row}\n" for row in rows)


def _json_rows(path: Path, rejects: Rejects) -> Iterator[Hypothesis]:
    """The rows of SNLI-VE's JSON Lines."""
    for number, line in lines(path, rejects):
        place = f"{path}:{number}"
        try:
            content = json.loads(line)
            image, text = text_of(content, "Flickr30K_ID"), text_of(content, "sentence2")
            yield Hypothesis(place, image, str(content.get("pairID", "")), str(content.get("gold_label") or ""), text)
        except (ValueError, RecursionError) as error:  # an error of JSON is a ValueError
            rejects(f"{place}: {error}: {line[:60]!r}")
