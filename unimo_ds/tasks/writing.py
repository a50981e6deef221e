"""Texts that are generated: captions of images, and texts of texts (unimo-spec, 7.2 and 7.5).

A training example is an image, with object tags or without, or `[CLS] source [SEP]`, which all rows see, and then
`[CLS] target [SEP]`, each row of which sees what is before it and predicts the next word; the loss is the mean over all words
of a step, with smoothed labels. To be evaluated, the target is searched for by `model.generation`.
"""

import json
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from unimo_ds.batch import Batch, Target
from unimo_ds.config import (
    CaptionFiles,
    CaptioningSection,
    DialogueSection,
    MaskingSection,
    ModelSection,
    TextFiles,
    WritingSection,
)
from unimo_ds.data.packing import Packer
from unimo_ds.data.prepared import Rejects
from unimo_ds.data.sequences import FIRST_WORD, PackedText, ViewMaker, with_targets
from unimo_ds.data.sequences import Sequence as View
from unimo_ds.data.store import RegionStore
from unimo_ds.errors import DamagedRecordError
from unimo_ds.metrics.captions import caption_scores, cider_d_each
from unimo_ds.metrics.java import Program, program_scores
from unimo_ds.metrics.ptb import tokenize
from unimo_ds.metrics.summaries import rouge
from unimo_ds.model.beams import Decoding
from unimo_ds.model.generation import generate
from unimo_ds.model.unimo import UnimoModel
from unimo_ds.tasks.adversarial import AdversarialTask
from unimo_ds.tasks.captions import captioned
from unimo_ds.tasks.classification import joined, show_image
from unimo_ds.tasks.files import number_or_name
from unimo_ds.tasks.object_tags import expect_names, object_tags, packed_tags
from unimo_ds.tasks.sources import read_sources
from unimo_ds.tasks.task import Example, Judged, Task, TaskBatch, Tokens
from unimo_ds.tokenizer import CLS, SEP, Tokenizer

F = TypeVar("F")


def write_texts(unimo: UnimoModel, prefix: Batch, decoding: Decoding, tokenizer: Tokenizer) -> list[str]:
    """The text of each sequence of `prefix` (`model.generation`): of words alone, with no special token in it."""
    forbidden = [*(number for number in range(FIRST_WORD) if number != SEP), tokenizer.mask]
    found = generate(unimo, prefix, decoding, CLS, SEP, forbidden, tokenizer.begins_with_space_V.tolist())
    return [tokenizer.decode(each.ids) for each in found]


class Writing(Task[F]):
    """What all families of generated texts share.

    Args:
        section: of the run.
        tokenizer: of the run.

    Attributes:
        decoding: how its texts are searched for.
    """

    heads = ("language_head",)

    def __init__(self, section: CaptioningSection | WritingSection | DialogueSection, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._views = tokenizer, ViewMaker(tokenizer, MaskingSection())
        self._longest_target, self._smoothing = section.max_target_tokens, section.label_smoothing
        self.decoding = Decoding(**section.decoding.model_dump())

    def build_head(self, model: ModelSection) -> nn.Module:
        return nn.Identity()

    def add(self, packer: Packer, example: Example, tokens: Tokens, number: int) -> None:
        image, shown = show_image(packer, example)
        source = self.source(tokens) if tokens.texts else None
        if tokens.target is None:
            packer.add(View(image=image, regions=shown, text=source))
            return
        target = self._views.generated_text(tokens.target[: self._longest_target - 2])
        text = target if source is None else with_targets(source, target)
        packer.add(View(image=image, regions=shown, text=text, causal=True, target=Target.SEQ2SEQ))

    def source(self, tokens: Tokens) -> PackedText:
        """What of an example's texts is seen before the target."""
        return joined(tokens.texts, tokens.limit)

    def text_rows(self, tokens: Tokens) -> int:
        return super().text_rows(tokens) + self._rows_of_search(tokens)

    def _rows_of_search(self, tokens: Tokens) -> int:
        """What `model.cache` keeps of each text that is searched for, in rows."""
        return 0 if tokens.target is not None else self.decoding.rows

    def teach(self, packed: Batch, examples: Sequence[Example]) -> TaskBatch:
        return TaskBatch(packed, self.targets(examples), len(packed.language_rows_M))

    def targets(self, examples: Sequence[Example]) -> Tensor:
        return torch.zeros(0)

    def output(self, unimo: UnimoModel, head: nn.Module, batch: Batch) -> Tensor:
        losses_M: Tensor = unimo(batch, smoothing=self._smoothing).language_losses_M
        return losses_M

    def losses(self, output: Tensor, targets: Tensor) -> Tensor:
        return output

    def answers(self, unimo: UnimoModel, head: nn.Module, batch: Batch) -> list[Any]:
        return write_texts(unimo, batch, self.decoding, self._tokenizer)

    @abstractmethod
    def read(self, files: F, rejects: Rejects, teach: bool) -> Iterator[Example]:
        """As `Task.read`."""


class Captioning(AdversarialTask[CaptionFiles], Writing[CaptionFiles]):
    """Captions of images.

    Attributes:
        tags: which names of detected objects stand beside an image; None: none do.
    """

    chosen_by = "cider_d"
    ending = ".json"

    def __init__(self, section: CaptioningSection, tokenizer: Tokenizer) -> None:
        super().__init__(section, tokenizer)
        self.tags = section.object_tags
        self.adversarial = section.adversarial

    def scored(
        self, unimo: UnimoModel, head: nn.Module, batch: Batch, targets: Tensor, perturbation_WD: Tensor
    ) -> tuple[Tensor, Tensor]:
        outputs = unimo(batch, want_logits=True, smoothing=self._smoothing, perturbation_WD=perturbation_WD)
        return outputs.language_losses_M, outputs.language_logits_MV

    def read(self, files: CaptionFiles, rejects: Rejects, teach: bool) -> Iterator[Example]:
        store = RegionStore(files.regions)
        if self.tags is not None:
            expect_names(store)
        for number, name, captions in captioned(files, self._tokenizer, rejects):
            key = files.images.format(name)
            if key not in store:
                rejects(f"{files.path}: image {key!r} has no regions in {store.folder}")
                continue
            try:
                tags = () if self.tags is None else object_tags(store, key, self.tags)
            except (ValueError, DamagedRecordError) as error:
                rejects(f"{files.path}: {error}")
                continue
            if teach:
                for caption in captions:
                    yield Example(number, tags, key, store, target=caption)
            else:
                yield Example(number, tags, key, store, label=captions or None)

    def source(self, tokens: Tokens) -> PackedText:
        assert self.tags is not None
        return packed_tags(tokens.texts[0], min(self.tags.most_tokens, tokens.limit))

    def score(self, answers: Sequence[Any], examples: Sequence[Example]) -> dict[str, float]:
        return caption_scores(answers, [example.label for example in examples])

    def further_scores(self, answers: Sequence[Any], examples: Sequence[Example]) -> tuple[dict[str, float], list[str]]:
        """METEOR and SPICE."""
        return program_scores(["meteor", "spice"], answers, [example.label for example in examples])

    def judge(self, answers: Sequence[Any], examples: Sequence[Example]) -> list[Judged]:
        """CIDEr-D of each caption, with the frequencies of the whole set."""
        labels = [example.label for example in examples]
        words = [tokenize(answer) for answer in answers]
        worths = cider_d_each(words, [[tokenize(caption) for caption in captions] for captions in labels])
        return [Judged(*each) for each in zip(answers, map("\n".join, labels), worths, strict=True)]

    def predictions(self, answers: Sequence[Any], examples: Sequence[Example]) -> str:
        """COCO's results: `image_id` and `caption`."""
        pairs = zip(examples, answers, strict=True)
        return json.dumps([{"image_id": number_or_name(example.name), "caption": caption} for example, caption in pairs])


class TextWriting(Writing[TextFiles]):
    """Texts of texts."""

    ending = ".txt"

    def __init__(self, section: WritingSection, tokenizer: Tokenizer) -> None:
        super().__init__(section, tokenizer)
        self._metric = section.metric
        self.chosen_by = {"rouge": "rouge_l", "bleu": "bleu_4"}[section.metric]

    def read(self, files: TextFiles, rejects: Rejects, teach: bool) -> Iterator[Example]:
        for source in read_sources(files, self._tokenizer, rejects):
            if teach and not source.target:
                rejects(f"{source.place}: has no target")
            elif teach:
                yield Example(source.name, source.texts, target=source.target)
            else:
                yield Example(source.name, source.texts, label=source.target or None)

    def score(self, answers: Sequence[Any], examples: Sequence[Example]) -> dict[str, float]:
        return self._scores(answers, [example.label for example in examples])

    def _scores(self, answers: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
        return rouge(answers, labels) if self._metric == "rouge" else caption_scores(answers, [[label] for label in labels])

    def further_scores(self, answers: Sequence[Any], examples: Sequence[Example]) -> tuple[dict[str, float], list[str]]:
        """METEOR of questions."""
        programs: list[Program] = ["meteor"] if self._metric == "bleu" else []
        return program_scores(programs, answers, [[example.label] for example in examples])

    def judge(self, answers: Sequence[Any], examples: Sequence[Example]) -> list[Judged]:
        """The set's chief score, of each text alone."""
        pairs = [(answer, example.label) for answer, example in zip(answers, examples, strict=True)]
        return [Judged(answer, label, self._scores([answer], [label])[self.chosen_by]) for answer, label in pairs]

    def predictions(self, answers: Sequence[Any], examples: Sequence[Example]) -> str:
        """A line each, in the order of the set."""
        return "".join(" ".join(answer.split()) + "\n" for answer in answers)
