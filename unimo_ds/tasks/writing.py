"""Texts that are generated: captions of images, and texts of texts (unimo-spec, 7.2 and 7.5).

A training example is an image or `[CLS] source [SEP]`, which all rows see, and then `[CLS] target [SEP]`, each row of which
sees what is before it and predicts the next word; the loss is the mean over all words of a step, with smoothed labels. To be
evaluated, the target is searched for by `model.generation`.
"""

import json
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from unimo_ds.batch import Batch, Target
from unimo_ds.config import CaptionFiles, CaptioningSection, MaskingSection, ModelSection, TextFiles, WritingSection
from unimo_ds.data.packing import Packer
from unimo_ds.data.prepared import Rejects
from unimo_ds.data.sequences import FIRST_WORD, ViewMaker, with_targets
from unimo_ds.data.sequences import Sequence as View
from unimo_ds.data.store import RegionStore
from unimo_ds.errors import DataError
from unimo_ds.metrics.captions import caption_scores
from unimo_ds.metrics.summaries import rouge
from unimo_ds.model.beams import Decoding
from unimo_ds.model.generation import generate
from unimo_ds.model.unimo import Unimo
from unimo_ds.tasks.adversarial import AdversarialTask
from unimo_ds.tasks.classification import joined
from unimo_ds.tasks.files import lines, read_json, text_of
from unimo_ds.tasks.task import Example, Task, TaskBatch, Tokens
from unimo_ds.tokenizer import CLS, SEP, Tokenizer

F = TypeVar("F")


class Writing(Task[F]):
    """What both families share.

    Args:
        section: of the run.
        tokenizer: of the run.
    """

    heads = ("language_head",)

    def __init__(self, section: CaptioningSection | WritingSection, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._views = tokenizer, ViewMaker(tokenizer, MaskingSection())
        self._longest_target, self._smoothing = section.max_target_tokens, section.label_smoothing
        self._decoding = Decoding(**section.decoding.model_dump())
        self._forbidden = [*(number for number in range(FIRST_WORD) if number != SEP), tokenizer.mask]
        self._starts_word_V: list[bool] = tokenizer.begins_with_space_V.tolist()

    def build_head(self, model: ModelSection) -> nn.Module:
        return nn.Identity()

    def add(self, packer: Packer, example: Example, tokens: Tokens, number: int) -> None:
        image, shown = (None, 0)
        if example.store is not None and example.image is not None:
            image, shown = packer.add_image(example.store.get(example.image))
        source = joined(tokens.texts, tokens.limit) if tokens.texts else None
        if tokens.target is None:
            packer.add(View(image=image, regions=shown, text=source))
            return
        target = self._views.generated_text(tokens.target[: self._longest_target - 2])
        text = target if source is None else with_targets(source, target)
        packer.add(View(image=image, regions=shown, text=text, causal=True, target=Target.SEQ2SEQ))

    def teach(self, packed: Batch, examples: Sequence[Example]) -> TaskBatch:
        return TaskBatch(packed, self.targets(examples), len(packed.language_rows_M))

    def targets(self, examples: Sequence[Example]) -> Tensor:
        return torch.zeros(0)

    def output(self, unimo: Unimo, head: nn.Module, batch: Batch) -> Tensor:
        losses_M: Tensor = unimo(batch, smoothing=self._smoothing).language_losses_M
        return losses_M

    def losses(self, output: Tensor, targets: Tensor) -> Tensor:
        return output

    def answers(self, unimo: Unimo, head: nn.Module, batch: Batch) -> list[Any]:
        found = generate(unimo, batch, self._decoding, CLS, SEP, self._forbidden, self._starts_word_V)
        return [self._tokenizer.decode(each.ids) for each in found]

    @abstractmethod
    def read(self, files: F, rejects: Rejects, teach: bool) -> Iterator[Example]:
        """As `Task.read`."""


class Captioning(AdversarialTask[CaptionFiles], Writing[CaptionFiles]):
    """Captions of images."""

    chosen_by = "cider_d"
    ending = ".json"

    def __init__(self, section: CaptioningSection, tokenizer: Tokenizer) -> None:
        super().__init__(section, tokenizer)
        self.adversarial = section.adversarial

    def scored(
        self, unimo: Unimo, head: nn.Module, batch: Batch, targets: Tensor, perturbation_WD: Tensor
    ) -> tuple[Tensor, Tensor]:
        outputs = unimo(batch, want_logits=True, smoothing=self._smoothing, perturbation_WD=perturbation_WD)
        return outputs.language_losses_M, outputs.language_logits_MV

    def read(self, files: CaptionFiles, rejects: Rejects, teach: bool) -> Iterator[Example]:
        store = RegionStore(files.regions)
        for number, name, captions in _captioned(files, rejects):
            key = files.images.format(name)
            if key not in store:
                rejects(f"{files.path}: image {key!r} has no regions in {store.folder}")
            elif teach:
                for caption in captions:
                    yield Example(number, (), key, store, target=caption)
            elif captions:
                yield Example(number, (), key, store, label=captions)
            else:
                yield Example(number, (), key, store)

    def score(self, answers: Sequence[Any], examples: Sequence[Example]) -> dict[str, float]:
        return caption_scores(answers, [example.label for example in examples])

    def predictions(self, answers: Sequence[Any], examples: Sequence[Example]) -> str:
        """COCO's results: `image_id` and `caption`."""
        pairs = zip(examples, answers, strict=True)
        return json.dumps([{"image_id": int(example.name), "caption": caption} for example, caption in pairs])


def _captioned(files: CaptionFiles, rejects: Rejects) -> Iterator[tuple[str, str, list[str]]]:
    """Number, file name and captions of each image."""
    images = read_json(files.path, "images")["images"]
    if files.splits:
        for place, image in enumerate(images):
            try:
                if image["split"] in files.splits:
                    yield str(image["cocoid"]), image["filename"], [text_of(each, "raw") for each in image["sentences"]]
            except (KeyError, TypeError, ValueError) as error:
                rejects(f"{files.path}: images[{place}]: {error}")
        return
    captions: dict[int, list[str]] = {}
    for place, annotation in enumerate(read_json(files.path, "annotations")["annotations"]):
        try:
            captions.setdefault(annotation["image_id"], []).append(text_of(annotation, "caption"))
        except (KeyError, TypeError, ValueError) as error:
            rejects(f"{files.path}: annotations[{place}]: {error}")
    for place, image in enumerate(images):
        try:
            yield str(image["id"]), image["file_name"], captions.get(image["id"], [])
        except (KeyError, TypeError) as error:
            rejects(f"{files.path}: images[{place}]: {error}")


class TextWriting(Writing[TextFiles]):
    """Texts of texts."""

    ending = ".txt"

    def __init__(self, section: WritingSection, tokenizer: Tokenizer) -> None:
        super().__init__(section, tokenizer)
        self._metric = section.metric
        self.chosen_by = {"rouge": "rouge_l", "bleu": "bleu_4"}[section.metric]

    def read(self, files: TextFiles, rejects: Rejects, teach: bool) -> Iterator[Example]:
        for number, source, target in _sources(files, rejects):
            if teach and not target:
                rejects(f"{files.path}:{number}: has no target")
            elif teach:
                yield Example(str(number), (source,), target=target)
            else:
                yield Example(str(number), (source,), label=target or None)

    def score(self, answers: Sequence[Any], examples: Sequence[Example]) -> dict[str, float]:
        labels = [example.label for example in examples]
        return rouge(answers, labels) if self._metric == "rouge" else caption_scores(answers, [[label] for label in labels])

    def predictions(self, answers: Sequence[Any], examples: Sequence[Example]) -> str:
        """A line each, in the order of the set."""
        return "".join(" ".join(answer.split()) + "\n" for answer in answers)


def _sources(files: TextFiles, rejects: Rejects) -> Iterator[tuple[int, str, str]]:
    """Line number, source, and target or nothing.

    Raises:
        DataError: there are not as many targets as sources.
    """
    if files.targets is not None:
        sources, targets = list(lines(files.path, rejects)), list(lines(files.targets, rejects))
        if [number for number, _ in sources] != [number for number, _ in targets]:
            raise DataError(
                f"{files.path} has {len(sources)} lines that can be read and {files.targets} has {len(targets)}, or others: "
                "line n of the one must belong to line n of the other"
            )
        yield from (
            (number, source.strip(), target.strip()) for (number, source), (_, target) in zip(sources, targets, strict=True)
        )
        return
    for number, line in lines(files.path, rejects):
        try:
            content = json.loads(line)
            yield number, text_of(content, files.source), text_of(content, files.target) if files.target in content else ""
        except (ValueError, RecursionError, TypeError) as error:
            rejects(f"{files.path}:{number}: {error}: {line[:60]!r}")
