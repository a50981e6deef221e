"""Adversarial training of a task: what a pass over perturbed inputs costs, and the passes of a step (unimo-spec, 7.4).

The three views of a micro-batch are one stream and one forward pass, so that ZeRO-3 gathers the weights once a round, and every
rank calls every module as often as every other.

Shape suffixes: see `unimo_ds.batch`; N outputs, C classes or words.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unimo_ds.batch import Batch
from unimo_ds.config import AdversarialSection
from unimo_ds.model.unimo import UnimoModel
from unimo_ds.tasks.perturbation import VIEWS, Perturbation
from unimo_ds.tasks.task import Task, TaskBatch

F = TypeVar("F")


class AdversarialTask(Task[F]):
    """A task that can be taught adversarially, where `adversarial` says how."""

    @abstractmethod
    def scored(
        self, unimo: UnimoModel, head: nn.Module, batch: Batch, targets: Tensor, perturbation_WD: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What each output costs, and the scores of its classes: float32 [N] and [N, C].

        Args:
            unimo, head: the model.
            batch: a stream.
            targets: of its examples.
            perturbation_WD: as `UnimoModel.forward` takes it.
        """

    @property
    def views(self) -> int:
        return 1 if self.adversarial is None else VIEWS

    def cost(self, unimo: UnimoModel, head: nn.Module, batch: TaskBatch) -> Tensor:
        """Of one round: the costs of all views by the number of rounds, and the divergences, which are not divided by it."""
        if batch.perturbation is None:
            return super().cost(unimo, head, batch)
        assert self.adversarial is not None
        views, text_WD = batch.perturbation.views(batch.batch)
        losses_N, scores_NC = self.scored(unimo, head, views, batch.targets.repeat(VIEWS), text_WD)
        pure_NC, *others = scores_NC.chunk(VIEWS)
        # Where the classes are words, each intermediate value is as large as the scores: they are made again, not kept.
        apart = [checkpoint(divergences, pure_NC, other_NC, use_reentrant=False).sum() for other_NC in others]
        cost: Tensor = losses_N.sum() / self.adversarial.rounds + self.adversarial.divergence_weight * sum(apart)
        return cost


def divergences(first_NC: Tensor, second_NC: Tensor) -> Tensor:
    """`KL(p | q) + KL(q | p)` of two distributions given by their scores, [N]; both have gradients."""
    first_NC, second_NC = first_NC.log_softmax(1), second_NC.log_softmax(1)
    return ((first_NC.exp() - second_NC.exp()) * (first_NC - second_NC)).sum(1)


class Rounds:
    """The passes of a step: each micro-batch in all its rounds, moved between them by the gradients that the last one left.

    Args:
        batches: the micro-batches.
        section: the task's.
        hidden_size: D of the model.
    """

    def __init__(self, batches: Sequence[TaskBatch], section: AdversarialSection, hidden_size: int) -> None:
        self._batches, self._section, self._hidden_size = batches, section, hidden_size

    def __len__(self) -> int:
        return len(self._batches) * self._section.rounds

    def __iter__(self) -> Iterator[TaskBatch]:
        for taught in self._batches:
            perturbation = Perturbation.drawn(taught.batch, self._hidden_size, self._section.initial_magnitude)
            for number in range(self._section.rounds):
                if number:
                    perturbation = perturbation.moved(taught.batch, self._section)
                yield replace(taught, perturbation=perturbation)
