"""The whole model and all objectives on the Triton kernels, in the interpreter, against the CPU implementations."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from tests.helpers import TINY, random_batch
from tests.kernels.interpreter import INTERPRETED
from unimo_ds.config import ObjectivesSection
from unimo_ds.kernels import attention, contrastive, launch_triton, linear_cross_entropy, linear_cross_entropy_triton
from unimo_ds.model.unimo import UnimoModel
from unimo_ds.objectives.pretraining import PretrainingModel, Totals

pytestmark = pytest.mark.long

MODEL = TINY.model_copy(update={"hidden_size": 64, "heads": 2})  # heads of 32, a width that the kernels have
OPS = (attention._forward, attention._backward, contrastive.statistics_op, contrastive.statistics_backward_op)


@contextmanager
def cuda_implementations() -> Iterator[list[str]]:
    """The ops run what is registered for CUDA; gives the names of the kernels that were started."""
    started: list[str] = []

    class Noting(type(INTERPRETED)):  # type: ignore[misc]
        def __call__(self, kernel, grid, *args, launch, **constants):  # type: ignore[no-untyped-def]
            started.append(kernel.__name__)
            super().__call__(kernel, grid, *args, launch=launch, **constants)

    launcher = Noting(INTERPRETED.architecture)

    def losses_and_errors_(logits_CV: Tensor, bias_V: Tensor, labels_C: Tensor) -> Tensor:
        return linear_cross_entropy_triton.losses_and_errors_(logits_CV, bias_V, labels_C, launcher)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch_triton, "launcher_for", lambda device: launcher)
        patch.setattr(linear_cross_entropy, "_losses_and_errors_", losses_and_errors_)
        for op in OPS:
            patch.setitem(op._backend_fns, "cpu", op._backend_fns["cuda"])
        yield started


def loss_and_gradients() -> tuple[Tensor, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = PretrainingModel(UnimoModel(MODEL), ObjectivesSection())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        model.unimo.temperature.value.fill_(0.2)
    batch = random_batch(4, pairs=2, texts=1, images=1, candidates=True)
    loss, measured = model(batch, Totals(*map(float, batch.counts().tensor().tolist())))
    loss.backward()
    return measured.detach(), {
        name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None
    }


def test_losses_and_every_gradient_are_those_of_the_cpu() -> None:
    expected, expected_gradients = loss_and_gradients()
    with cuda_implementations() as started:
        found, gradients = loss_and_gradients()
    assert {"_forward", "_d_query", "_d_key_value", "_gradient", "_losses_and_errors"} == set(started)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        scale = float(expected_gradients[name].abs().max()) + 1e-3
        torch.testing.assert_close(
            gradient, expected_gradients[name], atol=1e-4 * scale, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )
