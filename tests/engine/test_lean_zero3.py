"""The lightened ZeRO-3 update against DeepSpeed's own, on one rank; `tests/distributed` has two."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unimo_ds import distributed
from unimo_ds.config import TrainingSection
from unimo_ds.engine import engine as module
from unimo_ds.engine.engine import Engine

ROOT = Path(__file__).parents[2]
STEPS = 4


class Fit(nn.Module):
    """Parameters of several sizes, one of them of no even size; the gradient is large at first, and small in the end."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(7, 300), nn.Linear(300, 3)

    def forward(self, batch: Tensor, totals: float) -> tuple[Tensor, Tensor]:
        loss = self.second(torch.relu(self.first(batch.to(self.first.weight.dtype)))).float().square().sum() * totals
        return loss, loss.detach()[None]


def updates(path: Path, precision: str, totals: list[float]) -> tuple[list[float], dict[str, dict[str, Tensor]]]:
    """The gradient norms of steps of two micro-batches, and the full state after them."""
    distributed.initialise(60)
    training = TrainingSection.model_validate(
        {"steps": 9, "learning_rate": 0.01, "precision": precision, "gradient_clipping": 1.0, "deepspeed": path}
    )
    groups = lambda m: [  # noqa: E731
        {"params": [p for p in m.parameters() if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in m.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    engine = Engine(Fit, groups, training)
    batches = torch.randn(STEPS, 2, 5, 7, generator=torch.Generator().manual_seed(1))
    norms = [engine.step(step, list(batches[step]), total).gradient_norm for step, total in enumerate(totals)]
    return norms, {name: {key: value.clone() for key, value in state.items()} for name, state in engine.full_state()}


@pytest.fixture(params=["cpu.json", "zero3.json"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The DeepSpeed file, and cut into sub-groups, which have an update each."""
    content: dict[str, Any] = json.loads((ROOT / "ds_configs" / request.param).read_text())
    content["zero_optimization"]["sub_group_size"] = 1000
    written = tmp_path / request.param
    written.write_text(json.dumps(content))
    return written


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_norms_and_updates_equal_deepspeeds_own(monkeypatch: pytest.MonkeyPatch, path: Path, precision: str) -> None:
    totals = [1.0, 1e-4, 50.0, 1e-4]  # the gradient is clipped, then it is not
    norms, state = updates(path, precision, totals)
    monkeypatch.setattr(module, "lighten", lambda optimizer: None)
    expected_norms, expected = updates(path, precision, totals)
    assert norms == pytest.approx(expected_norms, rel=1e-5)
    assert min(norms) < 1 < max(norms)
    for name, parts in expected.items():
        for key, value in parts.items():
            torch.testing.assert_close(state[name][key], value, atol=1e-6, rtol=1e-5, msg=f"{name} {key}")


def test_a_step_whose_gradient_is_not_finite_changes_nothing(path: Path) -> None:
    norms, state = updates(path, "bf16", [1.0, float("nan")])
    _, before = updates(path, "bf16", [1.0])
    assert norms[0] > 0
    for name, parts in before.items():
        for key, value in parts.items():
            assert torch.equal(state[name][key], value), (name, key)


def test_every_replaced_method_is_deepspeeds(path: Path) -> None:
    """A new DeepSpeed that names them otherwise would train as before, but slower, and nobody would see it."""
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3 as Stage3

    distributed.initialise(60)
    training = TrainingSection.model_validate({"steps": 1, "precision": "bf16", "deepspeed": path})
    optimizer = Engine(Fit, lambda m: [{"params": list(m.parameters())}], training)._engine.optimizer
    replaced = {name for name in vars(optimizer) if callable(getattr(Stage3, name, None))}
    assert {name.removeprefix("_DeepSpeedZeroOptimizer_Stage3") for name in replaced} >= {
        "_get_norm_groups",
        "_prepare_fp32_grad_for_sub_group",
        "unscale_and_clip_grads",
        "__avg_scatter_grads",
    }


def test_a_deepspeed_that_lacks_what_is_read_keeps_its_own_update(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    from unimo_ds.engine import lean_zero3

    expected_norms, expected = updates(path, "fp32", [1.0, 50.0])
    monkeypatch.setattr(lean_zero3, "_READ", (*lean_zero3._READ, "what no version has"))
    norms, state = updates(path, "fp32", [1.0, 50.0])
    assert norms == pytest.approx(expected_norms, rel=1e-5)
    for name, parts in expected.items():
        torch.testing.assert_close(state[name]["weight"], parts["weight"], atol=1e-6, rtol=1e-5)


def test_a_huge_gradient_is_clipped_and_not_skipped(path: Path) -> None:
    (norm,), state = updates(path, "fp32", [1e21])
    _, before = updates(path, "fp32", [0.0])
    assert 1e19 < norm < float("inf")
    assert any(not torch.equal(state[name]["weight"], parts["weight"]) for name, parts in before.items())


@pytest.mark.parametrize("frozen", ["first.weight", "second.bias"])
def test_a_parameter_that_is_frozen_after_the_start_does_not_disturb_the_others(
    monkeypatch: pytest.MonkeyPatch, path: Path, frozen: str
) -> None:
    def run() -> tuple[list[float], dict[str, Tensor]]:
        distributed.initialise(60)
        training = TrainingSection.model_validate({"steps": 9, "learning_rate": 0.01, "precision": "fp32", "deepspeed": path})
        engine = Engine(Fit, lambda m: [{"params": list(m.parameters())}], training)
        dict(engine.module.named_parameters())[frozen].requires_grad_(False)
        batches = torch.randn(3, 2, 5, 7, generator=torch.Generator().manual_seed(1))
        norms = [engine.step(step, list(batches[step]), 1.0).gradient_norm for step in range(3)]
        moving = [(name, parameter) for name, parameter in engine.module.named_parameters() if name != frozen]
        return norms, {name: engine._read(parameter, None).clone() for name, parameter in moving}

    norms, weights = run()
    monkeypatch.setattr(module, "lighten", lambda optimizer: None)
    expected_norms, expected = run()
    assert norms == pytest.approx(expected_norms, rel=1e-5)
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, atol=1e-6, rtol=1e-5, msg=name)
