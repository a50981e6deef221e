"""The fused head's ops as torch's own: opcheck, fake CUDA tensors, compile, checkpointing, autocast, what is kept."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from unimo_ds.kernels import linear_cross_entropy as module
from unimo_ds.kernels.linear_cross_entropy import (
    linear_cross_entropy,
    linear_cross_entropy_backward_op,
    linear_cross_entropy_op,
)


def inputs(targets: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (
        torch.randn(*shape, generator=generator).to(dtype).requires_grad_() for shape in ((targets, 8), (30, 8), (30,))
    )
    return hidden, weight, bias, torch.randint(30, (targets,), generator=generator)


def values_and_gradients(function: Any, given: tuple[Tensor, ...]) -> list[Tensor]:
    losses = function(*given)
    weights = torch.linspace(-1, 2, len(losses))
    return [losses, *torch.autograd.grad((losses * weights).sum(), given[:3])]


@pytest.mark.parametrize(("targets", "chunk"), [(4, 1 << 25), (4, 60), (0, 1 << 25)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck_of_both_ops(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, targets: int, chunk: int) -> None:
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", chunk)
    given = inputs(targets, dtype)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    if dtype != torch.float32:
        tests = tests[:3]  # the last compiles, whatever the dtype
    torch.library.opcheck(linear_cross_entropy_op, given, test_utils=tests)
    losses, errors = linear_cross_entropy_op(*given)
    backward_given = tuple(part.detach() for part in (torch.ones_like(losses), *given, errors))
    torch.library.opcheck(linear_cross_entropy_backward_op, backward_given, test_utils=tests)


@pytest.mark.parametrize("chunk", [1 << 25, 60])
def test_fake_cuda_tensors_go_through_both_ops(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", chunk)
    with FakeTensorMode():
        shapes = ((4, 8), (30, 8), (30,))
        leaves = [torch.empty(*shape, dtype=torch.bfloat16, device="cuda", requires_grad=True) for shape in shapes]
        labels = torch.empty(4, dtype=torch.int64, device="cuda")
        losses, errors = linear_cross_entropy_op(*leaves, labels)
        assert errors.shape == (4 if chunk > 60 else 0, 64), "rows of errors are padded on a GPU"
        assert (losses.shape, losses.dtype, losses.device.type) == ((4,), torch.float32, "cuda")
        gradients = linear_cross_entropy_backward_op(losses, *leaves, labels, errors)  # autograd's engine wants a real device
        for gradient, leaf in zip(gradients, leaves, strict=True):
            assert (gradient.shape, gradient.dtype, gradient.device) == (leaf.shape, leaf.dtype, leaf.device)


@pytest.mark.parametrize("chunk", [1 << 25, 60])
def test_compiled_and_checkpointed_are_the_same_numbers(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", chunk)
    torch._dynamo.reset()
    given = inputs(7)
    plain = values_and_gradients(linear_cross_entropy, given)
    compiled = torch.compile(linear_cross_entropy, fullgraph=True, backend="aot_eager")
    again = lambda *tensors: checkpoint(linear_cross_entropy, *tensors, use_reentrant=False)  # noqa: E731
    for function in (compiled, again):
        for part, whole in zip(values_and_gradients(function, given), plain, strict=True):
            assert torch.equal(part, whole)


def test_autocast_casts_to_bf16_and_gradients_back() -> None:
    given = inputs(7)
    narrow = (*(part.detach().bfloat16().requires_grad_() for part in given[:3]), given[3])
    with torch.autocast("cpu", torch.bfloat16):
        found = values_and_gradients(linear_cross_entropy, given)
    expected = values_and_gradients(linear_cross_entropy, narrow)
    assert [part.dtype for part in found] == [torch.float32] * 4
    for part, whole in zip(found, expected, strict=True):
        assert torch.equal(part, whole.float())


def test_errors_of_one_chunk_are_kept_and_have_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, bias, labels = inputs(5)
    losses, errors = linear_cross_entropy_op(hidden, weight, bias, labels)
    expected = F.linear(hidden, weight, bias).softmax(1) - F.one_hot(labels, 30)
    torch.testing.assert_close(errors, expected.detach())
    assert losses.requires_grad and not errors.requires_grad
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", 149)  # one number less than a chunk of all targets has
    assert linear_cross_entropy_op(hidden, weight, bias, labels)[1].shape == (0, 30)
