"""The fused head against torch's cross-entropy of whole logits in float64."""

import pytest
import torch
import torch.nn.functional as F

from unimo_ds.kernels import dropout as dropout_module
from unimo_ds.kernels import linear_cross_entropy as module
from unimo_ds.kernels.dropout import dropout
from unimo_ds.kernels.linear_cross_entropy import linear_cross_entropy


@pytest.mark.parametrize("targets", [0, 1, 5])
@pytest.mark.parametrize("chunk", [1, 60, 1 << 24])
def test_losses_and_gradients(monkeypatch: pytest.MonkeyPatch, targets: int, chunk: int) -> None:
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", chunk)
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(*shape, generator=generator) for shape in ((targets, 8), (30, 8), (30,))]
    labels = torch.randint(30, (targets,), generator=generator)
    weights = torch.randn(targets, generator=generator)
    ours = [tensor.clone().requires_grad_() for tensor in inputs]
    exact = [tensor.double().requires_grad_() for tensor in inputs]
    found = linear_cross_entropy(ours[0], ours[1], ours[2], labels)
    expected = F.cross_entropy(F.linear(exact[0], exact[1], exact[2]), labels, reduction="none")
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    (found * weights).sum().backward()
    (expected * weights.double()).sum().backward()
    for tensor, whole in zip(ours, exact, strict=True):
        assert tensor.grad is not None
        torch.testing.assert_close(tensor.grad.double(), whole.grad, atol=1e-5, rtol=1e-5)


def test_dropout_zeroes_the_right_share_and_scales_the_rest() -> None:
    torch.manual_seed(0)
    x = torch.ones(100_001, requires_grad=True)
    y = dropout(x, 0.1)
    y.sum().backward()
    assert float((y == 0).float().mean()) == pytest.approx(0.1, abs=0.004)
    assert torch.equal(y.detach(), x.grad), "the gradient passes where the value passed, with the same scale"
    assert y.unique().tolist() == [0.0, pytest.approx(1 / 0.9)]
    assert dropout(x, 0.0) is x


def test_dropout_draws_are_independent_between_neighbours() -> None:
    torch.manual_seed(0)
    kept = dropout_module.draw_kept(torch.empty(4, 50_000), 0.5).float().T.reshape(-1, 4)
    correlation = torch.corrcoef(kept.T) - torch.eye(4)
    assert correlation.abs().max() < 0.02
