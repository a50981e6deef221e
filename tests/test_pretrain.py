"""What a run takes from its data, and refuses of it."""

from pathlib import Path

import pytest

from tests.life import small_run
from unimo_ds import nvidia_apex
from unimo_ds.config import load_config
from unimo_ds.data.corpus import prepare_corpora
from unimo_ds.errors import ConfigError
from unimo_ds.pretrain import _fit_to_data, pretrain
from unimo_ds.tokenizer import Tokenizer


def test_regions_without_classes_cannot_teach_classes(tmp_path: Path) -> None:
    """Published files without a class distribution make such stores."""
    small_run.write_inputs(tmp_path, images=4, detector={**small_run.DETECTOR, "classes": 0, "kept_classes": 0})
    path = small_run.write_config(tmp_path, "run")
    config = load_config(path, ["objectives.mrc=0"])
    tokenizer, corpora = Tokenizer(config.data.tokenizer), prepare_corpora(config.data, config.data.corpora, show=False)
    fitted, detector = _fit_to_data(config, tokenizer, corpora)
    assert fitted.model.region_classes == 1 and detector["kept_classes"] == 0
    with pytest.raises(ConfigError, match=r"objectives\.mrc = 1\.0, but .*regions has no classes.*set objectives\.mrc=0"):
        _fit_to_data(load_config(path, ["objectives.mrc=1"]), tokenizer, corpora)


def test_what_cannot_run_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The inputs do not exist: whoever looked for them first would complain of them."""
    path = small_run.write_config(tmp_path, "run")
    with pytest.raises(ConfigError, match=r"model\.layer_norm = apex"):
        pretrain(load_config(path, ["model.layer_norm=apex"]))
    monkeypatch.setattr(nvidia_apex, "check", lambda *_: None)
    with pytest.raises(ConfigError, match=r"apex_lamb with ZeRO stage 3"):
        pretrain(load_config(path, ["training.optimizer=apex_lamb"]))
