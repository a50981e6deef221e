"""Data order as a pure function of the step."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unimo_ds.data.order import Draw, Mixture, assign, generator, order, permuted

quick = settings(deadline=None, derandomize=True, max_examples=60)


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
