"""Who handles what of a step: which samples go to which rank, and in how many micro-batches.

Everything here follows from lengths alone, which every rank knows, so all ranks compute the same plan without talking.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from unimo_ds.config import MaskingSection, ObjectivesSection
from unimo_ds.data.corpus import Corpus
from unimo_ds.data.order import Draw, assign, generator
from unimo_ds.errors import ConfigError

CANDIDATES, VIEWS = 0, 1  # purposes of a sample's random numbers


@dataclass(frozen=True)
class Item:
    """A sample of a step with the samples that lend it their captions as hard negatives."""

    draw: Draw
    negatives: tuple[Draw, ...]
    positions: int  # at most, in the stream


class Planner:
    """Plans the steps of a run.

    Args:
        corpora: the mixture.
        objectives: decides which views a sample has.
        max_regions: regions shown of an image.
        seed: the run's seed.
    """

    def __init__(self, corpora: Sequence[Corpus], objectives: ObjectivesSection, max_regions: int, seed: int) -> None:
        self._corpora, self._objectives, self._max_regions, self._seed = corpora, objectives, max_regions, seed

    def items(self, draws: Sequence[Draw]) -> list[Item]:
        """The samples of a step with their hard negatives and lengths."""
        pairs = [draw for draw in draws if self._corpora[draw.corpus].section.kind == "pairs"]
        groups = {draw: self._corpora[draw.corpus].image_group(draw.index) for draw in pairs}
        return [self._item(draw, pairs, groups) for draw in draws]

    def _item(self, draw: Draw, pairs: list[Draw], groups: dict[Draw, int]) -> Item:
        kind = self._corpora[draw.corpus].section.kind
        if kind == "texts":
            return Item(draw, (), self._text_positions(draw))
        image = 1 + min(self._corpora[draw.corpus].region_count(draw.index), self._max_regions)
        if kind == "images":
            return Item(draw, (), image)
        negatives = self._negatives(draw, pairs, groups)
        return Item(draw, negatives, self._pair_positions(draw, image, negatives))

    def _negatives(self, draw: Draw, pairs: list[Draw], groups: dict[Draw, int]) -> tuple[Draw, ...]:
        """Captions of other images of the step."""
        wanted = self._objectives.cmcl.hard_negatives if self._objectives.cmcl.weight else 0
        if not wanted:
            return ()
        others = [other for other in pairs if groups[other] != groups[draw]]
        rng = generator(self._seed, draw, CANDIDATES)
        if not others:
            return ()
        chosen = rng.choice(len(others), size=min(wanted, len(others)), replace=False)
        return tuple(others[int(number)] for number in chosen)

    def _pair_positions(self, draw: Draw, image: int, negatives: tuple[Draw, ...]) -> int:
        objectives = self._objectives
        text = self._caption_length(draw)
        positions = 0
        if objectives.mlm or objectives.seq2seq or objectives.regions:
            positions += image + text
        if objectives.cmcl.weight:
            positions += 2 * (image + text)  # together, and each alone
            positions += sum(image + self._caption_length(negative) for negative in negatives)
        return positions

    def _caption_length(self, draw: Draw) -> int:
        return self._corpora[draw.corpus].token_count(draw.index) + 2

    def _text_positions(self, draw: Draw) -> int:
        tokens = self._corpora[draw.corpus].token_count(draw.index)
        fragments = most_fragments(tokens, self._objectives.masking) if self._objectives.seq2seq else 0
        return tokens + 2 + 2 * fragments


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
            "raise it, or lower data.max_regions, data.max_text_tokens or objectives.cmcl.hard_negatives"
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
