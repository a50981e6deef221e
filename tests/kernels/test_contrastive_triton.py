"""The contrastive kernels, in Triton's interpreter, against the whole matrix in float64."""

from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.interpreter import INTERPRETED, repaired
from unimo_ds.kernels import contrastive_triton
from unimo_ds.kernels.launch_triton import Launcher
from unimo_ds.kernels.table import ARCHITECTURES, Launch

pytestmark = pytest.mark.long

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True, scope="module")
def exact_products() -> Iterator[None]:
    with repaired():
        yield


class Matrix(NamedTuple):
    x: Tensor
    y: Tensor
    x_groups: Tensor
    y_groups: Tensor
    scale: Tensor


class Reference(NamedTuple):
    """Log-sums, gradients, and how large the terms are that each gradient is a sum of."""

    log_sums: tuple[Tensor, ...]
    gradients: tuple[Tensor, ...]
    sizes: tuple[Tensor, ...]


def matrix(
    rows: int,
    columns: int,
    width: int,
    scale: float = 14.0,
    dtype: torch.dtype = torch.float32,
    groups: int = 9,
    ignored: bool = True,
) -> Matrix:
    """Unit vectors whose similarities spread over -1 .. 1; groups from -1, which is ignored, or from 0."""
    generator = torch.Generator().manual_seed(rows * 1000 + columns)
    centre = torch.randn(width, generator=generator)
    x, y = (
        F.normalize(torch.randn(n, width, generator=generator) + centre * torch.randn(n, 1, generator=generator), dim=1).to(
            dtype
        )
        for n in (rows, columns)
    )
    own, other = (torch.randint(-int(ignored), groups, (n,), generator=generator) for n in (rows, columns))
    return Matrix(x, y, own, other, torch.tensor([scale]))


def weights_of(given: Matrix) -> list[Tensor]:
    """Derivatives of a loss by the four log-sums."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(len(side), generator=generator) for side in (given.x, given.x, given.y, given.y)]


def reference(given: Matrix, weights: list[Tensor]) -> Reference:
    x, y, scale = (tensor.double().requires_grad_() for tensor in (given.x, given.y, given.scale))
    products = x @ y.T
    s = scale * products
    s.retain_grad()
    counted = (given.x_groups >= 0)[:, None] & (given.y_groups >= 0)
    every = s.masked_fill(~counted, -torch.inf)
    positive = every.masked_fill(given.x_groups[:, None] != given.y_groups, -torch.inf)
    log_sums = every.logsumexp(1), positive.logsumexp(1), every.logsumexp(0), positive.logsumexp(0)
    terms = [torch.where(part.isfinite(), part, 0.0) @ weight.double() for part, weight in zip(log_sums, weights, strict=True)]
    torch.stack(terms).sum().backward()
    assert s.grad is not None and x.grad is not None and y.grad is not None and scale.grad is not None
    largest = max((float(weight.abs().max()) for weight in weights if len(weight)), default=0.0)
    ds = s.grad.abs() + 1e-4 * largest  # float16 has no smaller numbers than 6e-8
    sizes = scale * ds @ y.abs(), scale * ds.T @ x.abs(), (ds * products.abs()).sum()[None]
    return Reference(log_sums, (x.grad, y.grad, scale.grad), tuple(size.detach() for size in sizes))


def check(given: Matrix, launcher: Launcher = INTERPRETED) -> None:
    weights = weights_of(given)
    expected = reference(given, weights)
    # float32 knows a similarity to about scale x 1e-7, and so relatively does it a probability.
    scale = max(1.0, float(given.scale))
    log_sums = contrastive_triton.forward(*given, launcher)
    for found, whole in zip(log_sums, expected.log_sums, strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), whole.detach(), atol=1e-6 * scale, rtol=1e-6)
    gradients = contrastive_triton.backward(*given, *log_sums, *weights, launcher)
    for found, like in zip(gradients, (given.x, given.y, given.scale), strict=True):
        assert found.dtype == like.dtype and found.shape == like.shape
    rounded = 1.6 * torch.finfo(given.x.dtype).eps  # ds, its product and the gradient are rounded, by half of that at most each
    for found, whole, size, share in zip(gradients, expected.gradients, expected.sizes, (rounded, rounded, 1e-7), strict=True):
        assert bool(((found.double() - whole).abs() <= (share + 2e-6 * scale) * size + 1e-7).all())


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    rows=st.integers(0, 200),
    columns=st.integers(0, 200),
    width=st.integers(5, 200),
    scale=st.sampled_from([0.5, 14.0, 100.0, 1000.0]),
    dtype=st.sampled_from(DTYPES),
    positives=st.integers(0, 5),
    ignored=st.booleans(),
    architecture=st.sampled_from(ARCHITECTURES),
)
def test_values_and_gradients_equal_the_whole_matrix(
    rows: int, columns: int, width: int, scale: float, dtype: torch.dtype, positives: int, ignored: bool, architecture: int
) -> None:
    """`positives` is about how many a row has; with 0 of them all groups differ."""
    groups = max(1, columns // positives) if positives else 1 << 40
    check(matrix(rows, columns, width, scale, dtype, groups, ignored), Launcher(architecture))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_width_of_the_model(dtype: torch.dtype) -> None:
    check(matrix(33, 47, 768, 100.0, dtype))


@pytest.mark.parametrize(("parts", "block", "block_columns"), [(1, 1, 16), (1 << 12, 1 << 12, 48), (1 << 26, 1 << 26, 1 << 13)])
def test_many_tiles_chunks_and_blocks(monkeypatch: pytest.MonkeyPatch, parts: int, block: int, block_columns: int) -> None:
    monkeypatch.setattr(contrastive_triton, "_PARTS_BYTES", parts)
    monkeypatch.setattr(contrastive_triton, "_BLOCK_BYTES", block)
    monkeypatch.setattr(contrastive_triton, "_BLOCK_COLUMNS", block_columns)
    monkeypatch.setattr(contrastive_triton, "contrastive_launch", lambda *_: Launch(16, 32, warps=4, stages=1, depth=16))
    check(matrix(75, 101, 20))


def test_the_shares_of_blocks_add_up_to_the_gradient_of_the_whole() -> None:
    """As ranks do it: each has a block of the matrix and the log-sums of all of it."""
    given = matrix(90, 70, 12)
    weights = weights_of(given)
    log_sums = contrastive_triton.forward(*given, INTERPRETED)
    whole = contrastive_triton.backward(*given, *log_sums, *weights, INTERPRETED)
    total = [torch.zeros_like(part) for part in whole]
    for rows in (slice(0, 37), slice(37, 90)):
        for columns in (slice(0, 50), slice(50, 70)):
            places = (rows, rows, columns, columns)
            share = contrastive_triton.backward(
                *(given.x[rows], given.y[columns], given.x_groups[rows], given.y_groups[columns], given.scale),
                *(vector[place] for vector, place in zip((*log_sums, *weights), places * 2, strict=True)),
                INTERPRETED,
            )
            for part, place, added in zip(total, (rows, columns, slice(None)), share, strict=True):
                part[place] += added
    for part, expected in zip(total, whole, strict=True):
        torch.testing.assert_close(part, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_input_gives_the_same_bits(dtype: torch.dtype) -> None:
    given = matrix(150, 140, 16, dtype=dtype)
    weights = weights_of(given)
    runs = []
    for _ in range(2):
        log_sums = contrastive_triton.forward(*given, INTERPRETED)
        runs.append((*log_sums, *contrastive_triton.backward(*given, *log_sums, *weights, INTERPRETED)))
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


@pytest.mark.parametrize("scale", [0.5, 1000.0])
@pytest.mark.parametrize("side", ["rows", "columns", "both"])
def test_all_ignored_is_minus_infinity_with_gradients_of_0(scale: float, side: str) -> None:
    given = matrix(20, 30, 8, scale, ignored=False)
    if side != "columns":
        given.x_groups.fill_(-3)
    if side != "rows":
        given.y_groups.fill_(-1)
    log_sums = contrastive_triton.forward(*given, INTERPRETED)
    assert all(bool((part == -torch.inf).all()) for part in log_sums)
    gradients = contrastive_triton.backward(*given, *log_sums, *weights_of(given), INTERPRETED)
    assert all(not part.any() for part in gradients)


@pytest.mark.parametrize("loss_scale", [1e-6, 65536.0])
def test_half_precision_bears_any_scale_of_the_loss(loss_scale: float) -> None:
    """Derivatives by similarities would overflow float16 or vanish in it; the gradients themselves are in its range here."""
    given = matrix(60, 60, 16, 1000.0 if loss_scale < 1 else 1e-4, torch.float16)
    weights = [weight * loss_scale for weight in weights_of(given)]
    expected = reference(given, weights)
    log_sums = contrastive_triton.forward(*given, INTERPRETED)
    for found, whole in zip(
        contrastive_triton.backward(*given, *log_sums, *weights, INTERPRETED), expected.gradients, strict=True
    ):
        assert float((found.double() - whole).norm()) < 3e-3 * float(whole.norm())


def test_gradients_of_0_and_a_broken_vector() -> None:
    given = matrix(20, 20, 8, ignored=False)
    log_sums = contrastive_triton.forward(*given, INTERPRETED)
    zeros = [torch.zeros(20) for _ in range(4)]
    assert all(not part.any() for part in contrastive_triton.backward(*given, *log_sums, *zeros, INTERPRETED))
    given.x[3] = torch.nan
    row_all, _, column_all, _ = contrastive_triton.forward(*given, INTERPRETED)
    assert row_all.isnan().nonzero().flatten().tolist() == [3] and bool(column_all.isnan().all()), "a NaN is not hidden"
