"""What a model answers to a set: the passes of an evaluation, shared among the ranks, and the answers in order on every rank.

Shape suffixes: N pairings, E examples, I images, D hidden width.
"""

from typing import Any

import numpy as np
import torch

from unimo_ds import distributed
from unimo_ds.data.packing import Floats
from unimo_ds.progress import Progress
from unimo_ds.tasks.examples import ExampleSet
from unimo_ds.tasks.task import TaskModel

_SHOWN_FROM = 100_000  # pairings: what takes long on any machine shows how far it is
_AT_ONCE = 32  # images or texts, each alone


@torch.no_grad()
def answers_of(model: TaskModel, examples: ExampleSet, feature_width: int) -> list[Any]:
    """The answer to every example of a set, on every rank; every rank must call it.

    Raises:
        DamagedRecordError: an image cannot be read any more.
    """
    training = model.training
    model.eval()
    try:
        task = examples.task
        asked_N2 = task.asked(examples.examples, lambda: _vectors_alone(model, examples, feature_width))
        shares = list(examples.shares(asked_N2))
        prepared = examples.prepare(asked_N2, shares, feature_width)
        parts = []
        shown = len(asked_N2) >= _SHOWN_FROM and distributed.rank() == 0
        with Progress(f"{examples.name}, on rank 0", -(-len(asked_N2) // distributed.world_size()), "pairs", shown) as progress:
            for places, step in zip(shares, prepared, strict=True):
                parts.append((places, model.answers(step.batches[0].to(distributed.device()))))
                progress.advance(len(places))
    finally:
        model.train(training)
    return task.gathered(asked_N2, distributed.in_order(parts), examples.examples)


def score_set(model: TaskModel, examples: ExampleSet, feature_width: int) -> dict[str, float]:
    """What the model's answers to a set with labels are worth; every rank must call it."""
    return examples.task.score(answers_of(model, examples, feature_width), examples.examples)


def _vectors_alone(model: TaskModel, examples: ExampleSet, feature_width: int) -> tuple[Floats, Floats]:
    """Unit vectors of each example's image and text, each encoded alone, [E, D]; an image is encoded once."""

    def image_vectors(images: list[int]) -> Floats:
        batch = examples.pack_alone(images, [], feature_width)
        vectors: Floats = model.unimo(batch.to(distributed.device())).image_vectors_ID.cpu().numpy()
        return vectors

    def text_vectors(texts: list[int]) -> Floats:
        batch = examples.pack_alone([], texts, feature_width)
        vectors: Floats = model.unimo(batch.to(distributed.device())).text_vectors_XD.cpu().numpy()
        return vectors

    firsts_I, image_E = np.unique(examples.images, return_index=True, return_inverse=True)[1:]
    images_ID = distributed.over_ranks(len(firsts_I), _AT_ONCE, lambda places: image_vectors(firsts_I[places].tolist()))
    texts_ED = distributed.over_ranks(len(examples), _AT_ONCE, text_vectors)
    return np.stack(images_ID)[image_E], np.stack(texts_ED)
