"""Which steps are left out: a median and a deviation that one outlier does not move, kept over a checkpoint."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from unimo_ds.config import GuardsSection
from unimo_ds.engine.checkpoint_folder import read_guards
from unimo_ds.engine.engine import StepResult
from unimo_ds.engine.guards import Guards


def result(loss: float, updated: bool = True) -> StepResult:
    return StepResult(torch.zeros(1), loss, 1.0 if updated else math.inf, updated)


def judged(guards: Guards, losses: list[float]) -> list[bool]:
    """Which of the losses may move weights, each judged by those before it."""
    accepted = []
    for step, loss in enumerate(losses, 1):
        accepted.append(guards.accept(loss))
        guards.judge(step, result(loss, accepted[-1]))
    return accepted


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("spike", ["none", "skip"])
def test_a_loss_that_is_not_finite_is_never_accepted(spike: str, loss: float) -> None:
    guards = Guards(GuardsSection(spike=spike, spike_window=4), {})
    assert judged(guards, [1.0, loss]) == [True, False]
    left_out = guards.judge(3, result(loss, updated=False))
    assert left_out is not None and str(loss) in left_out.cause and not left_out.spike


def test_a_gradient_that_is_not_finite_is_named_as_the_cause() -> None:
    left_out = Guards(GuardsSection(), {}).judge(1, result(2.5, updated=False))
    assert left_out is not None and left_out.cause == "its gradient is not finite, though its loss is 2.5"


def test_a_spike_is_judged_by_the_median_and_deviation_of_the_window() -> None:
    rng = np.random.default_rng(0)
    before = rng.normal(3, 0.1, 20)
    usual = np.median(before)
    bound = usual + 6 * 1.4826 * np.median(np.abs(before - usual))
    guards = Guards(GuardsSection(spike="skip", spike_window=20), {})
    assert all(judged(guards, before.tolist()))
    assert guards.accept(bound - 1e-6) and not guards.accept(bound + 1e-6) and guards.accept(-1e6)
    left_out = guards.judge(21, result(bound + 1, updated=False))
    assert left_out is not None and left_out.spike
    assert f"deviations above {usual:.4g}, the median of 20 steps before" in left_out.cause


def test_nothing_stands_out_before_the_window_is_full_or_where_nobody_asked() -> None:
    assert all(judged(Guards(GuardsSection(spike="skip", spike_window=4), {}), [1.0, 1.1, 0.9, 50.0]))
    assert all(judged(Guards(GuardsSection(), {}), [1.0, 1.1, 0.9, 1.0, 1e9]))


def test_a_falling_curve_is_no_spike_and_spikes_do_not_make_the_next_one_usual() -> None:
    guards = Guards(GuardsSection(spike="skip", spike_window=10), {})
    assert all(judged(guards, [10 * 0.9**step for step in range(40)]))
    assert judged(guards, [9.0] * 4) == [False] * 4


def test_the_count_is_of_steps_in_a_row() -> None:
    guards = Guards(GuardsSection(left_out_in_a_row=3), {})
    for step, updated in enumerate([False, False, True, False, False], 1):
        guards.judge(step, result(1.0, updated))
        assert not guards.exhausted
    guards.judge(6, result(math.nan, updated=False))
    assert guards.exhausted and guards.in_a_row == [4, 5, 6]


def test_a_state_that_went_through_a_checkpoint_judges_alike() -> None:
    section = GuardsSection(spike="skip", spike_window=6)
    losses = [3.0, 3.2, 2.9, 3.1, 3.0, 3.05, 3.4, 9.0, 3.3, 3.6]
    whole, first = Guards(section, {}), Guards(section, {})
    judged(first, losses[:7])
    second = Guards(section, json.loads(json.dumps(first.state)))
    assert judged(whole, losses)[7:] == judged(second, losses[7:]) == [False, True, True]
    assert whole.state == second.state and whole.state["updates"] == 9


def test_a_checkpoint_without_guards_has_made_an_update_in_each_step(tmp_path: Path) -> None:
    state = {"step": 7, "model": {}, "detector": {}}
    (tmp_path / "state.json").write_text(json.dumps(state))
    assert Guards(GuardsSection(), read_guards(tmp_path)).state["updates"] == 7
    (tmp_path / "state.json").write_text(json.dumps({**state, "guards": {"updates": 5}}))
    assert Guards(GuardsSection(), read_guards(tmp_path)).state["updates"] == 5
