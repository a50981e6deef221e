"""The contrastive log-sums and the fused head at their edges: numerical gradients, extreme scales, bf16, chunks, no rows."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.kernels.test_contrastive import cut, reference
from unimo_ds.config import ModelSection
from unimo_ds.kernels import linear_cross_entropy as fused
from unimo_ds.kernels.contrastive import contrastive_statistics
from unimo_ds.kernels.dropout import dropout
from unimo_ds.kernels.linear_cross_entropy import linear_cross_entropy


@pytest.mark.parametrize("chunk", [1, 8, 1 << 20])
def test_log_sums_pass_the_numerical_check_of_their_gradients(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    cut(monkeypatch, chunk)
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 3, generator=generator, dtype=torch.float64, requires_grad=True) for n in (4, 5))
    groups = torch.tensor([0, 1, 1, 2]), torch.tensor([2, 1, 0, 0, 1])
    scale = torch.tensor([1.7], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, y, scale: contrastive_statistics(x, y, *groups, scale), (x, y, scale))


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 4),
    st.sampled_from([0.5, 20.0, 1000.0]),
    st.sampled_from([1, 5, 9, 1 << 20]),
)
def test_log_sums_with_any_number_of_positives(rows: int, columns: int, groups: int, scale: float, chunk: int) -> None:
    """Rows and columns without a positive among them; 1000 is the lowest temperature."""
    generator = torch.Generator().manual_seed(rows * 10 + columns)
    x, y = (F.normalize(torch.randn(n, 5, generator=generator), dim=1) for n in (rows, columns))
    own, other = (torch.randint(groups, (n,), generator=generator) for n in (rows, columns))
    ours = [x.requires_grad_(), y.requires_grad_(), torch.tensor([scale], requires_grad=True)]
    exact = [leaf.detach().double().requires_grad_() for leaf in ours]
    with pytest.MonkeyPatch.context() as patch:
        cut(patch, chunk)
        found = contrastive_statistics(ours[0], ours[1], own, other, ours[2])
        expected = reference(exact[0], exact[1], own, other, exact[2])
        finite = [torch.isfinite(part) for part in expected]
        for part, whole, kept in zip(found, expected, finite, strict=True):
            assert torch.equal(torch.isneginf(part), ~kept)
            torch.testing.assert_close(part[kept].double(), whole[kept], atol=1e-5, rtol=1e-5)
        ((found[0] - found[1])[finite[1]].sum() + 2 * (found[2] - found[3])[finite[3]].sum()).backward()
    ((expected[0] - expected[1])[finite[1]].sum() + 2 * (expected[2] - expected[3])[finite[3]].sum()).backward()
    for mine, theirs in zip(ours, exact, strict=True):
        assert mine.grad is not None and theirs.grad is not None
        # float32 knows a similarity to scale x 1e-7, and a gradient is scale x the change of a probability.
        torch.testing.assert_close(mine.grad.double(), theirs.grad, atol=1e-4 + 2e-7 * scale**2, rtol=1e-4)


@pytest.mark.parametrize(("rows", "columns"), [(0, 3), (3, 0), (0, 0)])
def test_log_sums_of_nothing_have_gradients_of_0(rows: int, columns: int) -> None:
    x, y = torch.randn(rows, 4, requires_grad=True), torch.randn(columns, 4, requires_grad=True)
    scale = torch.ones(1, requires_grad=True)
    found = contrastive_statistics(x, y, torch.zeros(rows).long(), torch.zeros(columns).long(), scale)
    torch.cat(found).exp().sum().backward()
    for leaf in (x, y, scale):
        assert leaf.grad is not None and leaf.grad.shape == leaf.shape and not leaf.grad.any()


@pytest.mark.usefixtures("processor")
@pytest.mark.parametrize("chunk", [1, 100, 1 << 24])
def test_the_fused_head_in_bf16(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(fused, "_CHUNK_ELEMENTS", chunk)
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(*shape, generator=generator).bfloat16() for shape in ((9, 16), (40, 16), (40,))]
    labels, weights = torch.randint(40, (9,), generator=generator), torch.rand(9, generator=generator)
    ours = [tensor.clone().requires_grad_() for tensor in inputs]
    exact = [tensor.double().requires_grad_() for tensor in inputs]
    found = linear_cross_entropy(ours[0], ours[1], ours[2], labels)
    expected = F.cross_entropy(F.linear(*exact), labels, reduction="none")
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, atol=3e-2, rtol=2e-2)
    (found * weights).sum().backward()
    (expected * weights.double()).sum().backward()
    for mine, theirs in zip(ours, exact, strict=True):
        assert mine.grad is not None and theirs.grad is not None and mine.grad.dtype == torch.bfloat16
        assert float((mine.grad.double() - theirs.grad).norm()) < 2e-2 * float(theirs.grad.norm())


def test_a_scaled_loss_does_not_leave_the_range_of_fp16() -> None:
    """The largest gradient is a number of fp16; the inputs times the scaled loss are not."""
    generator = torch.Generator().manual_seed(0)
    inputs = [
        (size * torch.randn(*shape, generator=generator)).half() for size, shape in ((20, (4, 8)), (0.1, (6, 8)), (1, (6,)))
    ]
    ours = [tensor.clone().requires_grad_() for tensor in inputs]
    exact = [tensor.double().requires_grad_() for tensor in inputs]
    labels = torch.tensor([0, 1, 5, 5])
    (6000 * linear_cross_entropy(ours[0], ours[1], ours[2], labels)).sum().backward()
    (6000 * F.cross_entropy(F.linear(*exact), labels, reduction="none")).sum().backward()
    assert float(exact[0].detach().abs().max()) * 6000 > torch.finfo(torch.float16).max
    for mine, theirs in zip(ours, exact, strict=True):
        assert mine.grad is not None and theirs.grad is not None
        representable = theirs.grad.abs() < torch.finfo(torch.float16).max
        assert mine.grad[representable].isfinite().all()
        assert float((mine.grad.double() - theirs.grad)[representable].norm()) < 1e-2 * float(theirs.grad[representable].norm())


@pytest.mark.parametrize("chunk", [1, 20, 1 << 24])
def test_the_fused_head_passes_the_numerical_check_of_its_gradients(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """Losses are float32 by contract, so steps are wide and the tolerance follows."""
    monkeypatch.setattr(fused, "_CHUNK_ELEMENTS", chunk)
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(*shape, generator=generator, requires_grad=True) for shape in ((5, 3), (7, 3), (7,))]
    labels = torch.tensor([0, 6, 3, 3, 1])
    for leaf in inputs:
        direction = torch.randn(leaf.shape, generator=generator)
        linear_cross_entropy(*inputs, labels).sum().backward()
        assert leaf.grad is not None
        moved = []
        for step in (1e-2, -1e-2):
            there = [other + step * direction if other is leaf else other for other in inputs]
            moved.append(float(linear_cross_entropy(*there, labels).sum().detach()))
        assert (moved[0] - moved[1]) / 2e-2 == pytest.approx(float((leaf.grad * direction).sum()), abs=2e-3, rel=2e-3)
        for other in inputs:
            other.grad = None


def test_huge_logits_overflow_nothing() -> None:
    hidden = torch.tensor([[1000.0], [-1000.0]], requires_grad=True)
    weight, bias = torch.tensor([[1.0], [0.0]], requires_grad=True), torch.zeros(2, requires_grad=True)
    losses = linear_cross_entropy(hidden, weight, bias, torch.tensor([0, 0]))
    losses.sum().backward()
    assert losses.tolist() == [0.0, 1000.0]
    assert weight.grad is not None and weight.grad.flatten().tolist() == [1000.0, -1000.0]


@pytest.mark.parametrize("shape", [(0,), (0, 3), (1,), (3,), (5, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_of_any_size(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.ones(shape, dtype=dtype, requires_grad=True)
    out = dropout(x, 0.5)
    out.sum().backward()
    assert out.shape == x.shape and out.dtype == dtype and x.grad is not None
    assert torch.equal(out.detach(), x.grad) and set(out.flatten().tolist()) <= {0.0, 2.0}


@pytest.mark.parametrize("rate", [0.999, 1 - 1e-6])
def test_a_rate_next_to_1_drops_nearly_everything(rate: float) -> None:
    torch.manual_seed(0)
    assert float((dropout(torch.ones(20_000), rate) != 0).float().mean()) < 2e-3


@pytest.mark.parametrize("key", ["dropout", "attention_dropout"])
def test_a_rate_of_1_is_refused_by_the_configuration(key: str) -> None:
    with pytest.raises(ValidationError, match=f"{key}\n.*less than 1"):
        ModelSection.model_validate({key: 1.0})


@pytest.mark.parametrize("block", [1, 70, 1 << 19])
@pytest.mark.parametrize("chunk", [1, 100, 1 << 25])
def test_the_fused_head_is_the_same_however_it_is_cut_and_however_often_asked(
    monkeypatch: pytest.MonkeyPatch, block: int, chunk: int
) -> None:
    monkeypatch.setattr(fused, "_CHUNK_ELEMENTS", chunk)
    monkeypatch.setattr(fused, "_BLOCK_ELEMENTS", block)
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(*shape, generator=generator) for shape in ((9, 8), (30, 8), (30,))]
    labels, weights = torch.randint(30, (9,), generator=generator), torch.randn(9, generator=generator)
    ours = [tensor.clone().requires_grad_() for tensor in inputs]
    exact = [tensor.double().requires_grad_() for tensor in inputs]
    found = linear_cross_entropy(ours[0], ours[1], ours[2], labels)
    expected = F.cross_entropy(F.linear(*exact), labels, reduction="none")
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    theirs = torch.autograd.grad((expected * weights.double()).sum(), exact)
    for _ in range(2):
        mine = torch.autograd.grad((found * weights).sum(), ours, retain_graph=True)
        for gradient, whole in zip(mine, theirs, strict=True):
            torch.testing.assert_close(gradient.double(), whole, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(tensor, before) for tensor, before in zip(ours, inputs, strict=True)), "inputs are left as they are"
