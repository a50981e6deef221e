"""Runs of every ZeRO stage on two ranks, exported: one model, the head that is tied to the words included, and the way back."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.life import small_run
from tests.life.test_kill_and_resume import without_dropout
from unimo_ds.conversion import import_huggingface
from unimo_ds.convert.exported.modeling_unimo import UnimoForMaskedLM
from unimo_ds.data.packing import Packer
from unimo_ds.data.sequences import Sequence
from unimo_ds.engine.checkpoint_folder import read_model_weights
from unimo_ds.export import export_huggingface
from unimo_ds.model.unimo import UnimoModel
from unimo_ds.opening import read_start
from unimo_ds.tasks.classification import joined

pytestmark = pytest.mark.life
TEXT = "A red cup is beside a blue ball."


@pytest.fixture(scope="module")
def exported(inputs: Path) -> dict[int, Path]:
    folders = {}
    for stage in range(4):
        # Without a threshold ZeRO-3 would leave parameters as small as these whole on every rank.
        settings = {"stage": stage, **({"stage3_param_persistence_threshold": 0} if stage == 3 else {})}
        (inputs / f"stage{stage}.json").write_text(json.dumps({"zero_optimization": settings}))
        run = f"exported_from_{stage}"
        config = small_run.write_config(inputs, run, steps=4, deepspeed=str(inputs / f"stage{stage}.json"))
        without_dropout(config)
        small_run.run(config, 2)
        folders[stage] = inputs / f"{run}_hf"
        export_huggingface(inputs / run, folders[stage])
    return folders


@torch.no_grad()
def words(folder: Path, ids: list[int]) -> torch.Tensor:
    model = UnimoForMaskedLM.from_pretrained(folder).eval()
    logits: torch.Tensor = model(input_ids=torch.tensor([ids])).logits[0]
    return logits


@torch.no_grad()
def test_every_stage_gives_the_same_model(inputs: Path, exported: dict[int, Path]) -> None:
    start = read_start(inputs / "exported_from_0")
    text = joined([np.array(start.tokenizer.encode([TEXT])[0])], 64)
    packer = Packer(start.model.feature_width, 10)
    packer.add(Sequence(text=text))
    unimo = UnimoModel(start.model).eval()
    unimo.load_state_dict(read_model_weights(start.checkpoint))
    assert unimo.language_head is not None
    (hidden_WD,) = unimo.encode(packer.build(), [torch.arange(len(text.ids))])
    none = torch.zeros(0, dtype=torch.int64)
    ours = unimo.language_head(hidden_WD, unimo.embedding.text.word.weight, none, want_logits=True)[1]
    assert ours is not None
    for folder in exported.values():
        found = words(folder, text.ids.tolist())
        np.testing.assert_allclose(found, ours, atol=1e-5)


@pytest.mark.parametrize("stage", range(4))
def test_the_way_back_is_exact(stage: int, inputs: Path, exported: dict[int, Path], tmp_path: Path) -> None:
    import_huggingface(exported[stage], tmp_path / "back")
    before = load_file(read_start(inputs / f"exported_from_{stage}").checkpoint / "model.safetensors")
    after = load_file(tmp_path / "back" / "model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
