"""Data order as a pure function of the step."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unimo_ds.data.order import Draw, Mixture, assign, generator, order, permuted

quick = settings(deadline=None, derandomize=True, max_examples=60)
KNOWN = [(0, 15, 2), (0, 16, 9), (0, 17, 5), (1, 10, 3), (1, 11, 5)]
KNOWN_NUMBER = 87839890
KNOWN_STARTS = {  # of permutations with key 12345, at sizes where the number of bits changes
    1: [0],
    2: [0, 1],
    4: [0, 1, 3, 2],
    5: [1, 4, 0, 3, 2],
    16: [11, 13, 7, 14, 2, 3],
    17: [10, 1, 3, 7, 6, 13],
    64: [51, 23, 31, 7, 47, 58],
    65: [10, 40, 49, 26, 11, 7],
    100000: [14178, 88903, 96436, 41701, 95744, 35245],
}


@quick
@given(st.integers(1, 300), st.integers(0, 2**64 - 1))
def test_permuted_is_a_permutation(size: int, key: int) -> None:
    assert sorted(permuted(position, size, key) for position in range(size)) == list(range(size))


def test_different_keys_give_different_permutations() -> None:
    shuffled = {tuple(permuted(position, 50, key) for position in range(50)) for key in range(20)}
    assert len(shuffled) == 20


@quick
@given(st.integers(1, 7), st.integers(1, 40), st.integers(0, 1000))
def test_every_epoch_sees_every_sample_exactly_once(per_step: int, size: int, seed: int) -> None:
    mixture = Mixture((per_step, 2), (size, 5))
    steps = -(-3 * size // per_step)
    drawn = [draw for step in range(steps) for draw in order(seed, mixture, step) if draw.corpus == 0]
    assert [draw.number for draw in drawn] == list(range(steps * per_step))
    for epoch in range(3):
        assert sorted(draw.index for draw in drawn[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_a_step_s_samples_do_not_depend_on_the_steps_before() -> None:
    mixture = Mixture((4, 2), (100, 30))
    straight = [order(3, mixture, step) for step in range(50)]
    assert order(3, mixture, 41) == straight[41]
    assert order(4, mixture, 41) != straight[41]


@pytest.mark.parametrize(("per_step", "sizes"), [((0, 0), (5, 5)), ((1, 2), (5, 0))])
def test_a_mixture_without_samples_is_refused(per_step: tuple[int, int], sizes: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="needs samples"):
        Mixture(per_step, sizes)


def test_random_numbers_belong_to_the_sample_and_the_purpose() -> None:
    draws = {(c, n, p): generator(1, Draw(c, n, 0), p).random() for c in range(3) for n in range(5) for p in range(2)}
    assert len(set(draws.values())) == len(draws)
    assert generator(1, Draw(2, 3, 99), 1).random() == draws[2, 3, 1]


@quick
@given(st.lists(st.integers(1, 500), max_size=60), st.integers(1, 9))
def test_assign_places_every_item_once_and_balances(costs: list[int], bins: int) -> None:
    filled = assign(costs, bins)
    assert sorted(item for items in filled for item in items) == list(range(len(costs)))
    sums = [sum(costs[item] for item in items) for items in filled]
    assert max(sums) <= sum(costs) / bins + max(costs, default=0)


@quick
@given(st.lists(st.integers(1, 500), max_size=60), st.integers(1, 9))
def test_assign_gives_each_bin_its_items_in_order_and_repeats_itself(costs: list[int], bins: int) -> None:
    filled = assign(costs, bins)
    assert len(filled) == bins and all(items == sorted(items) for items in filled)
    assert assign(costs, bins) == filled


@quick
@given(st.integers(1, 12), st.integers(1, 30), st.integers(0, 60), st.integers(0, 1000))
def test_a_run_resumed_at_any_step_goes_on_as_the_uninterrupted_one(per_step: int, size: int, stop: int, seed: int) -> None:
    straight = [order(seed, Mixture((per_step,), (size,)), step) for step in range(stop + 3)]
    resumed = Mixture((per_step,), (size,))  # of a process that shares the configuration and the step number alone
    assert [order(seed, resumed, step) for step in range(stop, stop + 3)] == straight[stop:]


def test_epochs_and_corpora_have_permutations_of_their_own() -> None:
    steps = [order(1, Mixture((40, 40), (40, 40)), step) for step in range(4)]
    epochs = {tuple(draw.index for draw in step if draw.corpus == corpus) for step in steps for corpus in (0, 1)}
    assert len(epochs) == 8


def test_every_sample_comes_to_every_place_about_equally_often() -> None:
    places = np.zeros((13, 13))
    for key in range(4000):
        for position in range(13):
            places[position, permuted(position, 13, key * 7919)] += 1
    assert places.min() > 0.75 * 4000 / 13 and places.max() < 1.25 * 4000 / 13


def test_the_order_of_a_known_run_never_changes() -> None:
    """A changed order would make every resumed run repeat samples and skip others: these numbers are a promise."""
    found = [(draw.corpus, draw.number, draw.index) for draw in order(1, Mixture((3, 2), (10, 7)), 5)]
    assert found == KNOWN
    assert int(generator(1, Draw(*KNOWN[0]), 1).integers(1 << 30)) == KNOWN_NUMBER


@pytest.mark.parametrize("size", KNOWN_STARTS)
def test_known_permutations_never_change(size: int) -> None:
    """As above, for every corpus size: an order that changes with a new version breaks the runs of the old one."""
    assert [permuted(position, size, 12345) for position in range(min(size, 6))] == KNOWN_STARTS[size]


def test_large_permutations_stay_inside_and_do_not_collide() -> None:
    size = 10**9 + 7
    found = {permuted(position, size, 3) for position in range(0, size, size // 2000)}
    assert len(found) == 2001 and min(found) >= 0 and max(found) < size


@pytest.mark.parametrize(
    ("costs", "bins", "filled"),
    [
        ([1, 1, 2], 2, [[2], [0, 1]]),
        ([1, 2, 3, 4, 5, 6], 3, [[0, 5], [1, 4], [2, 3]]),
        ([5, 5, 5], 2, [[0, 2], [1]]),
        ([7], 3, [[0], [], []]),
        ([], 2, [[], []]),
    ],
)
def test_the_longest_items_are_placed_first_each_into_the_emptiest_bin(
    costs: list[int], bins: int, filled: list[list[int]]
) -> None:
    assert assign(costs, bins) == filled


@quick
@given(st.lists(st.integers(1, 100), min_size=1, max_size=6), st.integers(1, 3))
def test_assign_is_within_a_third_of_the_best_there_is(costs: list[int], bins: int) -> None:
    """Graham's bound for longest-first, against all assignments."""
    best = min(
        max(sum(cost for cost, bin_ in zip(costs, chosen, strict=True) if bin_ == number) for number in range(bins))
        for chosen in itertools.product(range(bins), repeat=len(costs))
    )
    largest = max(sum(costs[item] for item in items) for items in assign(costs, bins))
    assert 3 * bins * largest <= (4 * bins - 1) * best


@quick
@given(st.integers(1, 5), st.integers(1, 20), st.integers(1, 9), st.integers(0, 30), st.integers(0, 1000))
def test_one_corpus_s_order_does_not_depend_on_the_others(count: int, size: int, other: int, step: int, seed: int) -> None:
    alone = order(seed, Mixture((count, 0), (size, 0)), step)
    together = order(seed, Mixture((count, other), (size, 3)), step)
    assert [draw for draw in together if draw.corpus == 0] == alone and len(together) == count + other
