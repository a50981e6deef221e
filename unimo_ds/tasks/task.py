"""The one protocol of all tasks, and the module that the engine wraps.

A task reads its files as `Example`s, puts each into the packed stream as one or more sequences, reads its output off the hidden
states, and says what an output costs and what a set of outputs is worth. Loop, order, packing, checkpoints and log are those of
pre-training.

Shape suffixes: see `unimo_ds.batch`; B examples, C classes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from unimo_ds import distributed
from unimo_ds.batch import Batch
from unimo_ds.config import AdversarialSection, ModelSection
from unimo_ds.data.packing import Floats, Packer
from unimo_ds.data.prepared import Rejects
from unimo_ds.data.sequences import Ints
from unimo_ds.data.store import RegionStore
from unimo_ds.model.unimo import UnimoModel
from unimo_ds.tasks.perturbation import Perturbation

F = TypeVar("F")
Pairing = tuple[int, int]  # numbers of two examples: whose image and whose texts make one sequence
Vectors = Callable[[], tuple[Floats, Floats]]  # makes unit vectors of each example's image and text, each encoded alone


@dataclass(frozen=True)
class Example:
    """One example of a set.

    Attributes:
        name: what the set's own files call it: a question id, a pair id, a line number.
        texts: the sentences.
        image: key of its image in `store`, or None.
        store: the regions of the set's images, or None.
        label: what is to be predicted, in the task's own form; None where the files do not say.
        target: a text that is to be generated, tokenised beside the others; empty where there is none.
    """

    name: str
    texts: tuple[str, ...]
    image: str | None = None
    store: RegionStore | None = None
    label: Any = None
    target: str = ""


@dataclass(frozen=True)
class Judged:
    """An answer beside the truth, for people.

    Attributes:
        answer, truth: in words.
        worth: of the answer, by the measure of the task's score; more is better.
        belief: probability that the model gives the truth: the finer order among answers of equal worth. None: there is none.
    """

    answer: str
    truth: str
    worth: float
    belief: float | None = None


@dataclass(frozen=True)
class Tokens:
    """The tokens of an example's texts, without special ones, and how many rows a text may have with them.

    `target` is None where the example is to be evaluated, and the text to be generated.
    """

    texts: Sequence[Ints]
    target: Ints | None
    limit: int


@dataclass(frozen=True)
class TaskCounts:
    """The denominators of a micro-batch, before summing over ranks."""

    targets: int
    positions: int

    def tensor(self) -> Tensor:
        """int64 [2]."""
        return torch.tensor([self.targets, self.positions])


@dataclass(frozen=True)
class TaskTotals:
    """The denominators of a step, over all ranks and micro-batches."""

    targets: float
    positions: float


@dataclass(frozen=True)
class TaskBatch:
    """A packed stream with what is to be predicted; the loss is a mean over `count` of it.

    `perturbation` is what a round of adversarial training adds to its inputs.
    """

    batch: Batch
    targets: Tensor
    count: int
    perturbation: Perturbation | None = None

    def counts(self) -> TaskCounts:
        """The denominators of this batch's loss."""
        return TaskCounts(self.count, self.batch.positions)

    def to(self, device: torch.device) -> "TaskBatch":
        """The same on `device`."""
        return TaskBatch(self.batch.to(device), self.targets.to(device, non_blocking=True), self.count)

    def pin_memory(self) -> "TaskBatch":
        """The same in page-locked memory."""
        return TaskBatch(self.batch.pin_memory(), self.targets.pin_memory(), self.count)


class Task(ABC, Generic[F]):
    """A family of tasks with the settings of one; F is what a set's files are called by in the configuration.

    Attributes:
        heads: the heads of `UnimoModel` that it reads; the others are left out.
        chosen_by: name of the number, among those of `score`, by which the best checkpoint is chosen.
        ending: of the files that `predictions` are written to.
        voices: whether its texts are dialogues, whose roles and turns are embedded as well.
        adversarial: how it is taught on perturbed inputs, which an `AdversarialTask` can be; None: it is not.
    """

    heads: tuple[str, ...]
    chosen_by: str
    ending: str
    voices = False
    adversarial: AdversarialSection | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """What the numbers of the head stand for: a checkpoint keeps it, and a head is only used for the same."""
        return {}

    @property
    def score_names(self) -> Sequence[str]:
        """What the scores of the head stand for, in their order; none: the task has no head of its own."""
        return ()

    @property
    def views(self) -> int:
        """How often an example stands in the stream while it is taught."""
        return 1

    @abstractmethod
    def read(self, files: F, rejects: Rejects, teach: bool) -> Iterator[Example]:
        """The examples of a set, to train on or to be evaluated; what cannot be used is told to `rejects`."""

    @abstractmethod
    def build_head(self, model: ModelSection) -> nn.Module:
        """What the task adds to the model."""

    @abstractmethod
    def add(self, packer: Packer, example: Example, tokens: Tokens, number: int) -> None:
        """Adds the sequence of an example to a micro-batch.

        Args:
            packer: of the micro-batch; its image was shown there.
            example: it.
            tokens: of its texts.
            number: of the example in the micro-batch.
        """

    def pairings(self, number: int, examples: Sequence[Example], rng: np.random.Generator) -> Sequence[Pairing]:
        """What teaches example `number` of a set, each a sequence: by default its own image and texts."""
        return [(number, number)]

    def text_rows(self, tokens: Tokens) -> int:
        """Rows of an example's texts in the stream, at most."""
        texts = tokens.texts if tokens.target is None else (*tokens.texts, tokens.target)
        most = tokens.limit if tokens.target is None else 2 * tokens.limit
        return min(sum(len(text) + 1 for text in texts) + 2, most)

    def teach(self, packed: Batch, examples: Sequence[Example]) -> TaskBatch:
        """The stream of some examples with what is to be predicted."""
        return TaskBatch(packed, self.targets(examples), len(examples))

    @abstractmethod
    def targets(self, examples: Sequence[Example]) -> Tensor:
        """What is to be predicted beside the words of the stream, first axis B."""

    @abstractmethod
    def output(self, unimo: UnimoModel, head: nn.Module, batch: Batch) -> Tensor:
        """What the model says of a stream that it is taught, float32; first axis B, or each word that is to be predicted."""

    @abstractmethod
    def losses(self, output: Tensor, targets: Tensor) -> Tensor:
        """What each of the outputs costs, float32."""

    def cost(self, unimo: UnimoModel, head: nn.Module, batch: TaskBatch) -> Tensor:
        """What the outputs of a stream cost together, a float32 scalar."""
        return self.losses(self.output(unimo, head, batch.batch), batch.targets).sum()

    def asked(self, examples: Sequence[Example], vectors: Vectors) -> Ints:
        """The pairings that are answered to evaluate a set, [N, 2]: by default every example's own image and texts."""
        return np.arange(len(examples)).repeat(2).reshape(-1, 2)

    def answers(self, unimo: UnimoModel, head: nn.Module, batch: Batch) -> Iterable[Any]:
        """The answer to each sequence of a stream; every rank must call it as often."""
        found: Floats = self.output(unimo, head, batch).cpu().numpy()
        return found

    def gathered(self, asked_N2: Ints, answers: list[Any], examples: Sequence[Example]) -> list[Any]:
        """The answer to each example of a set, from the answers to what was asked."""
        return answers

    @abstractmethod
    def score(self, answers: Sequence[Any], examples: Sequence[Example]) -> dict[str, float]:
        """What the answers to a whole set with labels are worth."""

    def further_scores(self, answers: Sequence[Any], examples: Sequence[Example]) -> tuple[dict[str, float], list[str]]:
        """Scores of `unimo-ds evaluate` alone, too slow for training; and which cannot be had here and why, a line each."""
        return {}, []

    @abstractmethod
    def judge(self, answers: Sequence[Any], examples: Sequence[Example]) -> list[Judged]:
        """Each answer to a set with labels beside the truth."""

    @abstractmethod
    def predictions(self, answers: Sequence[Any], examples: Sequence[Example]) -> str:
        """The answers, as a file of the task's public evaluation."""


class TaskModel(nn.Module):
    """The model with a task's head: what the engine wraps.

    Args:
        unimo: with the heads that the task reads.
        task: says what is read and what it costs.
        model: the shape.
    """

    def __init__(self, unimo: UnimoModel, task: Task[Any], model: ModelSection) -> None:
        super().__init__()
        self.unimo = unimo
        self.head = task.build_head(model)
        self._task = task

    def forward(self, batch: TaskBatch, totals: TaskTotals) -> tuple[Tensor, Tensor]:
        """The loss to differentiate, and float32 [1], this micro-batch's share of the step's loss.

        The loss is a scalar whose gradient, averaged over ranks as data parallelism does, is the gradient of the step's loss.
        """
        share = self._task.cost(self.unimo, self.head, batch) / max(1.0, totals.targets)
        return share * distributed.world_size(), share.detach()[None]

    def answers(self, batch: Batch) -> Iterable[Any]:
        """The answer to each sequence of a stream (`Task.answers`)."""
        return self._task.answers(self.unimo, self.head, batch)
