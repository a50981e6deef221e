"""A set of a task, read and tokenised, and its steps: what makes a micro-batch, on which rank.

The order of examples is pre-training's (`unimo_ds.data.order`): a pure function of seed and step, on any number of ranks.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from unimo_ds import distributed
from unimo_ds.config import TaskDataSection
from unimo_ds.data.corpus import can_be_read
from unimo_ds.data.loader import StepData
from unimo_ds.data.order import Mixture, order
from unimo_ds.data.packing import Packer
from unimo_ds.data.plan import Item, share
from unimo_ds.data.prepared import Rejects, batched
from unimo_ds.errors import ConfigError, DamagedRecordError, DataError
from unimo_ds.tasks.task import Example, Task, TaskBatch, Tokens
from unimo_ds.tokenizer import Tokenizer

_EXAMPLES_AT_ONCE = 32  # of an evaluation


class ExampleSet:
    """The examples of a set with their tokens.

    Args:
        name: for messages.
        task: whose examples they are.
        files: where they are; several are joined.
        tokenizer: the run's tokenizer.
        data: how much of an example is read.
        teach: examples to train on; else to be evaluated, and then those with a damaged image are left out at once.
        show: report what is left out.

    Raises:
        DataError: not one example can be used.
    """

    def __init__(
        self,
        name: str,
        task: Task[Any],
        files: Sequence[Any],
        tokenizer: Tokenizer,
        data: TaskDataSection,
        teach: bool,
        show: bool,
    ) -> None:
        self.name, self.task, self._data = name, task, data
        rejects = Rejects()
        found = chain.from_iterable(task.read(part, rejects, teach) for part in files)
        self.examples = list(found if teach else _readable(found, rejects))
        if show:
            rejects.report(name, len(self.examples))
        if not self.examples:
            raise DataError(f"{name}: not one example can be used" + "".join(f"; {reason}" for reason in rejects.reasons[:1]))
        self._targets = int(teach and any(example.target for example in self.examples))  # texts behind the others
        numbers: dict[str, int] = {}  # each text is tokenised once: a story is told again with every question about it
        texts = chain.from_iterable(self._texts(example) for example in self.examples)
        self._text_numbers = np.fromiter((numbers.setdefault(text, len(numbers)) for text in texts), np.int64)
        encoded = [np.array(ids, np.int32) for batch in batched(numbers) for ids in tokenizer.encode(batch)]
        self._tokens = np.concatenate([np.zeros(0, np.int32), *encoded])
        self._offsets = np.cumsum([0, *map(len, encoded)])
        self._first_text = np.cumsum([0, *(len(self._texts(example)) for example in self.examples)])
        counts: dict[tuple[int, str], int] = {}
        self._image_rows = [_image_rows(example, data.max_regions, counts) for example in self.examples]

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def labelled(self) -> bool:
        """Whether all examples have labels, so that answers to them can be scored."""
        return all(example.label is not None for example in self.examples)

    def _texts(self, example: Example) -> tuple[str, ...]:
        return (*example.texts, example.target) if self._targets else example.texts

    def tokens(self, number: int) -> Tokens:
        """The tokens of an example."""
        places = self._text_numbers[self._first_text[number] : self._first_text[number + 1]]
        texts = [self._tokens[self._offsets[place] : self._offsets[place + 1]].astype(np.int64) for place in places]
        target = texts.pop() if self._targets else None
        return Tokens(texts, target, self._data.max_text_tokens)

    def positions(self, number: int) -> int:
        """Rows of an example in the stream, at most."""
        return self.task.text_rows(self.tokens(number)) + self._image_rows[number]

    def pack(self, numbers: Sequence[int], feature_width: int, problems: list[str]) -> TaskBatch:
        """The micro-batch of some examples; what is left out is added to `problems`."""
        packer = Packer(feature_width, self._data.max_regions)
        packed: list[Example] = []
        for number in numbers:
            example = self.examples[number]
            try:
                self.task.add(packer, example, self.tokens(number), len(packed))
            except DamagedRecordError as error:
                problems.append(f"{self.name}, example {example.name!r} left out: {error}")
            else:
                packed.append(example)
        return self.task.teach(packer.build(), packed)

    def shares(self) -> Iterator[list[int]]:
        """This rank's batches of an evaluation; examples of similar length together, as many batches on every rank."""
        by_length = np.argsort([self.positions(number) for number in range(len(self))], kind="stable")
        for places in distributed.shares(len(self), _EXAMPLES_AT_ONCE):
            yield by_length[places].tolist() if places else []


def _readable(examples: Iterator[Example], rejects: Rejects) -> Iterator[Example]:
    """Those whose image is whole; each image is looked at once."""
    known: dict[tuple[int, str], bool] = {}
    for example in examples:
        if example.store is not None and example.image is not None:
            key = (id(example.store), example.image)
            if key not in known:
                known[key] = can_be_read(example.store, example.image, rejects, f"example {example.name!r}")
            if not known[key]:
                continue
        yield example


def _image_rows(example: Example, max_regions: int, counts: dict[tuple[int, str], int]) -> int:
    if example.store is None or example.image is None:
        return 0
    key = (id(example.store), example.image)
    if key not in counts:
        counts[key] = 1 + min(example.store.count(example.image), max_regions)
    return counts[key]


class TaskSteps(Dataset[StepData[TaskBatch]]):
    """The steps of a fine-tuning run, by number.

    Args:
        examples: the training set.
        batch_size: examples of a step, over all ranks.
        budget: positions of a micro-batch, at most.
        seed: the run's seed.
        feature_width: F of the regions stores.

    Raises:
        ConfigError: one example alone is over the budget.
    """

    def __init__(self, examples: ExampleSet, batch_size: int, budget: int, seed: int, feature_width: int) -> None:
        longest = max(range(len(examples)), key=examples.positions)
        if (most := examples.task.views * examples.positions(longest)) > budget:
            name = examples.examples[longest].name
            raise ConfigError(
                f"data.positions_per_micro_batch = {budget}: example {name!r} of {examples.name} alone "
                f"needs {most} positions; raise it, or lower data.max_text_tokens or data.max_regions"
            )
        self._examples, self._budget, self._seed, self._feature_width = examples, budget, seed, feature_width
        self._mixture = Mixture((min(batch_size, len(examples)),), (len(examples),))
        self._rank, self._world_size = distributed.rank(), distributed.world_size()

    def __getitem__(self, step: int) -> StepData[TaskBatch]:
        draws, views = order(self._seed, self._mixture, step), self._examples.task.views
        items = [Item(draw, (), views * self._examples.positions(draw.index)) for draw in draws]
        mine = [ranks[self._rank] for ranks in share(items, self._world_size, self._budget)]
        problems: list[str] = []
        numbers = [[item.draw.index for item in micro] for micro in mine]
        batches = [self._examples.pack(micro, self._feature_width, problems) for micro in numbers]
        return StepData(step, batches, [item.draw for items in mine for item in items], problems)
