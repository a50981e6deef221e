"""A set of a task, read and tokenised, and its steps: what makes a micro-batch, on which rank.

The order of examples is pre-training's (`unimo_ds.data.order`): a pure function of seed and step, on any number of ranks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from unimo_ds import distributed
from unimo_ds.batch import Batch
from unimo_ds.config import TaskDataSection
from unimo_ds.data.corpus import can_be_read
from unimo_ds.data.loader import StepData, load_steps
from unimo_ds.data.order import Draw, Mixture, generator, order
from unimo_ds.data.packing import Packer, pack_alone
from unimo_ds.data.plan import CANDIDATES, Item, share
from unimo_ds.data.prepared import Rejects, batched
from unimo_ds.data.sequences import Ints
from unimo_ds.data.store import RegionStore
from unimo_ds.errors import ConfigError, DamagedRecordError, DataError
from unimo_ds.tasks.classification import joined, show_image
from unimo_ds.tasks.task import Example, Pairing, Task, TaskBatch, Tokens
from unimo_ds.tokenizer import Tokenizer

_WORTH_A_WORKER = 100  # batches of an evaluation: fewer are packed before a worker has started


class ExampleSet:
    """The examples of a set with their tokens.

    Args:
        name: for messages.
        task: whose examples they are.
        examples: at least one; `read` takes them from files.
        tokenizer: the run's tokenizer.
        data: how much of an example is read.
        teach: they are to train on; else to be evaluated.

    Attributes:
        images: a number for each example, the same for examples of one image.
    """

    def __init__(
        self,
        name: str,
        task: Task[Any],
        examples: Sequence[Example],
        tokenizer: Tokenizer,
        data: TaskDataSection,
        teach: bool,
    ) -> None:
        self.name, self.task, self.examples, self._data = name, task, examples, data
        self._targets = int(teach and any(example.target for example in self.examples))  # texts behind the others
        numbers: dict[str, int] = {}  # each text is tokenised once: a story is told again with every question about it
        texts = chain.from_iterable(self._texts(example) for example in self.examples)
        self._text_numbers = np.fromiter((numbers.setdefault(text, len(numbers)) for text in texts), np.int64)
        encoded = [np.array(ids, np.int32) for batch in batched(numbers) for ids in tokenizer.encode(batch)]
        self._tokens = np.concatenate([np.zeros(0, np.int32), *encoded])
        self._offsets = np.cumsum([0, *map(len, encoded)])
        self._first_text = np.cumsum([0, *(len(self._texts(example)) for example in self.examples)])
        self._text_rows = np.array([task.text_rows(self.tokens(number)) for number in range(len(self.examples))])
        images: dict[tuple[int, str], tuple[int, int]] = {}
        self.images, self._image_rows = np.array([_image(example, data.max_regions, images) for example in self.examples]).T

    @classmethod
    def read(
        cls,
        name: str,
        task: Task[Any],
        files: Sequence[Any],
        tokenizer: Tokenizer,
        data: TaskDataSection,
        teach: bool,
        show: bool,
    ) -> "ExampleSet":
        """The examples of files, which are joined; those to be evaluated that have a damaged image are left out at once.

        Args:
            files: where they are, in the task's own form.
            show: report what is left out.
            name, task, tokenizer, data, teach: as in the class.

        Raises:
            DataError: not one example can be used.
        """
        rejects = Rejects()
        found = chain.from_iterable(task.read(part, rejects, teach) for part in files)
        examples = list(_labelled(found, rejects) if teach else _readable(found, rejects))
        if show:
            rejects.report(name, len(examples))
        if not examples:
            raise DataError(f"{name}: not one example can be used" + "".join(f"; {reason}" for reason in rejects.reasons[:1]))
        return cls(name, task, examples, tokenizer, data, teach)

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def unlabelled(self) -> list[str]:
        """Names of the examples without labels; if there are any, answers to the set cannot be scored."""
        return [example.name for example in self.examples if example.label is None]

    @property
    def stores(self) -> list[RegionStore]:
        """The stores of the images, each once."""
        found = {id(example.store): example.store for example in self.examples if example.store is not None}
        return list(found.values())

    @property
    def detector(self) -> dict[str, Any]:
        """Whose regions the images have; of texts alone, nobody's."""
        return self.stores[0].detector if self.stores else {}

    def _texts(self, example: Example) -> tuple[str, ...]:
        return (*example.texts, example.target) if self._targets else example.texts

    def tokens(self, number: int) -> Tokens:
        """The tokens of an example."""
        places = self._text_numbers[self._first_text[number] : self._first_text[number + 1]]
        texts = [self._tokens[self._offsets[place] : self._offsets[place + 1]].astype(np.int64) for place in places]
        target = texts.pop() if self._targets else None
        return Tokens(texts, target, self._data.max_text_tokens)

    @property
    def longest(self) -> int:
        """The example with the most rows."""
        return int(np.argmax(self._text_rows + self._image_rows))

    def most_positions(self, mixed: bool) -> int:
        """Rows of the longest sequence; `mixed`: of any image with any texts."""
        rows_E = self._text_rows + self._image_rows
        return int(self._text_rows.max() + self._image_rows.max() if mixed else rows_E.max())

    def positions(self, pairings: Sequence[Pairing]) -> int:
        """Rows of some pairings in the stream, at most."""
        return sum(int(self._image_rows[image_of] + self._text_rows[text_of]) for image_of, text_of in pairings)

    def pack(self, groups: Sequence[tuple[int, Sequence[Pairing]]], feature_width: int, problems: list[str]) -> TaskBatch:
        """The micro-batch that teaches some examples, each by its pairings; what is left out is added to `problems`."""
        packer = Packer(feature_width, self._data.max_regions)
        packed: list[Example] = []
        for number, pairings in groups:
            paired = [(self._paired(*pairing), self.tokens(pairing[1])) for pairing in pairings]
            try:
                for example, _ in paired:
                    show_image(packer, example)
            except DamagedRecordError as error:
                problems.append(f"{self.name}, example {self.examples[number].name!r} left out: {error}")
                continue
            for example, tokens in paired:
                self.task.add(packer, example, tokens, len(packed))
            packed.append(self.examples[number])
        return self.task.teach(packer.build(), packed)

    def pack_asked(self, pairings: Sequence[Pairing], feature_width: int) -> Batch:
        """The stream of some pairings that are to be answered, a sequence each.

        Raises:
            DamagedRecordError: an image cannot be read.
        """
        packer = Packer(feature_width, self._data.max_regions)
        for place, (image_of, text_of) in enumerate(pairings):
            self.task.add(packer, self._paired(image_of, text_of), self.tokens(text_of), place)
        return packer.build()

    def prepare(self, asked_N2: Ints, shares: Sequence[Ints], feature_width: int) -> Iterator[StepData[Batch]]:
        """The stream of each of this rank's `shares`, prepared ahead by worker processes where there are many."""
        data = _AskedSteps(self, asked_N2, shares, feature_width)
        workers = self._data.workers if len(shares) >= _WORTH_A_WORKER else 0
        return load_steps(data, 0, len(shares), workers, self._data.prefetch_steps)

    def pack_alone(self, images_of: Sequence[int], texts_of: Sequence[int], feature_width: int) -> Batch:
        """The stream of some examples' images, and of some examples' texts, each encoded alone."""
        shown = [self.examples[number] for number in images_of]
        regions = [each.store.get(each.image) for each in shown if each.store is not None and each.image is not None]
        texts = [joined(tokens.texts, tokens.limit) for tokens in map(self.tokens, texts_of)]
        return pack_alone(regions, texts, feature_width, self._data.max_regions)

    def _paired(self, image_of: int, text_of: int) -> Example:
        shown, said = self.examples[image_of], self.examples[text_of]
        return said if image_of == text_of else replace(said, image=shown.image, store=shown.store)

    def shares(self, asked_N2: Ints) -> Iterator[Ints]:
        """This rank's batches of an evaluation, as places in `asked_N2`; as many batches on every rank.

        Pairings of one image, and of similar length, are together: an image is read and projected once a batch.
        """
        image_of_N, text_of_N = asked_N2.T
        rows_N = self._image_rows[image_of_N] + self._text_rows[text_of_N]
        ordered_N = np.lexsort((self._text_rows[text_of_N], self.images[image_of_N], self._image_rows[image_of_N]))
        ends_N = np.cumsum(rows_N[ordered_N])
        budget = min(self._data.positions_per_micro_batch, -(-ends_N[-1] // distributed.world_size()))
        batches = np.split(ordered_N, np.flatnonzero(np.diff((ends_N - 1) // budget)) + 1)
        yield from distributed.dealt(batches, ordered_N[:0])


def _labelled(examples: Iterator[Example], rejects: Rejects) -> Iterator[Example]:
    """Those that say what is to be learned."""
    for example in examples:
        if example.label is None and not example.target:
            rejects(f"example {example.name!r} has no label")
        else:
            yield example


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


def _image(example: Example, max_regions: int, known: dict[tuple[int, str], tuple[int, int]]) -> tuple[int, int]:
    """A number of the example's image, and its rows; without an image both are 0."""
    if example.store is None or example.image is None:
        return 0, 0
    key = (id(example.store), example.image)
    if key not in known:
        known[key] = len(known), 1 + min(example.store.count(example.image), max_regions)
    return known[key]


class _AskedSteps(Dataset[StepData[Batch]]):
    """The batches of an evaluation, by number."""

    def __init__(self, examples: ExampleSet, asked_N2: Ints, shares: Sequence[Ints], feature_width: int) -> None:
        self._examples, self._asked_N2, self._shares, self._feature_width = examples, asked_N2, shares, feature_width

    def __getitem__(self, number: int) -> StepData[Batch]:
        pairings = self._asked_N2[self._shares[number]].tolist()
        return StepData(number, [self._examples.pack_asked(pairings, self._feature_width)], [], [])


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
        self._examples, self._budget, self._seed, self._feature_width = examples, budget, seed, feature_width
        longest = examples.longest
        taught_by = len(self._pairings(Draw(0, 0, longest)))
        if (most := examples.task.views * taught_by * examples.most_positions(mixed=taught_by > 1)) > budget:
            name = examples.examples[longest].name
            raise ConfigError(
                f"data.positions_per_micro_batch = {budget}: example {name!r} of {examples.name} alone "
                f"needs {most} positions; raise it, or lower data.max_text_tokens or data.max_regions"
            )
        self._mixture = Mixture((min(batch_size, len(examples)),), (len(examples),))
        self._rank, self._world_size = distributed.rank(), distributed.world_size()

    def __getitem__(self, step: int) -> StepData[TaskBatch]:
        pairings = {draw: self._pairings(draw) for draw in order(self._seed, self._mixture, step)}
        views = self._examples.task.views
        items = [Item(draw, (), views * self._examples.positions(each)) for draw, each in pairings.items()]
        mine = [ranks[self._rank] for ranks in share(items, self._world_size, self._budget)]
        problems: list[str] = []
        groups = [[(item.draw.index, pairings[item.draw]) for item in micro] for micro in mine]
        batches = [self._examples.pack(micro, self._feature_width, problems) for micro in groups]
        return StepData(step, batches, [item.draw for items in mine for item in items], problems)

    def _pairings(self, draw: Draw) -> Sequence[Pairing]:
        task, examples = self._examples.task, self._examples.examples
        return task.pairings(draw.index, examples, generator(self._seed, draw, CANDIDATES))
