"""Counts against cases counted by hand, against brute force, and against the steps that the kernels take in the interpreter."""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.interpreter import INTERPRETED
from unimo_ds.kernels import attention_triton, counts, linear_cross_entropy
from unimo_ds.kernels.attention import tile_list
from unimo_ds.kernels.counts import Lengths, Machine, Work

_RANDOM = settings(deadline=None, derandomize=True, max_examples=30)


def _batch(*sequences: tuple[int, int]) -> Lengths:
    return Lengths(*(np.array(column) for column in zip(*sequences, strict=True)))


@st.composite
def _batches(draw: Any) -> Lengths:
    lengths = draw(st.lists(st.integers(1, 150), min_size=1, max_size=4))
    return _batch(*((length, draw(st.integers(0, length))) for length in lengths))


def _visible(batch: Lengths) -> np.ndarray[Any, Any]:
    """bool [T, T] on the packed axis, by the rule itself."""
    total, start = int(batch.lengths_S.sum()), 0
    visible = np.zeros((total, total), bool)
    for length, prefix in zip(*batch, strict=True):
        for query in range(length):
            visible[start + query, start : start + max(prefix, query + 1)] = True
        start += length
    return visible


def test_pairs_counted_by_hand() -> None:
    assert counts.pairs_needed(_batch((5, 5))) == 25
    assert counts.pairs_needed(_batch((5, 0))) == 15
    assert counts.pairs_needed(_batch((5, 2), (5, 0))) == 16 + 15  # rows of the first see 2, 2, 3, 4 and 5 keys
    assert counts.pairs_padded(_batch((5, 2), (3, 3))) == 50
    assert counts.pairs_flex(_batch((3, 3), (4, 4)), block=4) == 4 * 16  # the second lies across both blocks
    assert counts.pairs_flex(_batch((4, 4), (8, 0)), block=4) == 4 * 16  # square 0, then the causal three of four
    assert counts.pairs_flash(_batch((130, 130), (5, 5)), rows=128, columns=64) == 256 * 192 + 128 * 64


def test_steps_counted_by_hand() -> None:
    """70 rows are a tile of 64 and one of 6; bidirectional both walk 70 rows, filled to 80."""
    bidirectional, causal = _batch((70, 70)), _batch((70, 0))
    assert counts.query_tiles(bidirectional).pairs == counts.key_tiles(bidirectional).pairs == 2 * 64 * 80
    assert counts.query_tiles(causal).pairs == 64 * (64 + 80)
    assert counts.key_tiles(causal).pairs == 64 * (80 + 16)  # the queries 0..69, then 64..69


@_RANDOM
@given(_batches())
def test_pairs_equal_brute_force(batch: Lengths) -> None:
    visible = _visible(batch)
    assert counts.pairs_needed(batch) == visible.sum()
    size, block = -(-len(visible) // 32) * 32, 32
    filled = np.zeros((size, size), bool)
    filled[: len(visible), : len(visible)] = visible
    squares = filled.reshape(size // block, block, size // block, block).any(axis=(1, 3))
    assert counts.pairs_flex(batch, block) == squares.sum() * block**2
    assert min(counts.query_tiles(batch).pairs, counts.key_tiles(batch).pairs) >= visible.sum()


@pytest.mark.parametrize("batch", [_batch((70, 70)), _batch((100, 0), (37, 12)), _batch((130, 67), (64, 64), (1, 0))])
def test_the_kernels_take_the_steps_that_are_counted(batch: Lengths, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step's rows and columns, noted while the kernels run in Triton's interpreter."""
    taken: dict[str, int] = {}

    def noting(name: str) -> None:
        step = getattr(attention_triton, name)
        parameters = inspect.signature(step.fn)

        def noted(*args: Any, **kwargs: Any) -> Any:
            given = parameters.bind(*args, **kwargs).arguments
            rows, columns = (getattr(given[side], "value", given[side]) for side in ("ROWS", "COLUMNS"))
            taken[name] = taken.get(name, 0) + rows * columns
            return step(*args, **kwargs)

        monkeypatch.setattr(attention_triton, name, noted)

    steps = ("_forward_step", "_d_query_step", "_d_key_step")
    for name in steps:
        noting(name)
    positions = int(batch.lengths_S.sum())
    qkv_T3HE = torch.randn(positions, 3, 1, 32, generator=torch.Generator().manual_seed(0))
    tiles_N4 = torch.from_numpy(tile_list(*batch))
    attended, log_sums = attention_triton.forward(qkv_T3HE, tiles_N4, 0.0, None, INTERPRETED)
    attention_triton.backward(attended, qkv_T3HE, attended, log_sums, tiles_N4, 0.0, None, INTERPRETED)
    queries, keys = counts.query_tiles(batch).pairs, counts.key_tiles(batch).pairs
    assert [taken[name] for name in steps] == [queries, queries, keys]


def test_few_pairs_are_computed_in_vain() -> None:
    standard = counts.standard_batch()
    needed = counts.pairs_needed(standard)
    assert len(standard.lengths_S) == 256 and standard.lengths_S.min() == 37 and standard.lengths_S.max() == 100
    assert counts.query_tiles(standard).pairs <= 1.7 * needed
    assert counts.key_tiles(standard).pairs <= 1.7 * needed
    assert counts.pairs_flex(standard) >= 5 * needed
    mixed = counts.mixed_batch()
    kinds = [(mixed.prefixes_S == mixed.lengths_S).sum(), (mixed.prefixes_S == 0).sum()]
    assert kinds == [86, 85] and (mixed.prefixes_S <= mixed.lengths_S).all()
    assert max(counts.query_tiles(mixed).pairs, counts.key_tiles(mixed).pairs) <= 2.1 * counts.pairs_needed(mixed)


def test_work_of_attention_counted_by_hand() -> None:
    """64 x 512, 12 heads of 64 in bf16: whole tiles, so that what is done is what is needed."""
    forward, dq, dkv, backward = counts.attention_counts(counts.long_batch())
    product = 2 * 64 * 512**2 * 12 * 64
    vector, number = 64 * 512 * 12 * 64 * 2, 64 * 512 * 12 * 4
    assert forward.needed == Work(2 * product, 4 * vector + number)
    assert forward.done == Work(2 * product, 2 * vector + number + 2 * 8 * vector)  # 8 tiles load keys and values
    assert (dq.done.flops, dkv.done.flops) == (3 * product, 4 * product)
    assert backward.needed == Work(5 * product, 8 * vector + number)
    assert backward.done == Work(7 * product, dq.done.bytes + dkv.done.bytes)


def test_work_of_the_other_ops_counted_by_hand() -> None:
    forward, backward = counts.contrastive_counts(4096, width=10)
    assert forward.needed == Work(2 * 4096**2 * 10, 2 * 4096 * 10 * 2 + 4 * 4096 * 4)
    assert backward.needed.flops == 3 * forward.needed.flops
    assert backward.done.bytes >= 3 * 4096**2 * 2  # the derivative of the matrix, written once and read twice
    assert counts.CHUNK == linear_cross_entropy._CHUNK_ELEMENTS
    sweep, whole = counts.cross_entropy_counts(targets=6, vocabulary=7, width=5)
    logits, weight, hidden, product = 6 * 7 * 2, 7 * 5 * 2, 6 * 5 * 2, 2 * 6 * 7 * 5
    assert (sweep.needed.bytes, sweep.done.bytes) == (2 * logits, 3 * logits)
    assert whole.needed == Work(3 * product, 2 * weight + 2 * hidden)
    assert whole.done == Work(3 * product, 7 * logits + 3 * weight + 3 * hidden)
    _, chunked = counts.cross_entropy_counts(targets=6, vocabulary=7, width=5, chunk=14)  # three chunks of two targets
    assert chunked.done == Work(4 * product, 11 * logits + 14 * weight + 4 * hidden)


def test_the_longer_of_two_times_is_the_floor() -> None:
    machine = Machine("small", flops=12.0, bandwidth=2.0)
    assert machine.floor(Work(24.0, 2.0)) == (2.0, "products")
    assert machine.floor(Work(24.0, 6.0)) == (3.0, "memory")
    assert machine.floor(Work(24.0, 6.0), itemsize=4) == (12.0, "products")  # three products at half the rate


def test_the_document_shows_these_counts() -> None:
    document = Path(__file__).parents[2] / "docs" / "kernels.md"
    assert counts.table() in document.read_text(encoding="utf-8"), "put the output of `unimo-ds kernels --counts` there"
