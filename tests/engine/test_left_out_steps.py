"""Steps that are left out, by every ZeRO stage: nothing moves, and nothing of their gradient is left for the next step."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from unimo_ds import distributed
from unimo_ds.config import TrainingSection
from unimo_ds.engine.engine import Engine, StepResult

ROOT = Path(__file__).parents[2]
CASES = [
    ("zero0.json", "fp32", ""),
    ("zero0.json", "bf16", ""),
    ("zero1.json", "bf16", ""),
    ("zero1.json", "bf16", "fp32"),
    ("zero1.json", "fp32", ""),
    ("zero2.json", "bf16", ""),
    ("zero2.json", "fp32", ""),
    ("zero3.json", "bf16", ""),
    ("cpu.json", "fp32", ""),
]


class Fit(nn.Module):
    """Its loss stays finite where `totals` is -1, but not its gradient."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(7, 30), nn.Linear(30, 3)

    def forward(self, batch: Tensor, totals: float) -> tuple[Tensor, Tensor]:
        loss = self.second(torch.relu(self.first(batch.to(self.first.weight.dtype)))).float().square().sum()
        loss = (loss - loss.detach()).sqrt() if totals == -1 else loss * totals
        return loss, loss.detach()[None]


def train(
    file: Path, precision: str, totals: dict[int, float], accept: Callable[[float], bool] = math.isfinite
) -> tuple[list[StepResult], dict[str, dict[str, Tensor]], dict[str, dict[str, Tensor]]]:
    """Steps of two micro-batches by number; what they say, the full state before the last, and after it."""
    distributed.initialise(60)
    training = TrainingSection.model_validate({"steps": 9, "learning_rate": 0.01, "precision": precision, "deepspeed": file})
    engine = Engine(Fit, lambda m: [{"params": list(m.parameters())}], training)
    batches = torch.randn(9, 2, 5, 7, generator=torch.Generator().manual_seed(1))
    results: list[StepResult] = []
    states = []
    for step, total in totals.items():
        states.append({name: {k: v.clone() for k, v in state.items()} for name, state in engine.full_state()})
        results.append(engine.step(step, list(batches[step]), total, accept))
    states.append({name: {k: v.clone() for k, v in state.items()} for name, state in engine.full_state()})
    return results, states[-2], states[-1]


def assert_equal(ours: dict[str, dict[str, Tensor]], theirs: dict[str, dict[str, Tensor]]) -> None:
    for name, parts in theirs.items():
        for key, value in parts.items():
            assert torch.equal(ours[name][key], value), (name, key)


@pytest.mark.parametrize(("file", "precision", "sums"), CASES)
@pytest.mark.parametrize("bad", [math.nan, -1.0, 1e6], ids=["loss", "gradient", "refused"])
def test_a_step_that_is_left_out_leaves_no_trace(tmp_path: Path, file: str, precision: str, sums: str, bad: float) -> None:
    path = tmp_path / file
    content = json.loads((ROOT / "ds_configs" / file).read_text())
    path.write_text(json.dumps({**content, "data_types": {"grad_accum_dtype": sums}} if sums else content))
    calm = lambda loss: loss < 1e5  # noqa: E731
    results, before, after = train(path, precision, {0: 1.0, 1: 0.5, 2: bad}, calm)
    assert [result.updated for result in results] == [True, True, False]
    assert math.isfinite(results[-1].loss) == (not math.isnan(bad))
    assert results[-1].gradient_norm == math.inf and math.isfinite(results[0].gradient_norm)
    assert_equal(after, before)
    _, _, ours = train(path, precision, {0: 1.0, 1: 0.5, 2: bad, 3: 1.0, 4: 1.0}, calm)
    _, _, theirs = train(path, precision, {0: 1.0, 1: 0.5, 3: 1.0, 4: 1.0}, calm)  # which counts Adam's steps as well
    assert_equal(ours, theirs)
    assert any(not torch.equal(ours[name]["weight"], before[name]["weight"]) for name in before)
