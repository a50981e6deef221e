"""Which image does a caption belong to, and which caption to an image? Flickr30k (unimo-spec, 7.3).

Image and text are encoded together and scored. A caption is taught with its image beside as many other images with the same
caption, and as many captions of other images with its own image, drawn anew in every epoch; the circle loss draws the right
score to 1 and the others to 0. To be evaluated every image is scored with every caption, or with those alone that the vectors
of the two, each encoded alone, bring together.

Shape suffixes: see `unimo_ds.batch`; B examples, N negatives of a side, E examples of a set, J images of a set, A asked.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimo_ds.batch import Batch
from unimo_ds.config import CaptionFiles, ModelSection, RetrievalSection
from unimo_ds.data.packing import Packer
from unimo_ds.data.prepared import Rejects
from unimo_ds.data.sequences import Ints
from unimo_ds.data.store import RegionStore
from unimo_ds.errors import DataError
from unimo_ds.metrics.ranking import recall_both_ways
from unimo_ds.model.task_heads import ScoreHead
from unimo_ds.model.unimo import UnimoModel
from unimo_ds.tasks.captions import captioned
from unimo_ds.tasks.classification import add_pair
from unimo_ds.tasks.task import Example, Judged, Pairing, Task, Tokens, Vectors
from unimo_ds.tokenizer import Tokenizer

_SHOWN = 10  # images that a prediction lists


class Retrieval(Task[CaptionFiles]):
    """Images and captions that find each other.

    Args:
        section: of the run.
        tokenizer: of the run.
    """

    heads = ("text_pooler", "image_pooler")
    chosen_by = "mean_r1"
    ending = ".jsonl"

    def __init__(self, section: RetrievalSection, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._negatives, self._margin, self._scale = section.negatives, section.margin, section.scale
        self._candidates = section.candidates

    @property
    def score_names(self) -> Sequence[str]:
        return ("match",)

    def read(self, files: CaptionFiles, rejects: Rejects, teach: bool) -> Iterator[Example]:
        store, images = RegionStore(files.regions), set()
        for number, name, captions in captioned(files, self._tokenizer, rejects):
            key = files.images.format(name)
            if key not in store:
                rejects(f"{files.path}: image {key!r} has no regions in {store.folder}")
                continue
            if captions:
                images.add(key)
            yield from (Example(number, (caption,), key, store, label=key) for caption in captions)
        if teach and len(images) <= self._negatives:
            raise DataError(
                f"{files.path}: has {len(images)} images with captions and regions; task.negatives = {self._negatives} wants "
                "at least one more, so that each caption has other images"
                + "".join(f"; {reason}" for reason in rejects.reasons[:1])
            )

    def build_head(self, model: ModelSection) -> nn.Module:
        return ScoreHead(model)

    def add(self, packer: Packer, example: Example, tokens: Tokens, number: int) -> None:
        add_pair(packer, example, tokens, number)

    def pairings(self, number: int, examples: Sequence[Example], rng: np.random.Generator) -> Sequence[Pairing]:
        """The pair itself, other images with its caption, captions of other images with its image."""
        images = _of_other_images(number, examples, self._negatives, rng)
        captions = _of_other_images(number, examples, self._negatives, rng)
        return [(number, number), *((other, number) for other in images), *((number, other) for other in captions)]

    def targets(self, examples: Sequence[Example]) -> Tensor:
        return torch.zeros(0)

    def output(self, unimo: UnimoModel, head: nn.Module, batch: Batch) -> Tensor:
        image_SD, text_SD = unimo.pooled(batch)
        scores_S: Tensor = head(text_SD * image_SD)
        return scores_S

    def losses(self, output: Tensor, targets: Tensor) -> Tensor:
        scores_B12N = output.view(-1, 1 + 2 * self._negatives)
        right_B, images_BN, captions_BN = scores_B12N[:, 0], *scores_B12N[:, 1:].chunk(2, dim=1)
        of_images_B = circle_loss(right_B, images_BN, self._margin, self._scale)
        return (of_images_B + circle_loss(right_B, captions_BN, self._margin, self._scale)) / 2

    def asked(self, examples: Sequence[Example], vectors: Vectors) -> Ints:
        images_J, _ = _images_of(examples)
        if self._candidates is None:
            return np.stack(np.meshgrid(images_J, np.arange(len(examples))), axis=-1).reshape(-1, 2)
        images_ED, texts_ED = vectors()
        similarity_JE = images_ED[images_J] @ texts_ED.T
        wanted_JE = _best(similarity_JE, self._candidates) | _best(similarity_JE.T, self._candidates).T
        places_A, captions_A = np.nonzero(wanted_JE)
        return np.stack([images_J[places_A], captions_A], axis=1)

    def gathered(self, asked_N2: Ints, answers: list[Any], examples: Sequence[Example]) -> list[Any]:
        """For each caption the scores of all images, float32 [J]; where none was asked for, minus infinity."""
        images_J, _ = _images_of(examples)
        scores_EJ = np.full((len(examples), len(images_J)), -np.inf, np.float32)
        scores_EJ[asked_N2[:, 1], np.searchsorted(images_J, asked_N2[:, 0])] = np.array(answers, np.float32)
        return list(scores_EJ)

    def score(self, answers: Sequence[Any], examples: Sequence[Example]) -> dict[str, float]:
        """Recall at 1, 5 and 10 of images by captions (`t2i`) and of captions by images (`i2t`), and the mean at 1."""
        images_J, image_E = _images_of(examples)
        found = recall_both_ways(np.stack(answers), image_E[:, None] == np.arange(len(images_J)))
        return {**found, "mean_r1": (found["t2i_r1"] + found["i2t_r1"]) / 2}

    def judge(self, answers: Sequence[Any], examples: Sequence[Example]) -> list[Judged]:
        """A caption's own image among all, by its place: worth 1 over it, as in the mean reciprocal rank."""
        images_J, image_E = _images_of(examples)
        judged = []
        for scores_J, own, example in zip(answers, image_E, examples, strict=True):
            place = 1 + int((np.delete(scores_J, own) >= scores_J[own]).sum())
            first = examples[images_J[np.argmax(scores_J)]].image
            judged.append(
                Judged(f"{first}; the true one comes as number {place} of {len(images_J)}", str(example.image), 1 / place)
            )
        return judged

    def predictions(self, answers: Sequence[Any], examples: Sequence[Example]) -> str:
        """JSON Lines: each caption with the images that it finds, best first."""
        images_J, _ = _images_of(examples)
        rows = []
        for example, scores_J in zip(examples, answers, strict=True):
            best = np.argsort(-scores_J, kind="stable")[:_SHOWN]
            found = [examples[images_J[place]].image for place in best if np.isfinite(scores_J[place])]
            rows.append({"caption": example.texts[0], "image": example.image, "found": found})
        return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)


def circle_loss(right_B: Tensor, wrong_BN: Tensor, margin: float, scale: float) -> Tensor:
    """The circle loss of each example with one right score (Sun et al., 2020, equation 6; unimo-spec, 7.3), [B].

    The weights of the scores are their distances from where they may be, and have no gradient.
    """
    right_weight_B = F.relu(1 + margin - right_B.detach())
    wrong_weights_BN = F.relu(wrong_BN.detach() + margin)
    right_exponent_B = -scale * right_weight_B * (right_B - (1 - margin))
    wrong_exponents_BN = scale * wrong_weights_BN * (wrong_BN - margin)
    return F.softplus(wrong_exponents_BN.logsumexp(1) + right_exponent_B)


def _of_other_images(number: int, examples: Sequence[Example], count: int, rng: np.random.Generator) -> list[int]:
    """Random examples of `count` different images, none that of example `number`."""
    images = {examples[number].image}
    found: list[int] = []
    while len(found) < count:
        other = int(rng.integers(len(examples)))
        if examples[other].image not in images:
            images.add(examples[other].image)
            found.append(other)
    return found


def _images_of(examples: Sequence[Example]) -> tuple[Ints, Ints]:
    """The first example of each image, rising, [J]; and for each example the place of its image there, [E]."""
    places: dict[str | None, int] = {}
    firsts: list[int] = []
    for number, example in enumerate(examples):
        if example.image not in places:
            places[example.image] = len(firsts)
            firsts.append(number)
    return np.array(firsts), np.array([places[example.image] for example in examples])


def _best(scores_QC: Any, most: int) -> Any:
    """bool [Q, C]: the candidates of each query that score highest."""
    kept = min(most, scores_QC.shape[1])
    best_QC = np.zeros(scores_QC.shape, dtype=bool)
    np.put_along_axis(best_QC, np.argpartition(-scores_QC, kept - 1, axis=1)[:, :kept], True, axis=1)
    return best_QC
