"""One file is the whole detector; a wrong file is named."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.vision.conftest import picture
from unimo_ds.errors import CheckpointError
from unimo_ds.vision.detector_file import load_detector, save_detector
from unimo_ds.vision.faster_rcnn import BottomUpDetector


def test_a_saved_detector_is_the_same_detector(tiny: BottomUpDetector, tmp_path: Path) -> None:
    tiny.facts = {"ap50": 0.5}
    path = tmp_path / "deep" / "tiny.safetensors"
    save_detector(tiny.with_selection(max_boxes=9), path)
    loaded = load_detector(path)
    assert loaded.identity() == tiny.identity() and not loaded.training
    assert (loaded.class_names, loaded.attribute_names, loaded.facts) == (("square", "disc"), ("red", "blue"), {"ap50": 0.5})
    image = picture(5)[0]
    one, other = tiny.detect([image])[0], loaded.detect([image])[0]
    np.testing.assert_array_equal(one.boxes_R4, other.boxes_R4)
    np.testing.assert_array_equal(one.features_RF, other.features_RF)


def test_a_missing_foreign_or_damaged_file_is_named(tiny: BottomUpDetector, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere.*world"):
        load_detector("nowhere")
    foreign = tmp_path / "foreign.safetensors"
    save_file({"a": torch.zeros(1)}, foreign)
    with pytest.raises(CheckpointError, match=r"foreign.*neither a detector"):
        load_detector(foreign)
    path = tmp_path / "tiny.safetensors"
    save_detector(tiny, path)
    content = bytearray(path.read_bytes())
    path.write_bytes(content[:-100])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_detector(path)
    content[-3] ^= 0x10
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        load_detector(path)
