"""Both inner products of packed attention, at long sequences, in bf16, and with dropout; and that nothing leaks."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.test_attention import HEADS, WIDTH, cut, reference
from unimo_ds.kernels import attention
from unimo_ds.kernels.attention import packed_attention

NO_DROPOUT = 1e-9  # takes the path of dropout, whose rate is rounded to 1/65,536: nothing is dropped


@st.composite
def shapes(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    lengths = draw(st.lists(st.integers(1, 80), min_size=1, max_size=8))
    return lengths, [draw(st.sampled_from([0, length, length // 2, min(1, length)])) for length in lengths]


def both(lengths: list[int], prefixes: list[int], dtype: torch.dtype, rate: float) -> list[tuple[Tensor, Tensor]]:
    """Output and gradient, ours and the reference's."""
    generator = torch.Generator().manual_seed(len(lengths))
    qkv = torch.randn(sum(lengths), 3, HEADS, WIDTH, generator=generator).to(dtype).requires_grad_()
    exact = qkv.detach().double().requires_grad_()
    # Weights that bf16 holds exactly: its error shall be the kernel's own.
    weights = torch.randn(sum(lengths), HEADS, WIDTH, generator=generator).to(dtype)
    found = packed_attention(qkv, cut(lengths, prefixes), rate)
    expected = reference(exact, lengths, prefixes)
    found.backward(weights)
    expected.backward(weights.double())
    assert qkv.grad is not None and exact.grad is not None
    assert found.dtype == qkv.grad.dtype == dtype
    return [(found.detach().double(), expected.detach()), (qkv.grad.double(), exact.grad)]


@settings(deadline=None, derandomize=True, max_examples=25)
@given(shapes(), st.sampled_from([0.0, NO_DROPOUT]))
def test_both_inner_products_are_exact_in_fp32(shape: tuple[list[int], list[int]], rate: float) -> None:
    for found, expected in both(*shape, torch.float32, rate):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_large_scores_do_not_pass_the_mask() -> None:
    """Scores of tens of thousands: a mask that adds -1e4 would let later words through."""
    lengths, prefixes = [64, 30], [0, 11]
    generator = torch.Generator().manual_seed(0)
    qkv = 300 * torch.randn(94, 3, HEADS, WIDTH, generator=generator)
    found = packed_attention(qkv, cut(lengths, prefixes), 0.0)
    torch.testing.assert_close(found.double(), reference(qkv.double(), lengths, prefixes), atol=1e-2, rtol=1e-4)
    assert found.isfinite().all()


@pytest.mark.usefixtures("processor")
@settings(deadline=None, derandomize=True, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shapes(), st.sampled_from([0.0, NO_DROPOUT]))
def test_bf16_is_as_exact_as_bf16_is(shape: tuple[list[int], list[int]], rate: float) -> None:
    for found, expected in both(*shape, torch.bfloat16, rate):
        error = float((found - expected).abs().max())
        assert error < 2e-2 * max(1.0, float(expected.abs().max())), error
        assert float((found - expected).norm()) < 1e-2 * float(expected.norm()) + 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("changed", range(4))
def test_other_sequences_are_bit_equal_whatever_one_holds(changed: int, dtype: torch.dtype) -> None:
    lengths, prefixes = [5, 9, 7, 30], [5, 0, 3, 30]
    qkv = torch.randn(51, 3, HEADS, WIDTH, generator=torch.Generator().manual_seed(0)).to(dtype)
    sequences = cut(lengths, prefixes)
    before = packed_attention(qkv, sequences, 0.0)
    own = slice(sum(lengths[:changed]), sum(lengths[: changed + 1]))
    other = qkv.clone()
    other[own] = 20 * torch.randn(other[own].shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    after = packed_attention(other, sequences, 0.0)
    outside = torch.ones(51, dtype=torch.bool)
    outside[own] = False
    assert torch.equal(after[outside], before[outside])
    assert not torch.equal(after[own], before[own])


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_gradients_stay_within_a_sequence_and_behind_the_mask(rate: float) -> None:
    lengths, prefixes = [4, 6, 3], [4, 2, 0]
    qkv = torch.randn(13, 3, HEADS, WIDTH, generator=torch.Generator().manual_seed(0)).requires_grad_()
    torch.manual_seed(2)
    packed_attention(qkv, cut(lengths, prefixes), rate)[7].sum().backward()  # row 3 of sequence 1
    assert qkv.grad is not None
    query, key, value = (qkv.grad[:, part].flatten(1).abs().sum(1).nonzero().flatten().tolist() for part in range(3))
    assert query == [7]
    assert set(key) | set(value) <= {4, 5, 6, 7} and len(value) > 1
    if rate == 0.0:
        assert key == value == [4, 5, 6, 7]


def test_dropout_keeps_mean_and_has_the_variance_of_its_rate() -> None:
    rate, draws = 0.25, 3000
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(6, 3, HEADS, WIDTH, generator=generator)
    sequences = cut([6], [6])
    torch.manual_seed(3)
    many = torch.stack([packed_attention(qkv, sequences, rate) for _ in range(draws)]).double()
    query, key, value = qkv.double().permute(1, 2, 0, 3)
    weights = (query @ key.transpose(-1, -2) / WIDTH**0.5).softmax(-1)
    variance = (rate / (1 - rate) * weights.square() @ value.square()).transpose(0, 1)
    error = (many.mean(0) - (weights @ value).transpose(0, 1)) / (variance / draws).sqrt()
    assert error.abs().max() < 5 and 0.7 < float(error.std()) < 1.3
    torch.testing.assert_close(many.var(0), variance, rtol=0.2, atol=1e-4)


@pytest.mark.parametrize("rate", [0.0, 0.4])
@pytest.mark.parametrize("elements", [1, 200, 1 << 20])
def test_gradients_pass_the_numerical_check_with_dropout_too(
    monkeypatch: pytest.MonkeyPatch, rate: float, elements: int
) -> None:
    """In float64, with the same draws each time; and whatever is computed at a time."""
    monkeypatch.setattr(attention, "_BLOCK_ELEMENTS", elements)
    lengths, prefixes = [3, 1, 4, 3, 2], [3, 0, 1, 0, 2]
    qkv = torch.randn(13, 3, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    sequences = cut(lengths, prefixes)

    def attend(rows: Tensor) -> Tensor:
        torch.manual_seed(7)
        return packed_attention(rows, sequences, rate)

    assert torch.autograd.gradcheck(attend, (qkv,))


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_a_second_backward_pass_gives_the_same(rate: float) -> None:
    qkv = torch.randn(9, 3, HEADS, WIDTH, generator=torch.Generator().manual_seed(0)).requires_grad_()
    out = packed_attention(qkv, cut([4, 5], [2, 5]), rate)
    first, second = (torch.autograd.grad(out.square().sum(), qkv, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second) and first.any()


def test_inputs_are_left_as_they_are() -> None:
    qkv = torch.randn(9, 3, HEADS, WIDTH, generator=torch.Generator().manual_seed(0))
    before = qkv.clone()
    packed_attention(qkv.requires_grad_(), cut([4, 5], [2, 5]), 0.2).sum().backward()
    assert torch.equal(qkv, before)


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_not_even_a_nan_passes_from_the_first_sequence(rate: float) -> None:
    """Whatever padding copies, it must not be another sequence."""
    qkv = torch.randn(12, 3, HEADS, WIDTH, generator=torch.Generator().manual_seed(0))
    qkv[:3] = torch.nan
    qkv.requires_grad_()
    out = packed_attention(qkv, cut([3, 4, 5], [3, 2, 0]), rate)
    assert out[:3].isnan().all() and out[3:].isfinite().all()
    out[3:].sum().backward()
    assert qkv.grad is not None and qkv.grad[3:].isfinite().all()
