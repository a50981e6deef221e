"""A picture of infinite features, and one of huge ones, in the middle of a run on two ranks: left out, or rolled back."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.life import small_run
from tests.life.bad_picture import HUGE, INFINITE, STEPS, events, spoil, steps_of

pytestmark = pytest.mark.life
SAVED = 12


def guarded(folder: Path, run: str, **guards: Any) -> Path:
    return small_run.write_config(folder, run, steps=STEPS, checkpoint_every=SAVED, guards=guards)


def weights(run: Path) -> str:
    manifest = json.loads((run / f"checkpoints/step-{STEPS:08}/MANIFEST.json").read_text())
    return str(manifest["files"]["model.safetensors"]["xxh3_128"])


def kill_after(config: Path, run: Path, step: int, *overrides: str) -> None:
    """Kills both ranks as soon as the log has `step`; what is after it in the log is not yet saved."""
    processes = small_run.start(config, 2, *overrides)
    deadline = time.monotonic() + 120
    while step not in steps_of(run) and time.monotonic() < deadline:
        time.sleep(0.01)
    for process in processes:
        process.send_signal(signal.SIGKILL)
    outputs = small_run.finish(processes)
    assert step in steps_of(run), "\n".join(outputs)
    assert (run / "checkpoints/latest").exists(), "\n".join(outputs)
    assert (run / "checkpoints/latest").read_text() == f"step-{SAVED:08}"


def test_a_kill_after_a_step_that_was_left_out_changes_no_bit(many_images: Path) -> None:
    spoiled = spoil(many_images, INFINITE, np.inf)
    small_run.run(guarded(many_images, "whole"), 2, *spoiled)
    config, whole, run = guarded(many_images, "killed"), many_images / "whole", many_images / "killed"
    kill_after(config, run, SAVED + 2, *spoiled)
    small_run.run(config, 2, *spoiled)
    assert small_run.losses(run) == small_run.losses(whole)
    assert weights(run) == weights(whole)
    assert [event["step"] for event in events(run)] == [event["step"] for event in events(whole)] == [INFINITE]


def test_a_spike_is_rolled_back_and_its_steps_are_left_out_after_a_kill_too(many_images: Path) -> None:
    spoiled = spoil(many_images, HUGE, 6e4)
    guards = {"spike": "roll_back", "spike_window": 8, "spike_deviations": 1000}
    small_run.run(guarded(many_images, "rolled_back", **guards), 2, *spoiled)
    whole = many_images / "rolled_back"
    (event,) = events(whole)
    assert (event["step"], event["event"], event["to_step"]) == (HUGE, "rolled back", SAVED)
    state = json.loads((whole / f"checkpoints/step-{STEPS:08}/state.json").read_text())
    assert state["guards"]["updates"] == STEPS - (HUGE - SAVED)
    config, run = guarded(many_images, "rolled_back_and_killed", **guards), many_images / "rolled_back_and_killed"
    kill_after(config, run, HUGE + 1, *spoiled)
    small_run.run(config, 2, *spoiled)
    assert weights(run) == weights(whole)
    undone = range(SAVED + 1, HUGE + 1)
    assert small_run.losses(run) == [line for line in small_run.losses(whole) if line["step"] not in undone]


def test_too_many_in_a_row_end_the_run_with_the_steps_and_where_to_look(many_images: Path) -> None:
    spoiled = spoil(many_images, INFINITE, np.inf)
    (process,) = small_run.start(guarded(many_images, "too_many", left_out_in_a_row=1), 1, *spoiled)
    (output,) = small_run.finish([process])
    assert process.returncode == 1 and "Traceback" not in output, output
    assert f"steps {INFINITE} to {INFINITE} were left out, which training.guards.left_out_in_a_row = 1 does not allow" in output
    assert f"`unimo-ds explain {many_images / 'too_many'} --step {INFINITE}`" in output
    assert [event["step"] for event in events(many_images / "too_many")] == [INFINITE]
    assert not (many_images / "too_many/DONE").exists()
