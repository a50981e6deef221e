"""Greedy generation of text from an image.

Every rank must make the same number of passes, so a fixed number of steps is run and sentences are cut at their end.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from unimo_ds.batch import Batch
from unimo_ds.model.unimo import Unimo


@torch.no_grad()
def generate_greedily(
    unimo: Unimo, pack: Callable[[list[list[int]]], Batch], sentences: int, steps: int, end: int, forbidden: list[int]
) -> list[list[int]]:
    """The most probable next word, again and again.

    Args:
        unimo: the model, in evaluation mode.
        pack: makes the batch in which sentence i has the given words so far, and its last row is language target i.
        sentences: how many sentences; may be 0 on this rank.
        steps: how many words at most; the same on all ranks.
        end: id that ends a sentence.
        forbidden: ids that are never generated.
    """
    written: list[list[int]] = [[] for _ in range(sentences)]
    for _ in range(steps):
        scores_MV = unimo(pack(written), want_logits=True).language_logits_MV
        scores_MV[:, forbidden] = -torch.inf
        for sentence, word in zip(written, _best(scores_MV), strict=True):
            sentence.append(word)
    return [sentence[: sentence.index(end)] if end in sentence else sentence for sentence in written]


def _best(scores_MV: Tensor) -> list[int]:
    return [int(word) for word in scores_MV.argmax(1).tolist()]
