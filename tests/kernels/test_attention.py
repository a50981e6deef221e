"""Packed attention against a plain float64 loop over sequences with the mask rule written out."""

import itertools
import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unimo_ds.kernels import attention
from unimo_ds.kernels.attention import TILE_ROWS, Sequences, packed_attention, tile_list

HEADS, WIDTH = 2, 8


def reference(qkv_T3HE: Tensor, lengths: list[int], prefixes: list[int]) -> Tensor:
    """Position j of a sequence is visible to position i when j < max(prefix, i + 1)."""
    out, start = [], 0
    for length, prefix in zip(lengths, prefixes, strict=True):
        query, key, value = qkv_T3HE[start : start + length].double().permute(1, 2, 0, 3)
        scores = query @ key.transpose(-1, -2) / WIDTH**0.5
        for i in range(length):
            scores[:, i, max(prefix, i + 1) :] = -torch.inf
        out.append((scores.softmax(-1) @ value).transpose(0, 1))
        start += length
    return torch.cat(out)


def cut(lengths: list[int], prefixes: list[int]) -> Sequences:
    cu_seqlens = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    return Sequences(cu_seqlens, torch.tensor(prefixes, dtype=torch.int32), torch.from_numpy(tile_list(lengths, prefixes)))


@st.composite
def shapes(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    lengths = draw(st.lists(st.integers(1, 60), min_size=1, max_size=9))
    return lengths, [draw(st.integers(0, length)) for length in lengths]


@st.composite
def shapes_with_nothing_too(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    lengths = draw(st.lists(st.integers(0, 200), max_size=7))
    return lengths, [draw(st.integers(0, length)) for length in lengths]


@settings(deadline=None, derandomize=True, max_examples=25)
@given(shapes(), st.sampled_from([(torch.float32, 1e-5), (torch.bfloat16, 4e-2)]))
def test_output_and_gradient_equal_the_reference(shape: tuple[list[int], list[int]], kind: tuple[torch.dtype, float]) -> None:
    (lengths, prefixes), (dtype, tolerance) = shape, kind
    torch.manual_seed(0)
    qkv = torch.randn(sum(lengths), 3, HEADS, WIDTH).to(dtype).requires_grad_()
    exact = qkv.detach().double().requires_grad_()
    weights = torch.randn(sum(lengths), HEADS, WIDTH)
    found = packed_attention(qkv, cut(lengths, prefixes), 0.0)
    expected = reference(exact, lengths, prefixes)
    torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=tolerance)
    (found.float() * weights).sum().backward()
    (expected * weights.double()).sum().backward()
    assert qkv.grad is not None and exact.grad is not None
    torch.testing.assert_close(qkv.grad.double(), exact.grad, atol=2 * tolerance, rtol=2 * tolerance)


def test_a_sequence_never_sees_another() -> None:
    torch.manual_seed(0)
    lengths, prefixes = [5, 9, 7, 30], [5, 0, 3, 30]
    qkv = torch.randn(sum(lengths), 3, HEADS, WIDTH)
    sequences = cut(lengths, prefixes)
    before = packed_attention(qkv, sequences, 0.0)
    qkv[5:14] = torch.nan
    after = packed_attention(qkv, sequences, 0.0)
    kept = [*range(5), *range(14, sum(lengths))]
    torch.testing.assert_close(after[kept], before[kept])


@settings(deadline=None, derandomize=True, max_examples=40)
@given(shapes_with_nothing_too(), st.integers(1, 5), st.sampled_from([1, 500, 4000, 1 << 18]))
def test_blocks_hold_every_head_of_every_sequence_once(shape: tuple[list[int], list[int]], heads: int, elements: int) -> None:
    """Each is padded by less than 8 rows, and no block but one of a single matrix holds more than it may."""
    lengths, _ = shape
    sequences = cut(*shape)
    prefixes = sequences.prefix_lengths_S.numpy().tobytes()
    plan = attention._plan(sequences.cu_seqlens_S1.numpy().tobytes(), prefixes, heads, torch.float32, elements)
    found = [
        (span, head) for block in plan.blocks for span in block.spans for head in range(block.heads.start, block.heads.stop)
    ]
    ends = list(itertools.accumulate(lengths))
    expected = [
        ((end - length, end), head) for end, length in zip(ends, lengths, strict=True) if length for head in range(heads)
    ]
    assert sorted(found) == sorted(expected)
    filled = 0
    for block in plan.blocks:
        matrices, length, _ = block.square
        assert matrices == 1 or math.prod(block.square) <= elements
        assert all(length - 8 < end - start <= length for start, end in block.spans)
        assert block.weights == slice(filled, filled + math.prod(block.square))
        filled = block.weights.stop
    assert filled == plan.weights


@settings(deadline=None, derandomize=True, max_examples=60)
@given(shapes_with_nothing_too())
def test_every_row_is_in_exactly_one_tile(shape: tuple[list[int], list[int]]) -> None:
    lengths, prefixes = shape
    tiles = tile_list(*shape)
    assert tiles.dtype == np.int32 and tiles.shape[1] == 4
    ends = list(itertools.accumulate(lengths))
    whole = [(end - length, length, prefix) for end, length, prefix in zip(ends, lengths, prefixes, strict=True)]
    assert {tuple(row[:3]) for row in tiles.tolist()} == {row for row in whole if row[1]}
    rows = [start + row for start, length, _, first in tiles.tolist() for row in range(first, min(first + TILE_ROWS, length))]
    assert sorted(rows) == list(range(sum(lengths)))
    assert all(first % TILE_ROWS == 0 and first < length for _, length, _, first in tiles.tolist())
    seen = [max(prefix, min(first + TILE_ROWS, length)) for _, length, prefix, first in tiles.tolist()]
    assert seen == sorted(seen, reverse=True), "the tile that reads most keys comes first"


def test_tiles_of_a_known_batch() -> None:
    found = tile_list([70, 5, 130], [70, 0, 10]).tolist()
    assert found == [[75, 130, 10, 128], [75, 130, 10, 64], [0, 70, 70, 0], [0, 70, 70, 64], [75, 130, 10, 0], [70, 5, 0, 0]]
    assert tile_list([], []).shape == (0, 4)


def test_dropout_keeps_the_mean_and_is_repeated_by_its_seed() -> None:
    lengths = [8] * 4
    sequences = cut(lengths, lengths)
    qkv = torch.randn(32, 3, HEADS, WIDTH, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    draws = torch.stack([packed_attention(qkv, sequences, 0.3) for _ in range(150)])
    torch.manual_seed(1)
    assert torch.equal(packed_attention(qkv, sequences, 0.3), draws[0])
    assert not torch.equal(draws[0], draws[1])
    torch.testing.assert_close(draws.mean(0), packed_attention(qkv, sequences, 0.0), atol=0.25, rtol=0.1)


def test_no_sequence_at_all_still_has_a_gradient() -> None:
    qkv = torch.zeros(0, 3, HEADS, WIDTH, requires_grad=True)
    out = packed_attention(qkv, cut([], []), 0.1)
    out.sum().backward()
    assert out.shape == (0, HEADS, WIDTH) and qkv.grad is not None
