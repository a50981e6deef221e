"""The contrastive ops as torch's own: opcheck, fake CUDA tensors, compile, checkpointing, autocast; blocks, edges, dtypes."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from tests.kernels.test_contrastive import cut, reference
from unimo_ds.kernels import contrastive
from unimo_ds.kernels.contrastive import contrastive_statistics, log_sums_by_row, statistics_backward_op, statistics_op

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def inputs(rows: int, columns: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Any, ...]:
    """Vectors, groups with 0 to several positives and ignored entries, and a scale; leaves require gradients."""
    generator = torch.Generator().manual_seed(seed)
    x, y = (F.normalize(torch.randn(n, 6, generator=generator), dim=1).to(dtype) for n in (rows, columns))
    groups = [torch.randint(-1, 4, (n,), generator=generator) for n in (rows, columns)]
    scale = torch.tensor([5.0], dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    return x.requires_grad_(), y.requires_grad_(), *groups, scale.requires_grad_()


def loss_of(statistics: tuple[Tensor, ...]) -> Tensor:
    """Something of all four, with another weight for each entry; entries without a sum are left out."""
    total = statistics[0].new_zeros(())
    for number, part in enumerate(statistics):
        weights = torch.linspace(-1, 2 + number, len(part), dtype=part.dtype, device=part.device)
        total = total + (torch.where(part.isfinite(), part, 0.0) * weights).sum()
    return total


def values_and_gradients(function: Any, given: tuple[Any, ...]) -> list[Tensor]:
    statistics = function(*given)
    leaves = [tensor for tensor in given if tensor.requires_grad]
    return [*statistics, *torch.autograd.grad(loss_of(statistics), leaves)]


def exact(given: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(part.detach().double().requires_grad_() if part.is_floating_point() else part for part in given)


@pytest.mark.parametrize(("rows", "columns"), [(5, 7), (3, 0), (0, 0)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck_of_both_ops(dtype: torch.dtype, rows: int, columns: int) -> None:
    given = inputs(rows, columns, dtype)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    if dtype != torch.float32:
        tests = tests[:3]  # the last compiles, whatever the dtype
    torch.library.opcheck(statistics_op, given, test_utils=tests)
    sums = [part.detach() for part in statistics_op(*given)]
    gradients = [torch.randn_like(part) for part in sums]
    backward_given = [part.detach() for part in (*given, *sums, *gradients)]
    torch.library.opcheck(statistics_backward_op, tuple(backward_given), test_utils=tests)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fake_cuda_tensors_go_through_both_ops(dtype: torch.dtype) -> None:
    with FakeTensorMode():
        x, y = (torch.empty(n, 6, dtype=dtype, device="cuda", requires_grad=True) for n in (5, 7))
        groups = [torch.empty(n, dtype=torch.int64, device="cuda") for n in (5, 7)]
        scale = torch.empty(1, device="cuda", requires_grad=True)
        statistics = contrastive_statistics(x, y, groups[0], groups[1], scale)
        assert [(part.shape, part.dtype, part.device.type) for part in statistics] == [
            ((length,), torch.float32, "cuda") for length in (5, 5, 7, 7)
        ]
        assert all(part.requires_grad for part in statistics)
        # The engine of autograd itself wants a real device.
        gradients = statistics_backward_op(x, y, groups[0], groups[1], scale, *statistics, *statistics)
        for gradient, leaf in zip(gradients, (x, y, scale), strict=True):
            assert (gradient.shape, gradient.dtype, gradient.device) == (leaf.shape, leaf.dtype, leaf.device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_and_checkpointed_are_the_same_numbers(dtype: torch.dtype) -> None:
    given = inputs(6, 9, dtype)
    plain = values_and_gradients(contrastive_statistics, given)
    compiled = torch.compile(contrastive_statistics, fullgraph=True, backend="aot_eager")
    again = lambda *tensors: checkpoint(contrastive_statistics, *tensors, use_reentrant=False)  # noqa: E731
    for function in (compiled, again):
        for part, whole in zip(values_and_gradients(function, given), plain, strict=True):
            assert torch.equal(part, whole)


def test_autocast_casts_to_float32_and_gradients_back() -> None:
    given = inputs(6, 9, torch.bfloat16)
    wide = tuple(part.detach().float().requires_grad_() if part.is_floating_point() else part for part in given)
    with torch.autocast("cpu", torch.bfloat16):
        found = values_and_gradients(contrastive_statistics, given)
    expected = values_and_gradients(contrastive_statistics, wide)
    assert [part.dtype for part in found[4:]] == [torch.bfloat16, torch.bfloat16, torch.float32]
    for part, whole in zip(found, expected, strict=True):
        assert torch.equal(part, whole.to(part.dtype))


@pytest.mark.usefixtures("processor")
@settings(deadline=None, derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 12), st.integers(0, 12), st.sampled_from(DTYPES), st.sampled_from([6, 30, 1 << 20]), st.integers(0, 99))
def test_ignored_entries_are_in_no_sum_and_have_no_gradient(
    rows: int, columns: int, dtype: torch.dtype, chunk: int, seed: int
) -> None:
    given = inputs(rows, columns, dtype, seed)
    with pytest.MonkeyPatch.context() as patch:
        cut(patch, chunk)
        found = values_and_gradients(contrastive_statistics, given)
    expected = values_and_gradients(reference, exact(given)) if rows and columns else found
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 6e-2}[dtype]
    for part, whole in zip(found[:4], expected[:4], strict=True):
        torch.testing.assert_close(part.double(), whole.double(), atol=tolerance, rtol=tolerance)
    for part, whole in zip(found[4:], expected[4:], strict=True):
        whole = whole.nan_to_num(0.0)  # the reference makes NaN of rows that are wholly -inf
        assert float((part.double() - whole).norm()) <= 4 * tolerance * (1 + float(whole.norm()))
    for (sums, positive), gradient, groups in zip((found[:2], found[2:4]), found[4:6], given[2:4], strict=True):
        ignored = groups < 0
        assert (sums[ignored] == -torch.inf).all() and (positive[ignored] == -torch.inf).all()
        assert not gradient[ignored].any()


@pytest.mark.usefixtures("processor")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_columns_far_below_the_rows_they_cross_are_summed_by_themselves(dtype: torch.dtype) -> None:
    """A column whose similarities are 600 less than the largest of their rows: exp(-600) is 0 in float32."""
    x = torch.tensor([[1.0, 0.0], [1.0, 0.125], [1.0, 0.25]], dtype=dtype)
    y = torch.tensor([[1.0, 0.5], [-1.0, 0.0], [-1.0, 0.25], [1.0, 0.25]], dtype=dtype)
    given = x.requires_grad_(), y.requires_grad_(), torch.arange(3), torch.tensor([0, 1, 2, 2]), torch.tensor([300.0])
    given[4].requires_grad_()
    found = values_and_gradients(contrastive_statistics, given)
    expected = values_and_gradients(reference, exact(given))
    assert (found[2][1] < found[0].min() - 550).all()
    for part, whole in zip(found, expected, strict=True):
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(part.double(), whole, atol=tolerance * float(whole.detach().abs().max()), rtol=tolerance)


def test_gradients_of_blocks_with_the_whole_matrix_sums_are_those_of_the_whole() -> None:
    """What the ways across ranks rest on."""
    given = inputs(7, 10)
    statistics = [part.detach() for part in contrastive_statistics(*given)]
    gradients = [torch.randn(len(part), generator=torch.Generator().manual_seed(1)) for part in statistics]
    x, y, x_groups, y_groups, scale = (part.detach() for part in given)
    dx, dy, dscale = statistics_backward_op(x, y, x_groups, y_groups, scale, *statistics, *gradients)
    sums = [torch.zeros_like(part) for part in (dx, dy, dscale)]
    for rows in (slice(0, 3), slice(3, 7)):
        for columns in (slice(0, 6), slice(6, 6), slice(6, 10)):
            places = (rows, rows, columns, columns)
            of_block = [part[place] for parts in (statistics, gradients) for part, place in zip(parts, places, strict=True)]
            block = statistics_backward_op(x[rows], y[columns], x_groups[rows], y_groups[columns], scale, *of_block)
            sums[0][rows] += block[0]
            sums[1][columns] += block[1]
            sums[2] += block[2]
    for part, whole in zip(sums, (dx, dy, dscale), strict=True):
        torch.testing.assert_close(part, whole, atol=1e-5, rtol=1e-5)


def test_candidates_of_single_rows_join_outside() -> None:
    """Hard negatives of a row: the joined sums and all gradients are those of the dense form."""
    given = inputs(5, 6)
    generator = torch.Generator().manual_seed(2)
    extra_J, rows_J = torch.randn(7, generator=generator, requires_grad=True), torch.tensor([4, 0, 0, 2, 4, 4, 0])
    ours, (exact_J,) = (
        torch.logaddexp(contrastive_statistics(*given)[0], log_sums_by_row(extra_J, rows_J, 5)),
        exact((extra_J,)),
    )
    wide = exact(given)
    similarity = wide[4] * wide[0] @ wide[1].T
    dense = similarity.masked_fill((wide[2][:, None] < 0) | (wide[3][None] < 0), -torch.inf)
    spread = torch.full((5, 7), -torch.inf, dtype=torch.float64).index_put((rows_J, torch.arange(7)), exact_J)
    theirs = torch.cat([dense, spread], dim=1).logsumexp(1)
    kept = theirs.isfinite()
    assert kept.any() and torch.equal(kept, ours.isfinite())
    torch.testing.assert_close(ours.double(), theirs, atol=1e-5, rtol=1e-5)
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0, 1.5])
    found = torch.autograd.grad((ours * weights)[kept].sum(), [given[0], given[1], given[4], extra_J])
    expected = torch.autograd.grad((theirs * weights)[kept].sum(), [wide[0], wide[1], wide[4], exact_J])
    for part, whole in zip(found, expected, strict=True):
        torch.testing.assert_close(part.double(), whole.nan_to_num(0.0), atol=1e-5, rtol=1e-5)


def test_a_sum_in_bf16_keeps_what_rounding_takes() -> None:
    """A thousand terms of which each alone is below a rounding of the sum."""
    generator = torch.Generator().manual_seed(3)
    terms = torch.rand(1000, 4, 3, generator=generator)
    running, plain = contrastive._RunningSum(torch.empty(4, 3, dtype=torch.bfloat16)), torch.zeros(4, 3, dtype=torch.bfloat16)
    for term in terms:
        running.add(slice(0, 4), term.clone())
        plain += term.bfloat16()
    whole = terms.double().sum(0)
    assert ((running.total_ND.double() - whole).abs() <= whole * 2**-8).all()
    assert ((plain.double() - whole).abs() > whole * 0.1).all()


def test_tensors_that_do_not_fit_are_named() -> None:
    x, y, x_groups, y_groups, scale = inputs(3, 4)
    with pytest.raises(ValueError, match=r"float32 and torch.float64.*bf16, fp16, fp32"):
        contrastive_statistics(x, y.double(), x_groups, y_groups, scale)
    with pytest.raises(ValueError, match=r"\(3, 6\), \(4, 5\).*\[N, D\], \[M, D\]"):
        contrastive_statistics(x, y[:, :5], x_groups, y_groups, scale)
    with pytest.raises(ValueError, match=r"\[N\], \[M\]"):
        contrastive_statistics(x, y, y_groups, y_groups, scale)
    with pytest.raises(ValueError, match=r"scale of shape \(3,\): wants int64, int64, \[1\]"):
        contrastive_statistics(x, y, x_groups, y_groups, scale.expand(3))
    with pytest.raises(ValueError, match=r"groups of torch\.float32 and torch\.int64"):
        contrastive_statistics(x, y, x_groups.float(), y_groups, scale)
    with pytest.raises(ValueError, match=r"are on cpu, meta: wants one device"):
        contrastive_statistics(x, y.to("meta"), x_groups, y_groups, scale)
    with FakeTensorMode(), torch.device("cuda"), pytest.raises(ValueError, match="float64"):
        groups = torch.empty(3, dtype=torch.int64)
        x = torch.empty(3, 6, dtype=torch.float64)
        contrastive_statistics(x, x, groups, groups, torch.empty(1, dtype=torch.float64))
