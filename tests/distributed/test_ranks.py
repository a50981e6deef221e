"""Two ranks equal one rank: losses and parameter gradients, for every ZeRO stage, and whatever each rank holds."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.joining import join
from tests.distributed.ranks_worker import build, steps, totals_of, training
from tests.life.small_run import run_ranks
from unimo_ds.engine.engine import learning_rate
from unimo_ds.model.unimo import parameter_groups
from unimo_ds.objectives.pretraining import NAMES

pytestmark = pytest.mark.life
CASES = ("mixed", "split")  # several micro-batches with CMCL on; rank 0 only text and rank 1 only images


@pytest.fixture(scope="module")
def one_rank() -> dict[str, tuple[list[float], dict[str, torch.Tensor]]]:
    """Losses and gradients of plain PyTorch on the joined batches."""
    expected = {}
    for name, micro_batches in steps(world=2).items():
        model, totals, losses = build(), totals_of(micro_batches), torch.zeros(len(NAMES))
        for ranks in micro_batches:
            loss, measured = model(join(ranks), totals)
            loss.backward()
            losses += measured[: len(NAMES)]
        gradients = {key: parameter.grad for key, parameter in model.named_parameters() if parameter.grad is not None}
        expected[name] = (losses.tolist(), gradients)
    return expected


@pytest.fixture(scope="module")
def one_rank_updates() -> tuple[float, dict[str, torch.Tensor]]:
    """The last gradient norm and the weights after the worker's four updates, by plain PyTorch on the joined batches."""
    section, model = training(0), build()
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.01), betas=section.betas, eps=section.epsilon)
    for number, name in enumerate(("mixed", "split", "mixed", "split")):
        micro_batches = steps(world=2)[name]
        optimizer.zero_grad()
        for ranks in micro_batches:
            model(join(ranks), totals_of(micro_batches))[0].backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), section.gradient_clipping)
        assert norm > section.gradient_clipping, "clipping must take part in the comparison"
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(section, number)
        optimizer.step()
    return float(norm), {name: parameter.detach() for name, parameter in model.named_parameters()}


def run_two_ranks(folder: Path, stage: int, precision: str, checkpointing: bool) -> dict[str, Any]:
    out = folder / "result.json"
    run_ranks("tests.distributed.ranks_worker", 2, str(stage), precision, str(int(checkpointing)), str(out))
    result: dict[str, Any] = json.loads(out.read_text())
    return result


@pytest.mark.parametrize(("stage", "checkpointing"), [(0, False), (1, False), (2, False), (3, False), (3, True)])
def test_losses_gradients_and_updates_equal_those_of_one_rank(
    tmp_path: Path,
    one_rank: dict[str, tuple[list[float], dict[str, torch.Tensor]]],
    one_rank_updates: tuple[float, dict[str, torch.Tensor]],
    stage: int,
    checkpointing: bool,
) -> None:
    result = run_two_ranks(tmp_path, stage, "fp32", checkpointing)
    for case in CASES:
        losses, gradients = one_rank[case]
        assert result[case]["losses"] == pytest.approx(losses, abs=1e-5)
        assert set(result[case]["gradients"]) == set(gradients)
        for name, gradient in gradients.items():
            found = torch.tensor(result[case]["gradients"][name]).view_as(gradient)
            assert torch.allclose(found, gradient, atol=1e-5, rtol=1e-5), f"{case}: {name}"
    norm, weights = one_rank_updates
    assert result["norm"] == pytest.approx(norm, rel=1e-3)
    start = dict(build().named_parameters())
    for name, weight in weights.items():
        moved, found = weight - start[name].detach(), torch.tensor(result["weights"][name]).view_as(weight)
        # Adam makes a whole step of a gradient that is all rounding, so single numbers may differ.
        assert (found - weight).norm() <= 0.02 * moved.norm() + 1e-6, name
    assert result["resumed_equal"], "an engine restored from full tensors must go on exactly as the one that gave them"


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_bf16_state_is_restored_exactly(tmp_path: Path, stage: int) -> None:
    assert run_two_ranks(tmp_path, stage, "bf16", False)["resumed_equal"]
