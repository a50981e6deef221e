"""The CPU's linear layer against float64, values and gradients."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unimo_ds.kernels import linear as module
from unimo_ds.kernels.linear import linear, matrix_product

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
pytestmark = pytest.mark.usefixtures("processor")


@settings(deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(0, 40),
    inputs=st.integers(1, 40),
    outputs=st.integers(1, 40),
    dtype=st.sampled_from(list(TOLERANCE)),
    needed=st.booleans(),
    strided=st.booleans(),
)
def test_values_and_gradients(rows: int, inputs: int, outputs: int, dtype: torch.dtype, needed: bool, strided: bool) -> None:
    generator = torch.Generator().manual_seed(rows)
    x, weight, bias, scale = (
        torch.randn(*shape, generator=generator).to(dtype)
        for shape in ((rows, 2 * inputs), (outputs, inputs), (outputs,), (rows, outputs))
    )
    x = x[:, :inputs] if strided else x[:, :inputs].contiguous()
    ours = [x.requires_grad_(needed), weight.requires_grad_(), bias.requires_grad_()]
    exact = [tensor.detach().double().requires_grad_() for tensor in ours]
    found, expected = linear(*ours), F.linear(*exact)
    close = {"atol": TOLERANCE[dtype] * inputs**0.5, "rtol": TOLERANCE[dtype]}
    torch.testing.assert_close(found.double(), expected, **close)
    found.backward(scale)
    expected.backward(scale.double())
    for tensor, whole in zip(ours[not needed :], exact[not needed :], strict=True):
        assert tensor.grad is not None and tensor.grad.dtype == dtype
        torch.testing.assert_close(
            tensor.grad.double(), whole.grad, atol=TOLERANCE[dtype] * (rows + outputs + 1) ** 0.5, rtol=1e-2
        )
    assert needed or x.grad is None


@settings(deadline=None, derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.booleans(), st.booleans(), st.sampled_from(list(TOLERANCE)))
def test_products_of_any_layout(
    n: int, k: int, m: int, left_by_columns: bool, right_by_columns: bool, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(n)
    left = torch.randn(*((k, n) if left_by_columns else (n, k)), generator=generator).to(dtype)
    right = torch.randn(*((m, k) if right_by_columns else (k, m)), generator=generator).to(dtype)
    left, right = left.T if left_by_columns else left, right.T if right_by_columns else right
    torch.testing.assert_close(
        matrix_product(left, right).double(), left.double() @ right.double(), atol=3 * TOLERANCE[dtype], rtol=TOLERANCE[dtype]
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_types_are_served(dtype: torch.dtype) -> None:
    x, weight, bias = (torch.randn(3, 3, dtype=dtype, requires_grad=True) for _ in range(3))
    found = linear(x, weight, bias[0])
    found.sum().backward()
    torch.testing.assert_close(found.double(), F.linear(x.double(), weight.double(), bias[0].double()), atol=1e-2, rtol=1e-2)
    assert found.dtype == dtype and x.grad is not None and x.grad.dtype == dtype


def test_the_derivative_cannot_be_derived_again() -> None:
    """oneDNN's products have no derivative of their own: without an error the second one would be 0."""
    x, weight, bias = (torch.randn(3, 3, requires_grad=True) for _ in range(3))
    (first,) = torch.autograd.grad(linear(x, weight, bias[0]).square().sum(), x, create_graph=True)
    if module.FLOAT32_BY_ONEDNN:
        with pytest.raises(RuntimeError, match="once_differentiable"):
            first.sum().backward()
    else:
        first.sum().backward()


def test_it_compiles_whole() -> None:
    x, weight, bias = (torch.randn(4, 4, requires_grad=True) for _ in range(3))
    compiled = torch.compile(linear, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, weight, bias[0]), linear(x, weight, bias[0]))
    compiled(x, weight, bias[0]).square().sum().backward()
    found, x.grad = x.grad, None
    linear(x, weight, bias[0]).square().sum().backward()
    assert found is not None and x.grad is not None
    torch.testing.assert_close(found, x.grad)


@pytest.mark.long
def test_it_compiles_by_the_default_backend() -> None:
    x, weight, bias = (torch.randn(4, 4, requires_grad=True) for _ in range(3))
    compiled = torch.compile(linear, fullgraph=True)
    torch.testing.assert_close(compiled(x, weight, bias[0]), linear(x, weight, bias[0]))
    half = [tensor.detach().bfloat16() for tensor in (x, weight, bias[0])]
    torch.testing.assert_close(compiled(*half), linear(*half), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_leading_axes_and_what_needs_no_gradient(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*shape, generator=generator).to(dtype) for shape in ((2, 3, 4), (5, 4), (5,)))
    found = linear(x.requires_grad_(), weight, bias)
    torch.testing.assert_close(found, F.linear(x, weight, bias), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    found.sum().backward()
    assert found.shape == (2, 3, 5) and x.grad is not None and x.grad.shape == x.shape
    alone = linear(x.detach(), weight.requires_grad_(), bias)
    (gradient,) = torch.autograd.grad(alone.sum(), weight)
    assert gradient.shape == weight.shape


def test_types_that_differ_are_torchs_error_on_every_processor() -> None:
    with pytest.raises(RuntimeError, match="dtype"):
        linear(torch.randn(2, 3).bfloat16(), torch.randn(4, 3), torch.randn(4))


def test_autocast_casts_as_it_does_for_torchs_own() -> None:
    x, weight, bias = torch.randn(5, 4), torch.randn(3, 4), torch.randn(3)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = linear(x, weight, bias), F.linear(x, weight, bias)
    assert found.dtype == torch.bfloat16 and torch.equal(found, expected)


@settings(deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(0, 40) | st.integers(120, 140),
    inputs=st.integers(1, 40),
    outputs=st.integers(1, 40),
    dtype=st.sampled_from([*TOLERANCE, torch.float64]),
    strided=st.booleans(),
)
def test_values_where_no_gradient_is_wanted(rows: int, inputs: int, outputs: int, dtype: torch.dtype, strided: bool) -> None:
    """Where a few rows may come out laid out by columns, and go in again."""
    generator = torch.Generator().manual_seed(rows)
    x, weight, bias, back = (
        torch.randn(*shape, generator=generator).to(dtype)
        for shape in ((rows, 2 * inputs), (outputs, inputs), (outputs,), (inputs, outputs))
    )
    x = x[:, :inputs] if strided else x[:, :inputs].contiguous()
    with torch.no_grad():
        found = linear(x, weight, bias)
        again = linear(found, back, x.new_zeros(inputs))
    tolerance = TOLERANCE.get(dtype, 1e-12)
    close = {"atol": tolerance * inputs**0.5, "rtol": tolerance}
    torch.testing.assert_close(found.double(), F.linear(x.double(), weight.double(), bias.double()), **close)
    assert found.dtype == dtype
    close["atol"] = 4 * tolerance * outputs**0.5
    torch.testing.assert_close(again.double(), F.linear(found.double(), back.double()), **close)
