"""The cross-entropy kernel, in Triton's interpreter, against torch's in float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.interpreter import INTERPRETED
from unimo_ds.kernels.linear_cross_entropy_triton import losses_and_errors_
from unimo_ds.kernels.table import CROSS_ENTROPY

pytestmark = pytest.mark.long

STEP = CROSS_ENTROPY.columns


def check(logits: Tensor, bias: Tensor, labels: Tensor) -> None:
    exact = (logits.double() + bias.double()).requires_grad_()
    expected = F.cross_entropy(exact, labels, reduction="none")
    expected.sum().backward()
    losses = losses_and_errors_(logits, bias, labels, INTERPRETED)
    assert losses.dtype == torch.float32
    size = float(exact.detach().abs().max()) if exact.numel() else 0.0
    torch.testing.assert_close(losses.double(), expected.detach(), atol=1e-6 + 3e-7 * size, rtol=1e-6)
    # An error is a probability as float32 knows it, rounded to the type of the logits.
    assert exact.grad is not None
    tolerance = torch.finfo(logits.dtype).eps + 3e-7 * size
    torch.testing.assert_close(logits.double(), exact.grad, atol=1e-7, rtol=tolerance + 1e-5)


def normal(*shape: int, scale: float, dtype: torch.dtype) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape))) * scale).to(dtype)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    rows=st.integers(0, 4),
    vocabulary=st.one_of(st.integers(1, 40), st.integers(STEP - 2, 3 * STEP + 2), st.sampled_from([STEP, 2 * STEP])),
    scale=st.sampled_from([0.01, 3.0, 1000.0]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    bias_dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_losses_and_errors(rows: int, vocabulary: int, scale: float, dtype: torch.dtype, bias_dtype: torch.dtype) -> None:
    labels = torch.randint(vocabulary, (rows,), generator=torch.Generator().manual_seed(rows))
    check(normal(rows, vocabulary, scale=scale, dtype=dtype), normal(vocabulary, scale=scale, dtype=bias_dtype), labels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_vocabulary_of_roberta_with_its_first_and_last_word(dtype: torch.dtype) -> None:
    check(normal(2, 50265, scale=2.0, dtype=dtype), normal(50265, scale=1.0, dtype=dtype), torch.tensor([0, 50264]))


def test_a_label_out_of_range_gives_nan_and_reads_nothing_foreign() -> None:
    memory = torch.full((3, 16), 7.0)
    memory[:, :10] = normal(3, 10, scale=1.0, dtype=torch.float32)
    losses = losses_and_errors_(memory[:, :10], torch.zeros(10), torch.tensor([9, -100, 10]), INTERPRETED)
    assert losses.isnan().tolist() == [False, True, True]


def test_rows_that_lie_apart_and_nothing_between_them_is_touched() -> None:
    memory = torch.full((3, 48), 7.0)
    memory[:, :37] = normal(3, 37, scale=2.0, dtype=torch.float32)
    check(memory[:, :37], normal(37, scale=1.0, dtype=torch.float32), torch.tensor([36, 0, 5]))
    assert bool((memory[:, 37:] == 7.0).all())


def test_huge_logits_and_forbidden_words() -> None:
    logits = torch.tensor([[30000.0, -30000.0, -torch.inf], [5.0, 5.0, -torch.inf], [-4000.0, -4000.0, -5000.0]])
    losses = losses_and_errors_(logits, torch.zeros(3), torch.tensor([1, 0, 0]), INTERPRETED)
    assert losses.tolist() == [60000.0, pytest.approx(0.6931472), pytest.approx(0.6931472, abs=5e-4)]
    assert logits[0].tolist() == [1.0, -1.0, 0.0]
    assert logits[1].tolist() == [pytest.approx(-0.5), pytest.approx(0.5), 0.0]
    assert logits[2].tolist() == [pytest.approx(-0.5, abs=5e-4), pytest.approx(0.5, abs=5e-4), 0.0]


@pytest.mark.filterwarnings("ignore:invalid value")  # numpy's, of inf - inf
@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_broken_logit_breaks_its_own_row_and_no_other(broken: float) -> None:
    logits = normal(3, 50, scale=1.0, dtype=torch.float32)
    logits[1, 20] = broken
    losses = losses_and_errors_(logits, torch.zeros(50), torch.tensor([3, 4, 5]), INTERPRETED)
    assert losses.isnan().tolist() == [False, True, False]
    assert logits.isfinite().all(1).tolist() == [True, False, True]


def test_the_same_input_gives_the_same_bits() -> None:
    runs = [normal(3, 2000, scale=2.0, dtype=torch.bfloat16) for _ in range(2)]
    losses = [losses_and_errors_(run, torch.ones(2000), torch.tensor([0, 1, 2]), INTERPRETED) for run in runs]
    assert torch.equal(*losses) and torch.equal(*runs)


def test_logits_that_cannot_be_overwritten_in_place_are_refused() -> None:
    with pytest.raises(ValueError, match=r"strides \(1, 3\); the last must be 1"):
        losses_and_errors_(torch.zeros(5, 3).T, torch.zeros(5), torch.zeros(3).long(), INTERPRETED)
