"""The loader: for a step number, this rank's micro-batches, made by worker processes."""

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from unimo_ds.batch import Batch, Kind, Target
from unimo_ds.config import RunConfig
from unimo_ds.data.corpus import Corpus
from unimo_ds.data.order import Draw, Mixture, generator, order
from unimo_ds.data.packing import Packer
from unimo_ds.data.plan import VIEWS, Candidate, Item, Planner, share
from unimo_ds.data.sequences import Member, PackedText, ViewMaker
from unimo_ds.data.sequences import Sequence as View
from unimo_ds.errors import DamagedRecordError, UnimoError
from unimo_ds.regions import Regions
from unimo_ds.tokenizer import Tokenizer

M = TypeVar("M", bound="MicroBatch")


class MicroBatch(Protocol):
    """Pre-training's `Batch`, or one of a task with its labels."""

    def pin_memory(self: M) -> M:
        """The same in page-locked memory."""


@dataclass(frozen=True)
class StepData(Generic[M]):
    """What one rank needs for one optimizer step.

    Attributes:
        step: counted from 0.
        batches: the micro-batches; every rank has the same number of them.
        draws: the samples this rank handles.
        problems: what was stepped over, and why.
    """

    step: int
    batches: list[M]
    draws: list[Draw]
    problems: list[str]

    def pin_memory(self) -> "StepData[M]":
        """Called by torch's DataLoader."""
        return StepData(self.step, [batch.pin_memory() for batch in self.batches], self.draws, self.problems)


class PretrainingData(Dataset[StepData[Batch]]):
    """Steps of a pre-training run, by number.

    Args:
        config: the run.
        corpora: the prepared corpora, in the order of `config.data.corpora`.
        tokenizer: the run's tokenizer.
        feature_width: F of the regions stores.
        rank, world_size: which share of a step is wanted.
    """

    def __init__(
        self, config: RunConfig, corpora: Sequence[Corpus], tokenizer: Tokenizer, feature_width: int, rank: int, world_size: int
    ) -> None:
        self._config, self._corpora = config, corpora
        self._rank, self._world_size, self._feature_width = rank, world_size, feature_width
        self._mixture = Mixture(tuple(corpus.section.per_step for corpus in corpora), tuple(map(len, corpora)))
        self._planner = Planner(corpora, config.objectives, config.data.max_regions, config.seed)
        self._views = ViewMaker(tokenizer, config.objectives.masking)

    def __getitem__(self, step: int) -> StepData[Batch]:
        micro_batches = share(self.items(step), self._world_size, self._config.data.positions_per_micro_batch)
        mine = [ranks[self._rank] for ranks in micro_batches]
        problems: list[str] = []
        batches = [self.pack(items, problems) for items in mine]
        return StepData(step, batches, [item.draw for items in mine for item in items], problems)

    def items(self, step: int) -> list[Item]:
        """The samples of a step, over all ranks, with their candidates."""
        return self._planner.items(order(self._config.seed, self._mixture, step))

    def pack(self, items: Sequence[Item], problems: list[str]) -> Batch:
        """The batch of some samples of a step, each with all its views; what is left out is added to `problems`."""
        packer = Packer(self._feature_width, self._config.data.max_regions)
        for item in items:
            try:
                self._add_sample(packer, item, problems)
            except DamagedRecordError as error:
                corpus = self._corpora[item.draw.corpus]
                problems.append(f"corpus {corpus.name}, sample {item.draw.index} left out of this step: {error}")
        return packer.build()

    def _add_sample(self, packer: Packer, item: Item, problems: list[str]) -> None:
        kind = self._corpora[item.draw.corpus].section.kind
        rng = generator(self._config.seed, item.draw, VIEWS)
        if kind == "texts":
            self._add_text(packer, item, rng)
        elif kind == "images":
            self._add_image(packer, item, rng)
        else:
            self._add_pair(packer, item, rng, problems)

    def _regions(self, item: Item) -> Regions:
        """The image of a sample; one that its store has lost since the corpus was prepared counts as damaged."""
        corpus = self._corpora[item.draw.corpus]
        assert corpus.store is not None
        key = corpus.image_key(item.draw.index)
        try:
            return corpus.store.get(key)
        except KeyError:
            raise DamagedRecordError(f"{corpus.store.folder}: image {key!r} is no longer found. Extract it again.") from None

    def _language_targets(self) -> list[Target]:
        objectives = self._config.objectives
        weights = {Target.MLM: objectives.mlm, Target.SEQ2SEQ: objectives.seq2seq}
        return [target for target, weight in weights.items() if weight]

    def _add_text(self, packer: Packer, item: Item, rng: np.random.Generator) -> None:
        """One of the two language tasks, uniformly (unimo-spec, 4.3)."""
        tokens = self._corpora[item.draw.corpus].tokens(item.draw.index)
        targets = self._language_targets()
        if not targets:
            return
        target = targets[int(rng.integers(len(targets)))]
        fragments = self._views.fragments_of_text(tokens, rng) if target == Target.SEQ2SEQ else None
        if fragments is not None:
            packer.add(View(text=fragments, causal=True, target=Target.SEQ2SEQ))
        elif Target.MLM in targets:  # also where a text is too short to lose a fragment
            packer.add(View(text=self._views.masked_text(tokens, rng)))

    def _add_image(self, packer: Packer, item: Item, rng: np.random.Generator) -> None:
        regions = self._regions(item)
        if self._config.objectives.regions:
            image, shown = packer.add_image(regions)
            packer.add(View(image=image, regions=shown, hidden=self._views.hidden_regions(regions, shown, rng)))

    def _add_pair(self, packer: Packer, item: Item, rng: np.random.Generator, problems: list[str]) -> None:
        """One masked view, in which one modality is hidden and the other whole, and the unmasked views of CMCL."""
        corpus = self._corpora[item.draw.corpus]
        regions = self._regions(item)
        tokens = corpus.tokens(item.draw.index)
        image, shown = packer.add_image(regions)
        choices: list[Target | None] = [*self._language_targets()]
        if self._config.objectives.regions:
            choices.append(None)
        if choices:
            match choices[int(rng.integers(len(choices)))]:
                case None:
                    hidden = self._views.hidden_regions(regions, shown, rng)
                    packer.add(View(image=image, regions=shown, hidden=hidden, text=self._views.whole_text(tokens)))
                case Target.MLM:
                    packer.add(View(image=image, regions=shown, text=self._views.masked_text(tokens, rng)))
                case Target.SEQ2SEQ:
                    text = self._views.generated_text(tokens)
                    packer.add(View(image=image, regions=shown, text=text, causal=True, target=Target.SEQ2SEQ))
        if self._config.objectives.joint:
            self._add_contrastive(packer, item, image, shown, problems)

    def _add_contrastive(self, packer: Packer, item: Item, image: int, shown: int, problems: list[str]) -> None:
        """What CMCL and matching see of a pair: nothing is masked (docs/cmcl.md)."""
        corpus = self._corpora[item.draw.corpus]
        pair = packer.add_pair(corpus.image_group(item.draw.index))
        text = self._views.whole_text(corpus.tokens(item.draw.index))
        packer.add(View(image=image, regions=shown, text=text, member=Member(pair, Kind.PAIR)))
        for candidate in item.candidates:
            member = Member(pair, candidate.kind, candidate.source)
            if candidate.image:
                self._add_found_image(packer, corpus, candidate, member, problems)
            elif candidate.kind == Kind.RETRIEVED:
                packer.add(View(text=self.candidate_text(item.draw, candidate), member=member))
            else:
                packer.add(View(image=image, regions=shown, text=self.candidate_text(item.draw, candidate), member=member))
        if self._config.objectives.cmcl.weight:
            packer.add(View(image=image, regions=shown, member=Member(pair, Kind.ALONE)))
            packer.add(View(text=text, member=Member(pair, Kind.ALONE)))

    def _add_found_image(
        self, packer: Packer, corpus: Corpus, candidate: Candidate, member: Member, problems: list[str]
    ) -> None:
        """A retrieved image that cannot be read costs itself, not its pair."""
        assert corpus.neighbours is not None
        try:
            regions = corpus.neighbours.regions(candidate.number)
        except (KeyError, DamagedRecordError) as error:
            store, key = corpus.neighbours.image_name(candidate.number)
            problems.append(f"corpus {corpus.name}, found image {key!r} of {store} left out of this step: {error}")
            return
        found, found_shown = packer.add_image(regions)
        packer.add(View(image=found, regions=found_shown, member=member))

    def candidate_text(self, draw: Draw, candidate: Candidate) -> PackedText:
        """The text of a candidate of sample `draw`."""
        corpus = self._corpora[draw.corpus]
        if candidate.lender is not None:
            tokens = self._corpora[candidate.lender.corpus].tokens(candidate.lender.index)
        elif candidate.kind == Kind.RETRIEVED:
            assert corpus.neighbours is not None
            tokens = corpus.neighbours.tokens(candidate.number)
        else:
            assert corpus.rewrites is not None
            tokens = corpus.rewrites.tokens(draw.index, candidate.source, candidate.number)
        return self._views.whole_text(tokens)


def load_steps(data: Dataset[StepData[M]], first: int, last: int, workers: int, prefetch: int) -> Iterator[StepData[M]]:
    """Steps `first .. last - 1` of `data`, in order, prepared ahead by worker processes.

    Args:
        data: the run's data.
        first, last: step numbers.
        workers: worker processes; 0 makes batches in this process.
        prefetch: steps prepared ahead by each worker.

    Raises:
        ConfigError: a sample of a step alone is over `data.positions_per_micro_batch`.
    """
    loader: DataLoader[StepData[M]] = DataLoader(
        data,
        batch_size=None,
        sampler=range(first, last),
        num_workers=workers,
        prefetch_factor=prefetch if workers else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_start_worker,
        multiprocessing_context="fork" if workers else None,  # Python 3.14's default would pickle the data for every worker
    )
    prepared = iter(loader)
    try:
        yield from prepared
    except UnimoError as error:  # torch wraps a worker's error into the text of its traceback
        name = f"{type(error).__module__}.{type(error).__qualname__}: "
        raise type(error)(str(error).rsplit(name, 1)[-1].strip()) from None
    finally:
        # Now, and not at exit, where multiprocessing would wait without end for workers that are deaf to its signal.
        getattr(prepared, "_shutdown_workers", lambda: None)()


def _start_worker(worker: int) -> None:
    """One thread; and deaf to signals that ask the run to stop: a launcher sends them to the whole process group, and a worker
    that ended by them would take its rank along before it has saved. A worker ends when its rank ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
