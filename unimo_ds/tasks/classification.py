"""What tasks with one sequence and one output an example share: pooled rows, and classes.

Shape suffixes: see `unimo_ds.batch`; B examples, C classes, D hidden width.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unimo_ds.batch import FIRST_POSITION, Kind
from unimo_ds.data.packing import Packer
from unimo_ds.data.sequences import IGNORED, Ints, Member, PackedText
from unimo_ds.data.sequences import Sequence as View
from unimo_ds.errors import DataError
from unimo_ds.tasks.task import Example, Judged, Tokens
from unimo_ds.tokenizer import CLS, SEP


def joined(texts: Sequence[Ints], limit: int) -> PackedText:
    """`[CLS] a [SEP]` or `[CLS] a [SEP] b [SEP]`, cut to `limit` rows: the longer text loses its end first."""
    kept = [len(text) for text in texts]
    while sum(kept) > limit - 1 - len(texts):
        kept[kept.index(max(kept))] -= 1
    parts = [np.append(text[:count], SEP) for text, count in zip(texts, kept, strict=True)]
    ids = np.concatenate([[CLS], *parts]).astype(np.int64)
    return PackedText(ids, np.arange(len(ids)) + FIRST_POSITION, np.full(len(ids), IGNORED), len(ids))


def add_text(packer: Packer, tokens: Tokens, number: int) -> None:
    """One sequence of text."""
    packer.add(View(text=joined(tokens.texts, tokens.limit), member=Member(number, Kind.ALONE)))


def show_image(packer: Packer, example: Example) -> tuple[int | None, int]:
    """The number of the example's image in a micro-batch, and how many regions it shows; None and 0 where it has none.

    Raises:
        DamagedRecordError: it cannot be read.
    """
    return (None, 0) if example.store is None or example.image is None else packer.show(example.store, example.image)


def add_pair(packer: Packer, example: Example, tokens: Tokens, number: int) -> None:
    """One sequence of an image and a text."""
    image, shown = show_image(packer, example)
    text = joined(tokens.texts, tokens.limit)
    packer.add(View(image=image, regions=shown, text=text, member=Member(number, Kind.PAIR)))


class Classes:
    """The classes of a task by name.

    Args:
        names: as they stand in the files.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._numbers = {name: number for number, name in enumerate(names)}

    def number(self, name: str) -> int:
        """The number of a class.

        Raises:
            DataError: there is no such class.
        """
        if name not in self._numbers:
            raise DataError(f"label {name!r} is none of {', '.join(map(repr, self.names))}")
        return self._numbers[name]

    def losses(self, output_BC: Tensor, targets_B: Tensor) -> Tensor:
        """Cross-entropies, [B]."""
        return F.cross_entropy(output_BC, targets_B, reduction="none")

    def targets(self, examples: Sequence[Example]) -> Tensor:
        """Numbers of the classes, int64 [B]; 0 where the files do not say."""
        return torch.tensor([example.label or 0 for example in examples], dtype=torch.int64)

    def chosen(self, scores: Sequence[Any]) -> list[str]:
        """The likeliest class of each example, by its scores [C]."""
        return [self.names[number] for number in np.argmax(scores, axis=1)]

    def likeliest(self, scores_C: Any) -> list[tuple[str, float]]:
        """All classes with their probabilities, the likeliest first."""
        probabilities_C = torch.from_numpy(scores_C).double().softmax(0).tolist()
        return sorted(zip(self.names, probabilities_C, strict=True), key=lambda each: -each[1])

    def judge(self, scores: Sequence[Any], examples: Sequence[Example]) -> list[Judged]:
        """Right is worth 1 and wrong 0, ordered by the probability of the true class."""
        log_probabilities_BC = F.log_softmax(torch.from_numpy(np.stack(scores)).double(), dim=1)
        return [
            Judged(
                chosen, self.names[example.label], float(chosen == self.names[example.label]), float(row_C[example.label].exp())
            )
            for chosen, example, row_C in zip(self.chosen(scores), examples, log_probabilities_BC, strict=True)
        ]
