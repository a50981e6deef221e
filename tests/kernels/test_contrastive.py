"""The contrastive log-sums against the whole matrix in float64."""

import pytest
import torch
from torch import Tensor

from unimo_ds.kernels import contrastive
from unimo_ds.kernels.contrastive import contrastive_statistics


def cut(patch: pytest.MonkeyPatch, chunk: int) -> None:
    """Makes the CPU implementation cut the matrix into small chunks, and those into blocks."""
    patch.setattr(contrastive, "_CHUNK_ROWS", max(1, chunk // 3))
    patch.setattr(contrastive, "_CHUNK_COLUMNS", max(1, chunk // 2))
    patch.setattr(contrastive, "_PRODUCT_ROWS", max(1, chunk // 4))
    patch.setattr(contrastive, "_BLOCK_ELEMENTS", chunk)


def reference(x: Tensor, y: Tensor, x_groups: Tensor, y_groups: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
    ignored = (x_groups[:, None] < 0) | (y_groups[None] < 0)
    similarity = (scale * x @ y.T).masked_fill(ignored, -torch.inf)
    positive = similarity.masked_fill(x_groups[:, None] != y_groups[None], -torch.inf)
    return similarity.logsumexp(1), positive.logsumexp(1), similarity.logsumexp(0), positive.logsumexp(0)


@pytest.mark.parametrize("chunk", [1, 7, 30, 1 << 20])
@pytest.mark.parametrize("scale", [1.0, 14.0, 100.0])
def test_values_and_gradients_equal_the_whole_matrix(monkeypatch: pytest.MonkeyPatch, chunk: int, scale: float) -> None:
    cut(monkeypatch, chunk)
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.nn.functional.normalize(torch.randn(n, 6, generator=generator), dim=1) for n in (9, 11))
    groups = torch.tensor([0, 0, 1, 2, 3, 4, 5, 6, 7]), torch.tensor([0, 1, 1, 2, 3, 4, 5, 6, 7, 0, 2])
    ours = [x.clone().requires_grad_(), y.clone().requires_grad_(), torch.tensor([scale], requires_grad=True)]
    exact = [tensor.detach().double().requires_grad_() for tensor in ours]
    found = contrastive_statistics(ours[0], ours[1], *groups, ours[2])
    expected = reference(exact[0], exact[1], *groups, exact[2])
    weights = [torch.randn(len(part), generator=generator) for part in expected]
    sum((part * weight).sum() for part, weight in zip(found, weights, strict=True)).backward()
    sum((part * weight.double()).sum() for part, weight in zip(expected, weights, strict=True)).backward()
    for part, whole in zip(found, expected, strict=True):
        torch.testing.assert_close(part.double(), whole, atol=1e-4, rtol=1e-5)
    for tensor, whole in zip(ours, exact, strict=True):
        assert tensor.grad is not None and whole.grad is not None
        torch.testing.assert_close(tensor.grad.double(), whole.grad, atol=scale * 2e-5, rtol=1e-4)


def test_an_entry_without_positives_says_minus_infinity_and_harms_no_gradient() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    y = torch.randn(2, 4)
    rows, positive, _, column_positive = contrastive_statistics(
        x, y, torch.tensor([0, 1, 9]), torch.tensor([0, 5]), torch.tensor([2.0])
    )
    assert positive[2] == -torch.inf and column_positive[1] == -torch.inf
    (rows.sum() + positive[0]).backward()
    assert x.grad is not None and torch.isfinite(x.grad).all()


@pytest.mark.parametrize(("rows", "columns"), [(0, 3), (3, 0), (0, 0)])
def test_empty_sides(rows: int, columns: int) -> None:
    x, y = torch.randn(rows, 4, requires_grad=True), torch.randn(columns, 4, requires_grad=True)
    found = contrastive_statistics(x, y, torch.zeros(rows).long(), torch.zeros(columns).long(), torch.ones(1))
    assert [len(part) for part in found] == [rows, rows, columns, columns]
    assert all(bool((part == -torch.inf).all()) for part in found)
