"""What a run takes from its data, and refuses of it."""

from pathlib import Path

import pytest

from tests.life import small_run
from unimo_ds.config import load_config
from unimo_ds.data.corpus import prepare_corpora
from unimo_ds.errors import ConfigError
from unimo_ds.pretrain import _fit_to_data
from unimo_ds.tokenizer import Tokenizer


def test_regions_without_classes_cannot_teach_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Published files without a class distribution make such stores."""
    monkeypatch.setattr(small_run, "DETECTOR", {**small_run.DETECTOR, "classes": 0, "kept_classes": 0})
    small_run.write_inputs(tmp_path, images=4)
    path = small_run.write_config(tmp_path, "run")
    config = load_config(path, ["objectives.mrc=0"])
    tokenizer, corpora = Tokenizer(config.data.tokenizer), prepare_corpora(config.data, config.data.corpora, show=False)
    fitted, detector = _fit_to_data(config, tokenizer, corpora)
    assert fitted.model.region_classes == 1 and detector["kept_classes"] == 0
    with pytest.raises(ConfigError, match=r"objectives\.mrc = 1\.0, but .*regions has no classes.*set objectives\.mrc=0"):
        _fit_to_data(load_config(path, ["objectives.mrc=1"]), tokenizer, corpora)
