"""Kill -9 at a random moment, start again: the curve goes on as if nothing had happened, on as many ranks or on others."""

import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.life import small_run

pytestmark = pytest.mark.life
STEPS = 40
SEED = 2
"""Of the runs without dropout, which are compared to rounding. At a seed where a pooled number lies within rounding of zero,
its ReLU has a gradient on one side and none on the other, and the curves part by that: no fault, but nothing to compare."""


def kill_at_a_random_moment(config: Path, folder: Path, world: int, seed: int) -> None:
    """Kills one rank with -9 somewhere after the first checkpoint; the other ranks must end by themselves."""
    rng = random.Random(seed)
    wanted, delay = rng.randint(5, 30), rng.random() * 0.1
    processes = small_run.start(config, world)
    deadline = time.monotonic() + 180
    while len(small_run.metrics(folder)) < wanted and time.monotonic() < deadline:
        time.sleep(0.02)
        assert all(process.poll() is None for process in processes), "\n".join(small_run.finish(processes))
    time.sleep(delay)
    processes[-1].send_signal(signal.SIGKILL)
    for process in processes:
        try:
            process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            pytest.fail("a rank outlived the killed one by a minute")
    assert not (folder / "DONE").exists()


def without_dropout(config: Path) -> None:
    text = config.read_text().replace("size: tiny", "size: tiny\n  dropout: 0.0\n  attention_dropout: 0.0")
    config.write_text(f"seed: {SEED}\n{text}")


def assert_every_sample_once(folder: Path) -> None:
    """Each corpus's draws 0, 1, 2 .. stand in the log exactly once, in the step they belong to."""
    steps = small_run.samples(folder)
    assert list(steps) == list(range(1, STEPS + 1))
    per_step = {0: 6, 1: 3, 2: 3}
    for step, drawn in steps.items():
        expected = [(corpus, (step - 1) * count + n) for corpus, count in per_step.items() for n in range(count)]
        assert drawn == expected


@pytest.fixture(scope="module")
def uninterrupted(inputs: Path) -> dict[str, Path]:
    """One run with dropout and one without, to the end, on two ranks."""
    folders = {}
    for name in ("with_dropout", "without_dropout"):
        config = small_run.write_config(inputs, f"whole_{name}", candidates=True, steps=STEPS)
        if name == "without_dropout":
            without_dropout(config)
        small_run.run(config, 2)
        folders[name] = inputs / f"whole_{name}"
    return folders


def test_the_same_number_of_ranks_gives_the_same_curve_bit_for_bit(inputs: Path, uninterrupted: dict[str, Path]) -> None:
    config = small_run.write_config(inputs, "killed_2_2", candidates=True, steps=STEPS)
    kill_at_a_random_moment(config, inputs / "killed_2_2", 2, seed=1)
    small_run.run(config, 2)
    assert small_run.losses(inputs / "killed_2_2") == small_run.losses(uninterrupted["with_dropout"])
    assert_every_sample_once(inputs / "killed_2_2")


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_another_number_of_ranks_gives_the_same_curve(
    inputs: Path, uninterrupted: dict[str, Path], before: int, after: int
) -> None:
    name = f"killed_{before}_{after}"
    config = small_run.write_config(inputs, name, candidates=True, steps=STEPS)
    without_dropout(config)
    kill_at_a_random_moment(config, inputs / name, before, seed=10 * before + after)
    small_run.run(config, after)
    resumed, whole = small_run.losses(inputs / name), small_run.losses(uninterrupted["without_dropout"])
    assert len(resumed) == len(whole) == STEPS
    for ours, theirs in zip(resumed, whole, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)
    assert_every_sample_once(inputs / name)


def test_another_zero_stage_gives_the_same_curve(inputs: Path, uninterrupted: dict[str, Path]) -> None:
    config = small_run.write_config(
        inputs, "stage", candidates=True, steps=STEPS, deepspeed=str(small_run.ROOT / "ds_configs/zero1.json")
    )
    without_dropout(config)
    kill_at_a_random_moment(config, inputs / "stage", 1, seed=3)
    small_run.run(config, 1, f"training.deepspeed={small_run.ROOT / 'ds_configs/zero3.json'}")
    for ours, theirs in zip(
        small_run.losses(inputs / "stage"), small_run.losses(uninterrupted["without_dropout"]), strict=True
    ):
        assert ours == pytest.approx(theirs, abs=1e-4)
