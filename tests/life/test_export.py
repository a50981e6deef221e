"""Runs of every ZeRO stage on two ranks, exported: the same numbers, with the head tied to the words, and the way back."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

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
def exported(by_file: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folders = {stage: tmp_path_factory.mktemp("exported") / "model" for stage in range(4)}
    for stage, folder in folders.items():
        export_huggingface(by_file(f"zero{stage}"), folder)
    return folders


@torch.no_grad()
def words(folder: Path, ids: list[int]) -> torch.Tensor:
    model = UnimoForMaskedLM.from_pretrained(folder).eval()
    logits: torch.Tensor = model(input_ids=torch.tensor([ids])).logits[0]
    return logits


@pytest.mark.parametrize("stage", range(4))
@torch.no_grad()
def test_what_is_exported_is_the_model_of_every_stage(
    stage: int, by_file: Callable[[str], Path], exported: dict[int, Path]
) -> None:
    start = read_start(by_file(f"zero{stage}"))
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
    np.testing.assert_allclose(words(exported[stage], text.ids.tolist()), ours, atol=1e-5)


@pytest.mark.parametrize("stage", range(4))
def test_the_way_back_is_exact(stage: int, by_file: Callable[[str], Path], exported: dict[int, Path], tmp_path: Path) -> None:
    import_huggingface(exported[stage], tmp_path / "back")
    before = load_file(read_start(by_file(f"zero{stage}")).checkpoint / "model.safetensors")
    after = load_file(tmp_path / "back" / "model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
