"""The inputs that every contender of a benchmark gets, and how much arithmetic they need at least.

Pairs have 10 to 100 regions and captions of 13 tokens on average, about 2,000 positions in all; documents have 64 to 512
tokens.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unimo_ds.batch import Batch
from unimo_ds.config import MaskingSection, ModelSection
from unimo_ds.data.packing import Packer
from unimo_ds.data.sequences import Sequence, ViewMaker
from unimo_ds.regions import Regions

VOCABULARY, FEATURE_WIDTH = 50265, 2048
_SEED = 0


class WordTokenizer:
    """Stands in for RoBERTa's tokenizer: ids are random, and each is a word."""

    mask = VOCABULARY - 1
    starts_word_V = np.ones(VOCABULARY, dtype=bool)


@dataclass(frozen=True)
class Workload:
    """Images (none for documents) with their texts, as ids without special tokens."""

    images: list[Regions]
    texts: list[npt.NDArray[np.int64]]

    @property
    def tokens(self) -> int:
        """Regions and text tokens, [CLS] and [SEP] with them: what tokens per second counts, for every contender."""
        return sum(map(len, self.images)) + sum(len(text) + 2 for text in self.texts)


def pairs(count: int) -> Workload:
    """Image-text pairs."""
    rng = np.random.default_rng(_SEED)
    images = [random_regions(rng, int(rng.integers(10, 101))) for _ in range(count)]
    lengths = np.clip(rng.poisson(13, count), 3, None)
    return Workload(images, [_text(rng, int(length)) for length in lengths])


def documents(count: int) -> Workload:
    """Texts alone."""
    rng = np.random.default_rng(_SEED)
    return Workload([], [_text(rng, int(rng.integers(64, 511))) for _ in range(count)])


def random_regions(rng: np.random.Generator, count: int, kept: int = 16) -> Regions:
    """An image with `count` random regions of 2,048 numbers."""
    corners = rng.random((count, 2)).astype("f4") * 400
    return Regions(
        640,
        480,
        np.concatenate([corners, corners + 60], axis=1),
        rng.random((count, FEATURE_WIDTH)).astype("f2"),
        rng.integers(0, 1601, (count, kept)).astype("u2"),
        rng.random((count, kept)).astype("f2"),
        np.zeros(count, "u2"),
        np.zeros(count, "f2"),
    )


def _text(rng: np.random.Generator, length: int) -> npt.NDArray[np.int64]:
    return rng.integers(4, VOCABULARY - 1, length)


def packed(workload: Workload) -> Batch:
    """The workload as our batch: one masked sequence a pair or document."""
    rng = np.random.default_rng(_SEED)
    views = ViewMaker(WordTokenizer(), MaskingSection())  # type: ignore[arg-type]
    packer = Packer(FEATURE_WIDTH, max_regions=100)
    for number, tokens in enumerate(workload.texts):
        image, shown = packer.add_image(workload.images[number]) if workload.images else (None, 0)
        packer.add(Sequence(image=image, regions=shown, text=views.masked_text(tokens, rng)))
    return packer.build()


def useful_flops(batch: Batch, model: ModelSection) -> float:
    """Floating-point operations that forward and backward need at least, padding and recomputation not counted.

    A product of [n, i] and [i, o] takes 2 n i o; backward takes twice the forward, once where inputs need no gradient.
    """
    width, positions = model.hidden_size, batch.positions
    lengths = np.diff(batch.cu_seqlens_S1.numpy()).astype(float)
    encoder = model.layers * (2 * 12 * width**2 * positions + 4 * width * float((lengths**2).sum()))
    encoder -= 2 * 9 * width**2 * (positions - len(batch.language_rows_M))  # the last layer ends with the rows that are read
    head = 2 * len(batch.language_labels_M) * (width**2 + width * model.vocabulary_size)
    features = 2 * len(batch.features_RF) * model.feature_width * width
    return 3 * (encoder + head) + 2 * features
