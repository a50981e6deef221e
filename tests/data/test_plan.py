"""The plan of a step: every sample on one rank, within the budget, the same on all ranks; hard negatives of other images."""

from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unimo_ds.batch import Kind, Source
from unimo_ds.config import ObjectivesSection
from unimo_ds.data.order import Draw
from unimo_ds.data.plan import Item, Planner, share
from unimo_ds.errors import ConfigError

quick = settings(deadline=None, derandomize=True, max_examples=80)
BUDGET = 100


@dataclass
class StandInRewrites:
    """So many rewrites of each source for every sample; number n has n + 1 tokens."""

    counts: dict[Source, int]

    def count(self, sample: int, source: Source) -> int:
        return self.counts.get(source, 0)

    def length(self, sample: int, source: Source, number: int) -> int:
        return number + 1


@dataclass
class StandInNeighbours:
    """So many found images and texts for every sample; number n has 5 n regions, and n + 1 tokens."""

    image_count: int
    text_count: int

    def images(self, sample: int) -> np.ndarray:
        return np.arange(self.image_count)

    def texts(self, sample: int) -> np.ndarray:
        return np.arange(self.text_count)

    def region_count(self, image: int) -> int:
        return 5 * image

    def length(self, text: int) -> int:
        return text + 1


@dataclass
class StandInCorpus:
    """A corpus known by its lengths alone, which is all that a planner reads."""

    kind: str
    lengths: list[int]
    regions: list[int] = field(default_factory=list)
    captions_of_an_image: int = 1
    rewrites: StandInRewrites | None = None
    neighbours: StandInNeighbours | None = None

    @property
    def section(self) -> SimpleNamespace:
        return SimpleNamespace(kind=self.kind)

    def token_count(self, index: int) -> int:
        return self.lengths[index]

    def tokens(self, index: int) -> np.ndarray:
        return np.full(self.lengths[index], index)

    def region_count(self, index: int) -> int:
        return self.regions[index]

    def image_group(self, index: int) -> int:
        return 1000 + index // self.captions_of_an_image


def planner(*corpora: StandInCorpus, seed: int = 1, **objectives: object) -> Planner:
    return Planner(corpora, ObjectivesSection.model_validate(objectives), max_regions=36, seed=seed)  # type: ignore[arg-type]


def lenders_of(item: Item) -> list[Draw]:
    """Whose captions are the item's hard negatives of the step."""
    return [candidate.lender for candidate in item.candidates if candidate.lender is not None]


def draws(corpus: int, count: int) -> list[Draw]:
    return [Draw(corpus, number, number) for number in range(count)]


def items_of(costs: list[int]) -> list[Item]:
    return [Item(Draw(0, number, number), (), cost) for number, cost in enumerate(costs)]


costs_of_a_step = st.lists(st.integers(1, BUDGET), min_size=1, max_size=40)


@quick
@given(costs_of_a_step, st.integers(1, 6))
def test_every_sample_is_on_exactly_one_rank_within_the_budget(costs: list[int], world: int) -> None:
    micro_batches = share(items_of(costs), world, BUDGET)
    assert all(len(ranks) == world for ranks in micro_batches), "every rank has as many micro-batches, some of them empty"
    placed = sorted(item.draw.number for ranks in micro_batches for items in ranks for item in items)
    assert placed == list(range(len(costs)))
    assert all(sum(item.positions for item in items) <= BUDGET for ranks in micro_batches for items in ranks)


@quick
@given(costs_of_a_step, st.integers(1, 6))
def test_ranks_are_balanced_and_there_are_few_micro_batches(costs: list[int], world: int) -> None:
    micro_batches = share(items_of(costs), world, BUDGET)
    sums = [sum(item.positions for item in items) for ranks in micro_batches for items in ranks]
    assert max(sums) - min(sums) <= max(costs)
    assert -(-sum(costs) // (BUDGET * world)) <= len(micro_batches) <= 2 * sum(costs) // (BUDGET * world) + 1
    assert len(share(items_of(costs), world, sum(costs))) == 1


@quick
@given(costs_of_a_step, st.integers(1, 6))
def test_the_plan_follows_from_its_input_alone(costs: list[int], world: int) -> None:
    assert share(items_of(costs), world, BUDGET) == share(items_of(costs), world, BUDGET)


def test_a_sample_over_the_budget_is_named_with_what_to_change() -> None:
    with pytest.raises(ConfigError, match=r"positions_per_micro_batch = 100: sample Draw\(.*number=1.* needs 101 positions"):
        share(items_of([5, BUDGET + 1, 7]), 2, BUDGET)


@pytest.mark.parametrize(("wanted", "given_"), [(0, 0), (1, 1), (3, 3), (50, 8)])
def test_hard_negatives_are_different_captions_of_other_images(wanted: int, given_: int) -> None:
    pairs = StandInCorpus("pairs", [7] * 10, [20] * 10, captions_of_an_image=2)
    for item in planner(pairs, candidates={"step_negatives": wanted}).items(draws(0, 10)):
        lenders = lenders_of(item)
        groups = [pairs.image_group(lender.index) for lender in lenders]
        assert pairs.image_group(item.draw.index) not in groups
        assert len(set(lenders)) == len(lenders) == given_


def test_hard_negatives_are_drawn_from_all_pairs_of_the_step() -> None:
    pairs = StandInCorpus("pairs", [7] * 6, [20] * 6)
    found = {
        lender
        for seed in range(40)
        for lender in lenders_of(planner(pairs, seed=seed, candidates={"step_negatives": 1}).items(draws(0, 6))[0])
    }
    assert found == set(draws(0, 6)[1:])


def test_without_another_image_or_without_cmcl_there_are_no_negatives() -> None:
    one_image = StandInCorpus("pairs", [7] * 3, [20] * 3, captions_of_an_image=3)
    several = StandInCorpus("pairs", [7] * 3, [20] * 3)
    assert all(item.candidates == () for item in planner(one_image).items(draws(0, 3)))
    assert all(item.candidates == () for item in planner(several, cmcl={"weight": 0}).items(draws(0, 3)))


def test_hard_negatives_come_from_other_corpora_too_but_not_of_the_same_image() -> None:
    first, second = StandInCorpus("pairs", [7] * 2, [20] * 2), StandInCorpus("pairs", [7] * 3, [20] * 3)
    items = planner(first, second, candidates={"step_negatives": 50}).items([*draws(0, 2), *draws(1, 3)])
    assert set(lenders_of(items[0])) == {Draw(0, 1, 1), Draw(1, 1, 1), Draw(1, 2, 2)}
    assert set(lenders_of(items[4])) == {*draws(0, 2), *draws(1, 2)}


@pytest.mark.parametrize("seed", [1, 2])
def test_all_ranks_plan_alike(seed: int) -> None:
    """Two planners share nothing but the configuration; another seed draws other negatives."""
    pairs = StandInCorpus("pairs", list(range(5, 25)), list(range(1, 21)))
    ours, theirs = (planner(pairs, seed=seed).items(draws(0, 20)) for _ in range(2))
    assert ours == theirs and ours != planner(pairs, seed=seed + 1).items(draws(0, 20))


@pytest.mark.parametrize("total", [BUDGET, BUDGET + 1])
def test_a_micro_batch_may_be_filled_to_the_budget_and_not_beyond(total: int) -> None:
    assert len(share(items_of([60, total - 60]), 1, BUDGET)) == (1 if total == BUDGET else 2)
    assert len(share(items_of([BUDGET]), 1, BUDGET)) == 1


def test_texts_and_images_lend_no_captions() -> None:
    corpora = StandInCorpus("texts", [30] * 4), StandInCorpus("images", [0] * 4, [9] * 4), StandInCorpus("pairs", [7], [9])
    items = planner(*corpora).items([*draws(0, 4), *draws(1, 4), *draws(2, 1)])
    assert all(item.candidates == () for item in items)


def test_lengths_of_a_pair_by_hand() -> None:
    """36 of 50 regions and [IMG]; captions of 7 and 9 words with [CLS] and [SEP]."""
    pairs = StandInCorpus("pairs", [7, 9], [50, 50])
    first = planner(pairs, candidates={"step_negatives": 1}).items(draws(0, 2))[0]
    assert first.positions == (37 + 9) + 2 * (37 + 9) + (37 + 11)  # masked view; together and each alone; the hard negative
    assert planner(pairs, cmcl={"weight": 0}).items(draws(0, 2))[0].positions == 37 + 9
    off = {"mlm": 0, "seq2seq": 0, "mrfr": 0, "mrc": 0}
    assert planner(pairs, **off, candidates={"step_negatives": 0}).items(draws(0, 2))[0].positions == 2 * (37 + 9)


def test_lengths_of_texts_and_images_by_hand() -> None:
    texts, images = StandInCorpus("texts", [40]), StandInCorpus("images", [0, 0], [10, 50])
    assert planner(texts, seq2seq=0).items(draws(0, 1))[0].positions == 42
    assert planner(texts).items(draws(0, 1))[0].positions == 42 + 2 * 2, "10 of 40 words are at most two fragments of 4 or more"
    assert [item.positions for item in planner(images).items(draws(0, 2))] == [11, 37]


@pytest.mark.parametrize("wanted", [0, 1, 3, 9])
def test_candidates_of_each_kind_are_different_and_no_more_than_wanted(wanted: int) -> None:
    available = {Source.OWN: 2, Source.SENTENCE: 5, Source.PHRASE: 0, Source.WORD: 4}
    pairs = StandInCorpus("pairs", [7] * 6, [20] * 6)
    pairs.rewrites, pairs.neighbours = StandInRewrites(available), StandInNeighbours(3, 2)
    names = ("positives", "step_negatives", "sentence_negatives", "phrase_negatives", "word_negatives", "images", "texts")
    for item in planner(pairs, candidates=dict.fromkeys(names, wanted)).items(draws(0, 6)):
        found = Counter((candidate.kind, candidate.source, candidate.image) for candidate in item.candidates)
        expected = {
            (Kind.POSITIVE, Source.OWN, False): 2,
            (Kind.NEGATIVE, Source.STEP, False): 5,
            (Kind.NEGATIVE, Source.SENTENCE, False): 5,
            (Kind.NEGATIVE, Source.WORD, False): 4,
            (Kind.RETRIEVED, Source.COLLECTION, True): 3,
            (Kind.RETRIEVED, Source.COLLECTION, False): 2,
        }
        assert found == Counter({key: min(count, wanted) for key, count in expected.items()})
        assert len(set(item.candidates)) == len(item.candidates)


def test_every_rewrite_has_its_turn() -> None:
    pairs = StandInCorpus("pairs", [7] * 2, [20] * 2, rewrites=StandInRewrites({Source.WORD: 7}))
    plans = (planner(pairs, seed=seed, candidates={"word_negatives": 2}) for seed in range(60))
    seen = Counter(c.number for plan in plans for c in plan.items(draws(0, 2))[0].candidates if c.source == Source.WORD)
    assert set(seen) == set(range(7)) and min(seen.values()) > 5


def test_positions_count_every_candidate() -> None:
    pairs = StandInCorpus("pairs", [7, 9], [20, 50], captions_of_an_image=2)
    pairs.rewrites, pairs.neighbours = StandInRewrites({Source.WORD: 1, Source.OWN: 1}), StandInNeighbours(1, 1)
    image, text, rewrite = 1 + 36, 9 + 2, 1 + 2
    found_image, found_text = 1 + 0, 1 + 2
    everything = planner(pairs).items(draws(0, 2))[1]
    assert everything.positions == 3 * (image + text) + 2 * (image + rewrite) + found_image + found_text
    matching = planner(pairs, cmcl={"weight": 0}, matching=1).items(draws(0, 2))[1]
    assert matching.positions == 2 * (image + text) + 2 * (image + rewrite), "nothing is encoded alone without CMCL"
    nothing = planner(pairs, cmcl={"weight": 0}).items(draws(0, 2))[1]
    assert nothing.positions == image + text and nothing.candidates == ()


def test_a_caption_that_says_the_same_is_no_negative() -> None:
    class Twins(StandInCorpus):
        def tokens(self, index: int) -> np.ndarray:
            return np.zeros(self.lengths[index])

    pairs = Twins("pairs", [7, 7, 8], [20] * 3)
    items = planner(pairs, candidates={"step_negatives": 2}).items(draws(0, 3))
    assert [len(lenders_of(item)) for item in items] == [1, 1, 2]
