"""Every file of `ds_configs/` on real ranks: goes on from a checkpoint of zero0, leaves a bad step out, has zero0's numbers."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from torch import Tensor

from tests.life import small_run
from tests.life.bad_picture import INFINITE, events, steps_of
from tests.life.by_file import STEPS, WORLD
from unimo_ds.engine.checkpoint_folder import checkpoint_name

pytestmark = [pytest.mark.life, pytest.mark.timeout(1800)]  # with what is compiled on a new machine
FILES = sorted(path.stem for path in (small_run.ROOT / "ds_configs").glob("*.json") if path.stem != "zero0")


def state(run: Path) -> dict[str, Tensor]:
    """Weights and moments at the end."""
    checkpoint = run / "checkpoints" / checkpoint_name(STEPS)
    return {name: tensor for path in checkpoint.glob("*.safetensors") for name, tensor in load_file(path).items()}


@pytest.mark.parametrize("file", FILES)
def test_every_file_goes_on_from_zero0_to_zero0s_numbers(by_file: Callable[[str], Path], file: str) -> None:
    ours = by_file(file)
    (event,) = events(ours)
    assert (event["step"], event["event"], event["cause"]) == (INFINITE, "left out", "its loss is nan")
    assert event["loss"] == "nan" and len(event["samples"]) == WORLD.get(file, 2)
    drawn = sorted((corpus, number) for rank in event["samples"] for corpus, number, _ in rank)
    assert drawn == small_run.samples(ours)[INFINITE]
    assert steps_of(ours) == [step for step in range(1, STEPS + 1) if step != INFINITE]
    saved = json.loads((ours / "checkpoints" / checkpoint_name(STEPS) / "state.json").read_text())
    assert (saved["step"], saved["guards"]["updates"]) == (STEPS, STEPS - 1)
    theirs = state(by_file("zero0"))
    for name, tensor in state(ours).items():
        scale = float(theirs[name].abs().max())
        np.testing.assert_allclose(tensor, theirs[name], rtol=0, atol=2e-4 * scale, err_msg=name)
    if file == "zero3_nvme":
        swapped = list((ours.parent / "nvme").rglob("*_gradient_*"))
        assert len(swapped) >= 4  # of each rank, one of each matrix that is large enough
