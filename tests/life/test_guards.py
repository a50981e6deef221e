"""A picture of infinite features, and one of huge ones, in the middle of a run on two ranks: left out, or rolled back."""

import json
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.life import small_run
from unimo_ds.config import load_config
from unimo_ds.data.corpus import prepare_corpora
from unimo_ds.data.order import Mixture, order
from unimo_ds.data.store import RegionStore, RegionStoreWriter, finish_store

pytestmark = pytest.mark.life
STEPS, SAVED = 24, 12
INFINITE, HUGE = 7, 14  # the steps, counted from 1, that see the bad picture


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs of so many images that hardly one is seen twice."""
    folder = tmp_path_factory.mktemp("guarded")
    small_run.write_inputs(folder, images=400)
    return folder


def seen_once(folder: Path, step: int) -> str:
    """An image of a step that no other step sees."""
    config = load_config(small_run.write_config(folder, "looked_at"))
    corpora = prepare_corpora(config.data, config.data.corpora, show=False)
    mixture = Mixture(tuple(corpus.section.per_step for corpus in corpora), tuple(map(len, corpora)))
    steps = [
        [corpora[draw.corpus].image_key(draw.index) for draw in order(config.seed, mixture, number) if draw.corpus != 1]
        for number in range(STEPS)
    ]
    return next(key for key in steps[step - 1] if sum(keys.count(key) for keys in steps) == 1)


def spoil(folder: Path, step: int, value: float) -> list[str]:
    """Makes a store in which one image, of `step` alone, has features of `value`; the overrides that name it."""
    spoiled, victim = folder / f"spoiled-{step}", seen_once(folder, step)
    if not spoiled.exists():
        store = RegionStore(folder / "regions")
        with RegionStoreWriter(spoiled, small_run.DETECTOR) as writer:
            for number in range(400):
                regions = store.get(key := f"{number:04}.jpg")
                features_RF = np.full_like(regions.features_RF, value)
                writer.write(key, replace(regions, features_RF=features_RF) if key == victim else regions)
        finish_store(spoiled)
    return [f"data.corpora.{name}.regions={spoiled}" for name in ("pairs", "images")]


def guarded(folder: Path, run: str, stage: str = "cpu", **guards: Any) -> Path:
    deepspeed = str(small_run.ROOT / f"ds_configs/{stage}.json")
    training = {"steps": STEPS, "checkpoint_every": SAVED, "deepspeed": deepspeed, "guards": guards}
    return small_run.write_config(folder, run, **training)


def events(run: Path) -> list[dict[str, Any]]:
    path = run / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def weights(run: Path) -> str:
    manifest = json.loads((run / f"checkpoints/step-{STEPS:08}/MANIFEST.json").read_text())
    return str(manifest["files"]["model.safetensors"]["xxh3_128"])


def steps_of(run: Path) -> list[int]:
    return [line["step"] for line in small_run.metrics(run)]


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


@pytest.fixture(scope="module")
def whole(folder: Path) -> Iterator[dict[str, Path]]:
    """Runs with an infinite picture to the end, by ZeRO stage."""
    spoiled = spoil(folder, INFINITE, np.inf)
    for stage in ("zero0", "zero1", "zero2", "cpu"):
        small_run.run(guarded(folder, f"whole_{stage}", stage), 2, *spoiled)
    yield {stage: folder / f"whole_{stage}" for stage in ("zero0", "zero1", "zero2", "cpu")}


def test_every_zero_stage_leaves_the_step_out_on_both_ranks_and_goes_on(folder: Path, whole: dict[str, Path]) -> None:
    curves = []
    for run in whole.values():
        (event,) = events(run)
        assert (event["step"], event["event"], event["cause"]) == (INFINITE, "left out", "its loss is nan")
        assert event["loss"] == "nan" and len(event["samples"]) == 2
        drawn = sorted((corpus, number) for rank in event["samples"] for corpus, number, _ in rank)
        assert drawn == small_run.samples(run)[INFINITE]
        assert steps_of(run) == [step for step in range(1, STEPS + 1) if step != INFINITE]
        state = json.loads((run / f"checkpoints/step-{STEPS:08}/state.json").read_text())
        assert (state["step"], state["guards"]["updates"]) == (STEPS, STEPS - 1)
        curves.append([line["loss"] for line in small_run.losses(run)])
    assert np.isfinite(curves).all()
    for curve in curves[1:]:
        assert curve == pytest.approx(curves[0], abs=1e-4)


def test_a_kill_after_a_step_that_was_left_out_changes_no_bit(folder: Path, whole: dict[str, Path]) -> None:
    config, run, spoiled = guarded(folder, "killed"), folder / "killed", spoil(folder, INFINITE, np.inf)
    kill_after(config, run, SAVED + 2, *spoiled)
    small_run.run(config, 2, *spoiled)
    assert small_run.losses(run) == small_run.losses(whole["cpu"])
    assert weights(run) == weights(whole["cpu"])
    assert [event["step"] for event in events(run)] == [INFINITE]


def test_a_spike_is_rolled_back_and_its_steps_are_left_out_after_a_kill_too(folder: Path) -> None:
    spoiled = spoil(folder, HUGE, 6e4)
    guards = {"spike": "roll_back", "spike_window": 8, "spike_deviations": 1000}
    small_run.run(guarded(folder, "rolled_back", **guards), 2, *spoiled)
    whole = folder / "rolled_back"
    (event,) = events(whole)
    assert (event["step"], event["event"], event["to_step"]) == (HUGE, "rolled back", SAVED)
    state = json.loads((whole / f"checkpoints/step-{STEPS:08}/state.json").read_text())
    assert state["guards"]["updates"] == STEPS - (HUGE - SAVED)
    config, run = guarded(folder, "rolled_back_and_killed", **guards), folder / "rolled_back_and_killed"
    kill_after(config, run, HUGE + 1, *spoiled)
    small_run.run(config, 2, *spoiled)
    assert weights(run) == weights(whole)
    undone = range(SAVED + 1, HUGE + 1)
    assert small_run.losses(run) == [line for line in small_run.losses(whole) if line["step"] not in undone]


def test_too_many_in_a_row_end_the_run_with_the_steps_and_where_to_look(folder: Path) -> None:
    spoiled = spoil(folder, INFINITE, np.inf)
    (process,) = small_run.start(guarded(folder, "too_many", left_out_in_a_row=1), 1, *spoiled)
    (output,) = small_run.finish([process])
    assert process.returncode == 1 and "Traceback" not in output, output
    assert f"steps {INFINITE} to {INFINITE} were left out, which training.guards.left_out_in_a_row = 1 does not allow" in output
    assert f"`unimo-ds explain {folder / 'too_many'} --step {INFINITE}`" in output
    assert [event["step"] for event in events(folder / "too_many")] == [INFINITE]
    assert not (folder / "too_many/DONE").exists()
