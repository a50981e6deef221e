"""An image and a sentence: does the one entail the other, contradict it, or neither? SNLI-VE (unimo-spec, 7.4)."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from unimo_ds.batch import Batch
from unimo_ds.config import AdversarialSection, EntailmentFiles, ModelSection
from unimo_ds.data.packing import Packer
from unimo_ds.data.prepared import Rejects
from unimo_ds.data.store import RegionStore
from unimo_ds.errors import DataError
from unimo_ds.metrics.classification import accuracy
from unimo_ds.model.task_heads import EntailmentHead
from unimo_ds.model.unimo import Unimo
from unimo_ds.tasks.adversarial import AdversarialTask
from unimo_ds.tasks.classification import Classes, add_pair, pooled_image, pooled_text
from unimo_ds.tasks.files import lines, text_of
from unimo_ds.tasks.task import Example, Tokens

_CLASSES = ("entailment", "neutral", "contradiction")


class Entailment(AdversarialTask[EntailmentFiles]):
    """SNLI-VE.

    Args:
        adversarial: how it is taught on perturbed inputs, if it is.
    """

    heads = ("text_pooler", "image_pooler")
    chosen_by = "accuracy"
    ending = ".jsonl"

    def __init__(self, adversarial: AdversarialSection | None = None) -> None:
        self.adversarial = adversarial
        self._classes = Classes(_CLASSES)

    def read(self, files: EntailmentFiles, rejects: Rejects, teach: bool) -> Iterator[Example]:
        store = RegionStore(files.regions)
        for number, line in lines(files.path, rejects):
            try:
                yield self._example(json.loads(line), files, store)
            except (ValueError, RecursionError, DataError) as error:  # an error of JSON is a ValueError
                rejects(f"{files.path}:{number}: {error}: {line[:60]!r}")

    def _example(self, content: Any, files: EntailmentFiles, store: RegionStore) -> Example:
        image = files.images.format(text_of(content, "Flickr30K_ID"))
        if image not in store:
            raise ValueError(f"image {image!r} has no regions in {store.folder}")
        label = content.get("gold_label")
        name = str(content.get("pairID", ""))
        number = None if label in (None, "") else self._classes.number(str(label))
        return Example(name, (text_of(content, "sentence2"),), image, store, number)

    def build_head(self, model: ModelSection) -> nn.Module:
        return EntailmentHead(model, len(_CLASSES))

    def add(self, packer: Packer, example: Example, tokens: Tokens, number: int) -> None:
        add_pair(packer, example, tokens, number)

    def targets(self, examples: Sequence[Example]) -> Tensor:
        return self._classes.targets(examples)

    def output(self, unimo: Unimo, head: nn.Module, batch: Batch, perturbation_WD: Tensor | None = None) -> Tensor:
        hidden_TD = unimo.encode(batch, perturbation_WD=perturbation_WD)
        scores_BC: Tensor = head(pooled_text(unimo, hidden_TD, batch) + pooled_image(unimo, hidden_TD, batch))
        return scores_BC

    def losses(self, output: Tensor, targets: Tensor) -> Tensor:
        return self._classes.losses(output, targets)

    def scored(
        self, unimo: Unimo, head: nn.Module, batch: Batch, targets: Tensor, perturbation_WD: Tensor
    ) -> tuple[Tensor, Tensor]:
        scores_BC = self.output(unimo, head, batch, perturbation_WD)
        return self.losses(scores_BC, targets), scores_BC

    def score(self, answers: Sequence[Any], examples: Sequence[Example]) -> dict[str, float]:
        return {"accuracy": accuracy(np.argmax(answers, axis=1), np.array([example.label for example in examples]))}

    def predictions(self, answers: Sequence[Any], examples: Sequence[Example]) -> str:
        """JSON Lines with SNLI-VE's own `pairID`."""
        chosen = self._classes.chosen(answers)
        rows = (json.dumps({"pairID": item.name, "prediction": label}) for item, label in zip(examples, chosen, strict=True))
        return "".join(f"{row}\n" for row in rows)
