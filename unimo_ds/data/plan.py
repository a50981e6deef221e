"""Who handles what of a step: which samples go to which rank, with which candidates, and in how many micro-batches.

Everything here follows from numbers and lengths alone, which every rank knows, so all ranks compute the same plan without
talking.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unimo_ds.batch import Kind, Source
from unimo_ds.config import MaskingSection, ObjectivesSection
from unimo_ds.data.candidates import FoundNeighbours, Rewrites
from unimo_ds.data.corpus import Corpus
from unimo_ds.data.order import Draw, assign, generator
from unimo_ds.errors import ConfigError

CANDIDATES, VIEWS = 0, 1  # purposes of a sample's random numbers


@dataclass(frozen=True)
class Candidate:
    """One candidate of a pair in a step.

    Attributes:
        kind: POSITIVE, NEGATIVE (both jointly encoded) or RETRIEVED.
        source: where it comes from.
        number: which rewrite of that source the sample has, or which retrieved image or text; a caption of the step: 0.
        lender: whose caption a caption of the step is.
        image: whether it is a retrieved image; all others are texts.
    """

    kind: Kind
    source: Source
    number: int = 0
    lender: Draw | None = None
    image: bool = False


@dataclass(frozen=True)
class Item:
    """A sample of a step with its candidates."""

    draw: Draw
    candidates: tuple[Candidate, ...]
    positions: int  # at most, in the stream


class Planner:
    """Plans the steps of a run.

    Args:
        corpora: the mixture.
        objectives: decides which views and candidates a sample has.
        max_regions: regions shown of an image.
        seed: the run's seed.
    """

    def __init__(self, corpora: Sequence[Corpus], objectives: ObjectivesSection, max_regions: int, seed: int) -> None:
        self._corpora, self._objectives, self._max_regions, self._seed = corpora, objectives, max_regions, seed

    def items(self, draws: Sequence[Draw]) -> list[Item]:
        """The samples of a step with their candidates and lengths."""
        pairs = [draw for draw in draws if self._corpora[draw.corpus].section.kind == "pairs"]
        groups = [self._corpora[draw.corpus].image_group(draw.index) for draw in pairs]
        places = {draw: place for place, draw in enumerate(pairs)}
        return [self._item(draw, places.get(draw, 0), pairs, groups) for draw in draws]

    def _item(self, draw: Draw, place: int, pairs: list[Draw], groups: list[int]) -> Item:
        corpus = self._corpora[draw.corpus]
        if corpus.section.kind == "texts":
            return Item(draw, (), self._text_positions(draw))
        image = self._image_length(corpus.region_count(draw.index))
        if corpus.section.kind == "images":
            return Item(draw, (), image)
        candidates: list[Candidate] = []
        if self._objectives.joint:
            rng = generator(self._seed, draw, CANDIDATES)
            wanted = self._objectives.candidates
            candidates += self._captions_of_step(wanted.step_negatives, place, pairs, groups, rng)
            if corpus.rewrites is not None:
                candidates += self._rewrites(corpus.rewrites, draw.index, rng)
            if corpus.neighbours is not None and self._objectives.cmcl.weight:
                candidates += self._neighbours(corpus.neighbours, draw.index, rng)
        return Item(draw, tuple(candidates), self._pair_positions(draw, image, candidates))

    def _captions_of_step(
        self, wanted: int, place: int, pairs: list[Draw], groups: list[int], rng: np.random.Generator
    ) -> list[Candidate]:
        """Captions of other images of the step, none that says the same."""
        own = self._tokens(pairs[place])
        chosen: list[Candidate] = []
        # Looked through from a random place on: in a step of any size only the first few are looked at.
        start = int(rng.integers(len(pairs)))
        for turn in range(len(pairs)):
            if len(chosen) == wanted:
                break
            other = (start + turn) % len(pairs)
            if groups[other] != groups[place] and not np.array_equal(self._tokens(pairs[other]), own):
                chosen.append(Candidate(Kind.NEGATIVE, Source.STEP, lender=pairs[other]))
        return chosen

    def _rewrites(self, rewrites: Rewrites, sample: int, rng: np.random.Generator) -> list[Candidate]:
        wanted = self._objectives.candidates
        counts = {
            Source.OWN: wanted.positives,
            Source.SENTENCE: wanted.sentence_negatives,
            Source.PHRASE: wanted.phrase_negatives,
            Source.WORD: wanted.word_negatives,
        }
        return [
            Candidate(Kind.POSITIVE if source == Source.OWN else Kind.NEGATIVE, source, number)
            for source, count in counts.items()
            for number in _some_of(rewrites.count(sample, source), count, rng)
        ]

    def _neighbours(self, neighbours: FoundNeighbours, sample: int, rng: np.random.Generator) -> list[Candidate]:
        wanted = self._objectives.candidates
        images, texts = neighbours.images(sample), neighbours.texts(sample)
        return [
            *(
                Candidate(Kind.RETRIEVED, Source.COLLECTION, int(images[number]), image=True)
                for number in _some_of(len(images), wanted.images, rng)
            ),
            *(
                Candidate(Kind.RETRIEVED, Source.COLLECTION, int(texts[number]))
                for number in _some_of(len(texts), wanted.texts, rng)
            ),
        ]

    def _tokens(self, draw: Draw) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return self._corpora[draw.corpus].tokens(draw.index)

    def _image_length(self, regions: int) -> int:
        return 1 + min(regions, self._max_regions)

    def _pair_positions(self, draw: Draw, image: int, candidates: Sequence[Candidate]) -> int:
        objectives = self._objectives
        text = self._corpora[draw.corpus].token_count(draw.index) + 2
        masked = image + text if objectives.mlm or objectives.seq2seq or objectives.regions else 0
        together = image + text if objectives.joint else 0
        alone = image + text if objectives.cmcl.weight else 0
        return masked + together + alone + sum(self._candidate_length(draw, image, candidate) for candidate in candidates)

    def _candidate_length(self, draw: Draw, image: int, candidate: Candidate) -> int:
        corpus = self._corpora[draw.corpus]
        if candidate.kind != Kind.RETRIEVED:
            if candidate.lender is not None:
                tokens = self._corpora[candidate.lender.corpus].token_count(candidate.lender.index)
            else:
                assert corpus.rewrites is not None
                tokens = corpus.rewrites.length(draw.index, candidate.source, candidate.number)
            return image + tokens + 2
        assert corpus.neighbours is not None
        if candidate.image:
            return self._image_length(corpus.neighbours.region_count(candidate.number))
        return corpus.neighbours.length(candidate.number) + 2

    def _text_positions(self, draw: Draw) -> int:
        tokens = self._corpora[draw.corpus].token_count(draw.index)
        fragments = most_fragments(tokens, self._objectives.masking) if self._objectives.seq2seq else 0
        return tokens + 2 + 2 * fragments


def _some_of(size: int, count: int, rng: np.random.Generator) -> list[int]:
    """`count` different numbers below `size`, or all of them; Floyd's algorithm, because NumPy's `choice` costs more."""
    chosen: list[int] = []
    for last in range(max(0, size - count), size):
        number = int(rng.integers(last + 1))
        chosen.append(last if number in chosen else number)
    return chosen


def most_fragments(tokens: int, masking: MaskingSection) -> int:
    """The largest number of fragments that `choose_fragments` can take from a text."""
    wanted = max(masking.fragment_shortest, round(masking.fragment_rate * tokens))
    return wanted // masking.fragment_shortest


def share(items: Sequence[Item], world_size: int, budget: int) -> list[list[list[Item]]]:
    """Splits a step into micro-batches under the budget, balanced over the ranks.

    Args:
        items: the step.
        world_size: number of ranks.
        budget: positions of a rank's stream, at most.

    Returns:
        `[micro-batch][rank]` -> its items. The number of micro-batches is the smallest that fits, so it is the same on
        every rank, and the similarity matrix of CMCL spans one micro-batch over all ranks.

    Raises:
        ConfigError: one sample alone is over the budget.
    """
    longest = max(items, key=lambda item: item.positions)
    if longest.positions > budget:
        raise ConfigError(
            f"data.positions_per_micro_batch = {budget}: sample {longest.draw} alone needs {longest.positions} positions; "
            "raise it, or lower data.max_regions, data.max_text_tokens or the counts of objectives.candidates"
        )
    costs = [item.positions for item in items]
    micro_batches = max(1, -(-sum(costs) // (budget * world_size)))
    while True:
        bins = assign(costs, micro_batches * world_size)
        if all(sum(costs[item] for item in members) <= budget for members in bins):
            break
        micro_batches += 1
    shared = [[items[number] for number in members] for members in bins]
    return [shared[micro * world_size : (micro + 1) * world_size] for micro in range(micro_batches)]
