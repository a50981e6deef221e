"""Data order: which samples make a step, a pure function of (seed, mixture, step).

No state, no iterator to save: a run that is resumed, on any number of ranks, sees exactly the samples that it has not seen.
Each corpus gives a fixed number of samples a step; its draw number d is sample `permutation(d mod N)` of epoch `d div N`,
and each epoch has its own permutation, computed one element at a time (nothing of size N is stored).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_ROUNDS = 4
_MASK_64 = (1 << 64) - 1


@dataclass(frozen=True, order=True)
class Draw:
    """One sample of a step.

    Attributes:
        corpus: number of the corpus in the mixture.
        number: the how-manieth draw from that corpus since step 0; with the corpus it names the sample for ever.
        index: which sample of the corpus it is.
    """

    corpus: int
    number: int
    index: int


@dataclass(frozen=True)
class Mixture:
    """How many samples of each corpus make a step, of how many there are."""

    per_step: tuple[int, ...]
    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        empty = [
            corpus for corpus, (count, size) in enumerate(zip(self.per_step, self.sizes, strict=True)) if count and not size
        ]
        if empty or not any(self.per_step):
            raise ValueError(f"a mixture needs samples: per_step {self.per_step} of sizes {self.sizes}")


def order(seed: int, mixture: Mixture, step: int) -> list[Draw]:
    """The samples of optimizer step `step` (counted from 0) over all ranks."""
    draws = []
    for corpus, (count, size) in enumerate(zip(mixture.per_step, mixture.sizes, strict=True)):
        for number in range(step * count, (step + 1) * count):
            epoch, position = divmod(number, size)
            draws.append(Draw(corpus, number, permuted(position, size, _mix(seed, corpus, epoch))))
    return draws


def generator(seed: int, draw: Draw, purpose: int) -> np.random.Generator:
    """The random numbers of one sample for one purpose: the same whichever rank or worker handles it."""
    return np.random.Generator(np.random.Philox(key=_mix(seed, draw.corpus, draw.number, purpose)))


def permuted(position: int, size: int, key: int) -> int:
    """Where a random permutation of `range(size)`, chosen by `key`, sends `position`.

    A Feistel network on the smallest even number of bits that holds `size`, walked until it lands inside
    (Black and Rogaway, 2002): at most four steps on average.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    while True:
        left, right = position >> half, position & low
        for turn in range(_ROUNDS):
            left, right = right, left ^ (_mix(key, turn, right) & low)
        position = left << half | right
        if position < size:
            return position


def _mix(*values: int) -> int:
    """A 64-bit hash of integers (splitmix64's finaliser, applied in turn)."""
    state = 0
    for value in values:
        state = (state + (value & _MASK_64) + 0x9E3779B97F4A7C15) & _MASK_64
        state = ((state ^ state >> 30) * 0xBF58476D1CE4E5B9) & _MASK_64
        state = ((state ^ state >> 27) * 0x94D049BB133111EB) & _MASK_64
        state ^= state >> 31
    return state


def assign(costs: Sequence[int], bins: int) -> list[list[int]]:
    """Spreads items over `bins` so that the largest sum of costs is small: longest first, into the emptiest bin.

    Deterministic, so that every rank computes the same answer.

    Returns:
        For each bin the items' numbers in rising order.
    """
    filled: list[list[int]] = [[] for _ in range(bins)]
    sums = [0] * bins
    for item in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        emptiest = sums.index(min(sums))
        filled[emptiest].append(item)
        sums[emptiest] += costs[item]
    return [sorted(items) for items in filled]
