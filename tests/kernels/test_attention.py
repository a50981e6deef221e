"""Packed attention against a plain float64 loop over sequences with the mask rule written out."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unimo_ds.kernels import attention
from unimo_ds.kernels.attention import packed_attention, plan_attention

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


def planned(lengths: list[int], prefixes: list[int], dtype: torch.dtype) -> attention.AttentionPlan:
    cu_seqlens = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    return plan_attention(cu_seqlens, torch.tensor(prefixes, dtype=torch.int32), dtype)


@st.composite
def sequences(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    lengths = draw(st.lists(st.integers(1, 60), min_size=1, max_size=9))
    return lengths, [draw(st.integers(0, length)) for length in lengths]


@settings(deadline=None, derandomize=True, max_examples=25)
@given(sequences(), st.sampled_from([(torch.float32, 1e-5), (torch.bfloat16, 4e-2)]))
def test_output_and_gradient_equal_the_reference(shape: tuple[list[int], list[int]], kind: tuple[torch.dtype, float]) -> None:
    (lengths, prefixes), (dtype, tolerance) = shape, kind
    torch.manual_seed(0)
    qkv = torch.randn(sum(lengths), 3, HEADS, WIDTH).to(dtype).requires_grad_()
    exact = qkv.detach().double().requires_grad_()
    weights = torch.randn(sum(lengths), HEADS, WIDTH)
    found = packed_attention(qkv, planned(lengths, prefixes, dtype), 0.0)
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
    plan = planned(lengths, prefixes, torch.float32)
    before = packed_attention(qkv, plan, 0.0)
    qkv[5:14] = torch.nan
    after = packed_attention(qkv, plan, 0.0)
    kept = [*range(5), *range(14, sum(lengths))]
    torch.testing.assert_close(after[kept], before[kept])


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=7))
def test_buckets_hold_every_sequence_once_at_the_least_padded_cost(lengths: list[int]) -> None:
    ordered = np.sort(np.array(lengths))
    runs = attention._split_by_length(ordered)
    assert [position for run in runs for position in range(run.start, run.stop)] == list(range(len(lengths)))
    assert len(runs) <= 4

    def cost(cuts: tuple[int, ...]) -> float:
        edges = [0, *cuts, len(ordered)]
        return float(sum((b - a) * ordered[b - 1] ** 2 for a, b in itertools.pairwise(edges)))

    inner = range(1, len(ordered))
    best = min(cost(cuts) for count in range(min(4, len(ordered))) for cuts in itertools.combinations(inner, count))
    assert cost(tuple(run.start for run in runs[1:])) == pytest.approx(best)


def test_dropout_keeps_the_mean_and_is_repeated_by_its_seed() -> None:
    lengths = [8] * 4
    plan = planned(lengths, lengths, torch.float32)
    qkv = torch.randn(32, 3, HEADS, WIDTH, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    draws = torch.stack([packed_attention(qkv, plan, 0.3) for _ in range(400)])
    torch.manual_seed(1)
    assert torch.equal(packed_attention(qkv, plan, 0.3), draws[0])
    assert not torch.equal(draws[0], draws[1])
    torch.testing.assert_close(draws.mean(0), packed_attention(qkv, plan, 0.0), atol=0.25, rtol=0.1)


def test_no_sequence_at_all_still_has_a_gradient() -> None:
    qkv = torch.zeros(0, 3, HEADS, WIDTH, requires_grad=True)
    out = packed_attention(qkv, planned([], [], torch.float32), 0.1)
    out.sum().backward()
    assert out.shape == (0, HEADS, WIDTH) and qkv.grad is not None
