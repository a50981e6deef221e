"""The plan of a step: every sample on one rank, within the budget, the same on all ranks; hard negatives of other images."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unimo_ds.config import ObjectivesSection
from unimo_ds.data.order import Draw
from unimo_ds.data.plan import Item, Planner, share
from unimo_ds.errors import ConfigError

quick = settings(deadline=None, derandomize=True, max_examples=80)
BUDGET = 100


@dataclass
class StandInCorpus:
    """A corpus known by its lengths alone, which is all that a planner reads."""

    kind: str
    tokens: list[int]
    regions: list[int] = field(default_factory=list)
    captions_of_an_image: int = 1

    @property
    def section(self) -> SimpleNamespace:
        return SimpleNamespace(kind=self.kind)

    def token_count(self, index: int) -> int:
        return self.tokens[index]

    def region_count(self, index: int) -> int:
        return self.regions[index]

    def image_group(self, index: int) -> int:
        return 1000 + index // self.captions_of_an_image


def planner(*corpora: StandInCorpus, seed: int = 1, **objectives: object) -> Planner:
    return Planner(corpora, ObjectivesSection.model_validate(objectives), max_regions=36, seed=seed)  # type: ignore[arg-type]


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
    for item in planner(pairs, cmcl={"hard_negatives": wanted}).items(draws(0, 10)):
        groups = [pairs.image_group(negative.index) for negative in item.negatives]
        assert pairs.image_group(item.draw.index) not in groups
        assert len(set(item.negatives)) == len(item.negatives) == given_


def test_hard_negatives_are_drawn_from_all_pairs_of_the_step() -> None:
    pairs = StandInCorpus("pairs", [7] * 6, [20] * 6)
    found = {
        n for seed in range(40) for n in planner(pairs, seed=seed, cmcl={"hard_negatives": 1}).items(draws(0, 6))[0].negatives
    }
    assert found == set(draws(0, 6)[1:])


def test_without_another_image_or_without_cmcl_there_are_no_negatives() -> None:
    one_image = StandInCorpus("pairs", [7] * 3, [20] * 3, captions_of_an_image=3)
    several = StandInCorpus("pairs", [7] * 3, [20] * 3)
    assert all(item.negatives == () for item in planner(one_image).items(draws(0, 3)))
    assert all(item.negatives == () for item in planner(several, cmcl={"weight": 0}).items(draws(0, 3)))


def test_hard_negatives_come_from_other_corpora_too_but_not_of_the_same_image() -> None:
    first, second = StandInCorpus("pairs", [7] * 2, [20] * 2), StandInCorpus("pairs", [7] * 3, [20] * 3)
    items = planner(first, second, cmcl={"hard_negatives": 50}).items([*draws(0, 2), *draws(1, 3)])
    assert set(items[0].negatives) == {Draw(0, 1, 1), Draw(1, 1, 1), Draw(1, 2, 2)}
    assert set(items[4].negatives) == {*draws(0, 2), *draws(1, 2)}


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
    assert all(item.negatives == () for item in items)


def test_lengths_of_a_pair_by_hand() -> None:
    """36 of 50 regions and [IMG]; captions of 7 and 9 words with [CLS] and [SEP]."""
    pairs = StandInCorpus("pairs", [7, 9], [50, 50])
    first = planner(pairs, cmcl={"hard_negatives": 1}).items(draws(0, 2))[0]
    assert first.positions == (37 + 9) + 2 * (37 + 9) + (37 + 11)  # masked view; together and each alone; the hard negative
    assert planner(pairs, cmcl={"weight": 0}).items(draws(0, 2))[0].positions == 37 + 9
    off = {"mlm": 0, "seq2seq": 0, "mrfr": 0, "mrc": 0}
    assert planner(pairs, **off, cmcl={"hard_negatives": 0}).items(draws(0, 2))[0].positions == 2 * (37 + 9)


def test_lengths_of_texts_and_images_by_hand() -> None:
    texts, images = StandInCorpus("texts", [40]), StandInCorpus("images", [0, 0], [10, 50])
    assert planner(texts, seq2seq=0).items(draws(0, 1))[0].positions == 42
    assert planner(texts).items(draws(0, 1))[0].positions == 42 + 2 * 2, "10 of 40 words are at most two fragments of 4 or more"
    assert [item.positions for item in planner(images).items(draws(0, 2))] == [11, 37]
