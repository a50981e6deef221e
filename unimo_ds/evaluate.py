"""Evaluation of a pre-trained model on held-out pairs: retrieval both ways, masked words, captions.

Runs inside training and by itself. Work is cut into batches agreed in advance: every rank makes the same number of passes,
with empty batches where its share is used up, so that ranks can never wait for each other in vain.
"""

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from unimo_ds import distributed
from unimo_ds.batch import Batch
from unimo_ds.choices import ChoiceExample, ChoiceTest, run_choices
from unimo_ds.config import RunConfig, load_config
from unimo_ds.data.corpus import Corpus, can_be_read, prepare_corpora
from unimo_ds.data.order import Draw, generator
from unimo_ds.data.packing import Packer, pack_alone
from unimo_ds.data.prepared import Rejects
from unimo_ds.data.sequences import Sequence, ViewMaker
from unimo_ds.engine.checkpoint_folder import find_checkpoint, read_model_weights, read_state
from unimo_ds.errors import CheckpointError, ConfigError, DataError
from unimo_ds.metrics.ranking import chance_both_ways, recall_both_ways
from unimo_ds.model.beams import Decoding
from unimo_ds.model.unimo import UnimoModel
from unimo_ds.regions import Regions
from unimo_ds.tasks.writing import write_texts
from unimo_ds.tokenizer import Tokenizer

_ITEMS_AT_ONCE = 32
_TEXTS = 500
_SHOWN_QUERIES = 12
_SHOWN_CANDIDATES = 5
_PURPOSE = 2  # of the random numbers that mask held-out captions


@dataclass(frozen=True)
class RetrievalExample:
    """One caption with the images it finds, best first."""

    caption: str
    image: str
    found: list[str]
    scores: list[float]


@dataclass(frozen=True)
class CaptionExample:
    """One image with its true captions and the generated one."""

    image: str
    true: list[str]
    generated: str


@dataclass(frozen=True)
class Evaluation:
    """What was measured: numbers for the log, examples for the report."""

    numbers: dict[str, float]
    retrieval: list[RetrievalExample]
    captions: list[CaptionExample]
    choices: list[ChoiceExample]


class HeldOut:
    """What an evaluation uses: the first `candidates` images of the corpus with all their captions, and tests by choice.

    Args:
        config: the run; has a section `evaluation`.
        corpus: the prepared held-out pairs.
        texts: the prepared held-out texts, or None.
        tokenizer: the run's tokenizer.
        choices: the tests by choice.
        show: report images that cannot be read; they are left out, on every rank alike.

    Raises:
        DataError: not one image can be read.
    """

    def __init__(
        self,
        config: RunConfig,
        corpus: Corpus,
        texts: Corpus | None,
        tokenizer: Tokenizer,
        choices: list[ChoiceTest],
        show: bool,
    ) -> None:
        assert config.evaluation is not None and corpus.store is not None
        self.config, self.section = config, config.evaluation
        self.corpus, self.texts, self.tokenizer, self.choices = corpus, texts, tokenizer, choices
        self.views = ViewMaker(tokenizer, config.objectives.masking)
        samples: dict[str, list[int]] = {}
        lost: set[str] = set()
        rejects = Rejects()
        for index in range(len(corpus)):
            key = corpus.image_key(index)
            if key in samples:
                samples[key].append(index)
            elif key not in lost and len(samples) < self.section.candidates:
                if can_be_read(corpus.store, key, rejects, "evaluation.pairs"):
                    samples[key] = [index]
                else:
                    lost.add(key)
        if show:
            rejects.report("evaluation.pairs", len(samples))
        if not samples:
            raise DataError(f"evaluation.pairs: not one image of {corpus.store.folder} can be read: {rejects.reasons[0]}")
        self.images = list(samples)
        self.captions = [index for indices in samples.values() for index in indices]
        owners = [number for number, indices in enumerate(samples.values()) for _ in indices]
        self.image_of_caption = np.array(owners)

    def regions(self, image: int) -> Regions:
        """Regions of image number `image`."""
        assert self.corpus.store is not None
        return self.corpus.store.get(self.images[image])

    def text(self, caption: int) -> str:
        """Caption number `caption` as text."""
        return self.tokenizer.decode(self.corpus.tokens(self.captions[caption]))

    def expect_detector(self, detector: dict[str, Any], whose: str) -> None:
        """Refuses held-out regions of another detector (`RegionStore.expect_detector`)."""
        for store in (self.corpus.store, *(test.store for test in self.choices)):
            if store is not None:
                store.expect_detector(detector, whose)

    def packer(self, feature_width: int) -> Packer:
        """An empty packer of this run."""
        return Packer(feature_width, self.config.data.max_regions)


@torch.no_grad()
def evaluate_model(unimo: UnimoModel, pairs: HeldOut, feature_width: int) -> Evaluation:
    """Measures a model; every rank must call it.

    Args:
        unimo: the model; its mode is restored afterwards.
        pairs: what it is measured on.
        feature_width: F of the regions store.
    """
    training = unimo.training
    unimo.eval()
    try:
        similarity_XI = _similarities(unimo, pairs, feature_width)
        numbers = _retrieval_numbers(similarity_XI, pairs)
        numbers["eval/mlm_accuracy"] = _masked_word_accuracy(unimo, pairs, feature_width)
        if pairs.texts is not None:
            numbers["eval/text_mlm_accuracy"] = _masked_text_accuracy(unimo, pairs, pairs.texts, feature_width)
        captions = _generate_captions(unimo, pairs, feature_width)
        choices: list[ChoiceExample] = []
        for test in pairs.choices:
            found, examples = run_choices(unimo, test)
            numbers |= found
            choices += examples
    finally:
        unimo.train(training)
    return Evaluation(numbers, _retrieval_examples(similarity_XI, pairs), captions, choices)


def _similarities(unimo: UnimoModel, pairs: HeldOut, width: int) -> npt.NDArray[np.float32]:
    """Cosines of every caption with every image, each encoded alone, [captions, images]."""
    limit = pairs.config.data.max_regions

    def image_vectors(numbers: list[int]) -> npt.NDArray[np.float32]:
        batch = pack_alone([pairs.regions(number) for number in numbers], [], width, limit)
        vectors_ID: npt.NDArray[np.float32] = _run(unimo, batch).image_vectors_ID.cpu().numpy()
        return vectors_ID

    def text_vectors(numbers: list[int]) -> npt.NDArray[np.float32]:
        views = [pairs.views.whole_text(pairs.corpus.tokens(pairs.captions[number])) for number in numbers]
        vectors_XD: npt.NDArray[np.float32] = _run(unimo, pack_alone([], views, width, limit)).text_vectors_XD.cpu().numpy()
        return vectors_XD

    images = distributed.over_ranks(len(pairs.images), _ITEMS_AT_ONCE, image_vectors)
    texts = distributed.over_ranks(len(pairs.captions), _ITEMS_AT_ONCE, text_vectors)
    similarity_XI: npt.NDArray[np.float32] = np.stack(texts) @ np.stack(images).T
    return similarity_XI


def _run(unimo: UnimoModel, batch: Batch) -> Any:
    return unimo(batch.to(distributed.device()))


def _retrieval_numbers(similarity_XI: npt.NDArray[np.float32], pairs: HeldOut) -> dict[str, float]:
    right_XI = pairs.image_of_caption[:, None] == np.arange(len(pairs.images))[None]
    found, chance = recall_both_ways(similarity_XI, right_XI), chance_both_ways(right_XI)
    numbers = {f"eval/{name}": value for name, value in found.items()}
    numbers |= {f"eval/{name}_chance": value for name, value in chance.items()}
    return {**numbers, "eval/candidates": float(len(pairs.images))}


def _retrieval_examples(similarity_XI: npt.NDArray[np.float32], pairs: HeldOut) -> list[RetrievalExample]:
    """One caption of each of the first images."""
    firsts = [
        int(np.flatnonzero(pairs.image_of_caption == image)[0]) for image in range(min(_SHOWN_QUERIES, len(pairs.images)))
    ]
    examples = []
    for caption in firsts:
        best = np.argsort(-similarity_XI[caption], kind="stable")[:_SHOWN_CANDIDATES]
        examples.append(
            RetrievalExample(
                pairs.text(caption),
                pairs.images[pairs.image_of_caption[caption]],
                [pairs.images[image] for image in best],
                [round(float(similarity_XI[caption, image]), 3) for image in best],
            )
        )
    return examples


def _masked_word_accuracy(unimo: UnimoModel, pairs: HeldOut, width: int) -> float:
    """Share of masked words of held-out captions that the model names, given the image; the masks are always the same."""

    def batch_of(numbers: list[int]) -> Batch:
        packer = pairs.packer(width)
        for number in numbers:
            image, shown = packer.add_image(pairs.regions(int(pairs.image_of_caption[number])))
            text = pairs.views.masked_text(pairs.corpus.tokens(pairs.captions[number]), _masks_of(number))
            packer.add(Sequence(image=image, regions=shown, text=text))
        return packer.build()

    return _share_named(unimo, map(batch_of, distributed.shares(len(pairs.captions), _ITEMS_AT_ONCE)))


def _masked_text_accuracy(unimo: UnimoModel, pairs: HeldOut, texts: Corpus, width: int) -> float:
    """The same for held-out texts alone; the first `_TEXTS` of them."""

    def batch_of(numbers: list[int]) -> Batch:
        packer = pairs.packer(width)
        for number in numbers:
            packer.add(Sequence(text=pairs.views.masked_text(texts.tokens(number), _masks_of(number))))
        return packer.build()

    return _share_named(unimo, map(batch_of, distributed.shares(min(len(texts), _TEXTS), _ITEMS_AT_ONCE)))


def _masks_of(number: int) -> np.random.Generator:
    return generator(0, Draw(0, number, number), _PURPOSE)


def _share_named(unimo: UnimoModel, batches: Iterable[Batch]) -> float:
    """Share of the language targets of all ranks' batches that the model names."""
    right = total = 0
    for batch in batches:
        moved = batch.to(distributed.device())
        logits_MV = unimo(moved, want_logits=True).language_logits_MV
        right += int((logits_MV.argmax(1) == moved.language_labels_M).sum())
        total += len(moved.language_labels_M)
    rights, totals = zip(*distributed.gather_objects((right, total)), strict=True)
    accuracy: float = sum(rights) / max(1, sum(totals))
    return accuracy


def _generate_captions(unimo: UnimoModel, pairs: HeldOut, width: int) -> list[CaptionExample]:
    wanted = min(pairs.section.captions, len(pairs.images))
    mine = list(range(distributed.rank(), wanted, distributed.world_size()))

    packer = pairs.packer(width)
    for number in mine:
        image, shown = packer.add_image(pairs.regions(number))
        packer.add(Sequence(image=image, regions=shown))
    greedy = Decoding(beams=1, longest=pairs.section.caption_tokens)
    written = write_texts(unimo, packer.build().to(distributed.device()), greedy, pairs.tokenizer)
    examples = list(zip(mine, written, strict=True))
    everywhere = sorted(example for rank in distributed.gather_objects(examples) for example in rank)
    return [CaptionExample(pairs.images[number], _captions_of(pairs, number), text) for number, text in everywhere]


def _captions_of(pairs: HeldOut, image: int) -> list[str]:
    return [pairs.text(int(caption)) for caption in np.flatnonzero(pairs.image_of_caption == image)]


def write_evaluation(evaluation: Evaluation, path: Path) -> None:
    """Writes numbers and examples as JSON."""
    path.write_text(json.dumps(asdict(evaluation), indent=1, ensure_ascii=False), encoding="utf-8")


def open_held_out(config: RunConfig, tokenizer: Tokenizer, show: bool) -> HeldOut | None:
    """Prepares the evaluation of a run, if it has one; every rank must call it."""
    if config.evaluation is None:
        return None
    sections = [config.evaluation.pairs, *([config.evaluation.texts] if config.evaluation.texts else [])]
    if distributed.rank() == 0:
        prepare_corpora(config.data, sections, show)
    distributed.barrier()
    pairs, *texts = prepare_corpora(config.data, sections, show=False)
    choices = [ChoiceTest(section, config, tokenizer, show) for section in config.evaluation.choices]
    return HeldOut(config, pairs, texts[0] if texts else None, tokenizer, choices, show)


def evaluate_checkpoint(path: Path, overrides: list[str]) -> Evaluation:
    """Evaluates a checkpoint, or the newest one of a run folder, and writes `evaluation.json` beside it.

    Raises:
        CheckpointError: there is no whole checkpoint.
        StoreError: the held-out regions come from another detector.
    """
    distributed.initialise(timeout_seconds=600)
    checkpoint = path if (path / "model.safetensors").exists() else find_checkpoint(path / "checkpoints")
    if checkpoint is None:
        raise CheckpointError(f"{path}: neither a checkpoint (model.safetensors) nor a run folder with checkpoints/")
    config = load_config(checkpoint / "config.yaml", overrides)
    tokenizer = Tokenizer(checkpoint / "tokenizer")
    pairs = open_held_out(config, tokenizer, show=True)
    if pairs is None:
        raise ConfigError(f"{checkpoint / 'config.yaml'}: has no section evaluation; add evaluation.pairs.* as overrides")
    detector = read_state(checkpoint)["detector"]
    if detector:  # a model of texts alone knows none
        pairs.expect_detector(detector, f"the checkpoint {checkpoint}")
    unimo = UnimoModel(config.model)
    unimo.load_state_dict(read_model_weights(checkpoint))
    unimo.to(distributed.device())
    evaluation = evaluate_model(unimo, pairs, config.model.feature_width)
    if distributed.rank() == 0:
        write_evaluation(evaluation, checkpoint / "evaluation.json")
        print(json.dumps(evaluation.numbers, indent=1), file=sys.stdout)
    return evaluation
