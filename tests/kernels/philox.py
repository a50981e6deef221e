"""Philox4x32-10 in NumPy (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), and the dropout mask that the
attention kernels must make of it."""

import numpy as np
from numpy.typing import NDArray

_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_KEY_STEPS = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)


def philox(key: int, counters_X4: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Four random 32-bit words for each counter of four 32-bit words; `key` has 64 bits."""
    word_0, word_1, word_2, word_3 = np.moveaxis(counters_X4, -1, 0)
    for number in range(_ROUNDS):
        low, high = (
            np.uint64((key >> shift) + number * step & 0xFFFFFFFF) for shift, step in zip((0, 32), _KEY_STEPS, strict=True)
        )
        first, second = word_0 * _MULTIPLIERS[0], word_2 * _MULTIPLIERS[1]
        word_0, word_1, word_2, word_3 = (
            (second >> 32) ^ word_1 ^ low,
            second & _LOW,
            (first >> 32) ^ word_3 ^ high,
            first & _LOW,
        )
    return np.stack([word_0, word_1, word_2, word_3], axis=-1)


def kept_weights(seed: tuple[int, int], rate: float, head: int, start: int, length: int) -> NDArray[np.bool_]:
    """Which attention weights of the sequence at stream row `start` are kept, [length queries, length keys]."""
    counters = np.zeros((length, -(-length // 4), 4), dtype=np.uint64)
    counters[..., 0] = np.arange(counters.shape[1])
    counters[..., 1] = start + np.arange(length)[:, None]
    counters[..., 2] = head
    counters[..., 3] = seed[1] & 0xFFFFFFFF
    words = philox(seed[0], counters).reshape(length, -1)[:, :length]
    return words >= round(rate * 2**32)
