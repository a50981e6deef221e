"""A byte of a checkpoint changes on the disk while the run goes on."""

import time
from pathlib import Path

import pytest

from tests.life import small_run
from tests.life.bad_picture import events
from unimo_ds.engine.checkpoint_folder import damage_of

pytestmark = pytest.mark.life
STEPS, EVERY, KEEP = 400, 100, 3


def test_damage_is_told_and_the_run_keeps_as_many_whole_checkpoints_as_it_should(inputs: Path) -> None:
    config = small_run.write_config(inputs, "damaged", steps=STEPS, checkpoint_every=EVERY, keep_checkpoints=KEEP)
    folder = inputs / "damaged"
    processes = small_run.start(config, 1)
    latest, deadline = folder / "checkpoints/latest", time.monotonic() + 120
    while not (latest.exists() and latest.read_text() == f"step-{2 * EVERY:08}"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    damaged = folder / f"checkpoints/step-{2 * EVERY:08}"
    with (damaged / "model.safetensors").open("r+b") as file:  # in its place: the check may be reading
        place = file.seek(0, 2) // 2
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))
    (output,) = small_run.finish(processes)
    assert (folder / "DONE").exists(), output
    damage = "model.safetensors does not match its checksum"
    assert output.count(f"WARNING: checkpoint damaged: {damaged}: {damage}") == 1
    (event,) = events(folder)
    assert (event["event"], event["step"], event["damage"]) == ("checkpoint damaged", 2 * EVERY, damage)
    whole = [path.name for path in sorted((folder / "checkpoints").glob("step-*")) if damage_of(path) is None]
    assert whole == [f"step-{step * EVERY:08}" for step in (1, 3, 4)] and len(whole) == KEEP
