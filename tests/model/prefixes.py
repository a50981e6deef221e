"""Sentences to generate: an image, a text, or both, packed as prefixes alone or with what was written after them."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from tests.helpers import TINY, VOCABULARY, random_regions, view_maker
from unimo_ds.batch import FIRST_POSITION, Batch, Target
from unimo_ds.data.packing import Packer
from unimo_ds.data.sequences import IGNORED, PackedText, Sequence
from unimo_ds.model.unimo import UnimoModel
from unimo_ds.regions import Regions
from unimo_ds.tokenizer import CLS

PREFIXES = {"images": (5, 0), "texts": (0, 9), "images and texts": (4, 6), "of all kinds": (None, None)}


@dataclass(frozen=True)
class Given:
    """What a text is generated from."""

    regions: Regions | None
    source: npt.NDArray[np.int64] | None


def some(kind: str, count: int, seed: int = 0) -> list[Given]:
    """`count` sentences of different lengths; those of all kinds take turns."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        regions, words = PREFIXES[kind]
        if regions is None or words is None:
            regions, words = [(5, 0), (0, 9), (4, 6)][number % 3]
        image = random_regions(rng, regions + 2 * number) if regions else None
        made.append(Given(image, rng.integers(4, VOCABULARY - 1, words + number) if words else None))
    return made


def pack(given: list[Given], written: list[list[int]] | None = None) -> Batch:
    """The prefixes alone; with `written`, [CLS] and these words after each, every row of theirs predicting."""
    packer = Packer(TINY.feature_width, 100)
    for number, each in enumerate(given):
        image, shown = packer.add_image(each.regions) if each.regions is not None else (None, 0)
        text = None if each.source is None else view_maker().whole_text(each.source)
        if written is None:
            packer.add(Sequence(image=image, regions=shown, text=text))
        else:
            whole = _with_words(text, [CLS, *written[number]])
            packer.add(Sequence(image=image, regions=shown, text=whole, causal=True, target=Target.SEQ2SEQ))
    return packer.build()


def _with_words(source: PackedText | None, words: list[int]) -> PackedText:
    own = np.arange(len(words)) + FIRST_POSITION
    if source is None:
        return PackedText(np.array(words), own, np.full(len(words), 4), 0)
    return PackedText(
        np.concatenate([source.ids, words]),
        np.concatenate([source.positions, own]),
        np.concatenate([np.full(len(source.ids), IGNORED), np.full(len(words), 4)]),
        len(source.ids),
    )


def stirred(seed: int = 0, dtype: torch.dtype = torch.float32) -> UnimoModel:
    """A model whose scores depend strongly on what it sees, in evaluation mode."""
    torch.manual_seed(seed)
    unimo = UnimoModel(TINY)
    with torch.no_grad():
        for parameter in unimo.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return unimo.to(dtype).eval()


@torch.no_grad()
def next_logits(unimo: UnimoModel, given: list[Given], written: list[list[int]]) -> torch.Tensor:
    """Scores of the word after what was written of each sentence, by one pass over everything, [S, V]."""
    batch = pack(given, written)
    lasts = np.cumsum([len(words) + 1 for words in written]) - 1
    logits = unimo(batch, want_logits=True).language_logits_MV
    assert logits is not None
    return logits[torch.from_numpy(lasts)]
