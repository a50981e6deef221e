"""Snapshots of code and configuration: what is in one, and that it is not changed."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.life import small_run
from unimo_ds.config import load_config
from unimo_ds.errors import ConfigError
from unimo_ds.snapshot import main, take_snapshot


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return small_run.write_config(tmp_path, "run", steps=5)


@pytest.mark.long
def test_a_snapshot_holds_what_the_run_needs(config: Path, tmp_path: Path) -> None:
    taken = take_snapshot("pretrain", "job-1", config, ["training.steps=7"])
    assert taken == tmp_path / "run/snapshots/job-1"
    kept = load_config(taken / "config.yaml")
    assert kept.training.steps == 7 and kept.training.deepspeed == taken / "deepspeed.json"
    assert (taken / "deepspeed.json").read_bytes() == (small_run.ROOT / "ds_configs/cpu.json").read_bytes()
    assert "vocabulary_size" not in (taken / "config.yaml").read_text()  # it is taken from the data
    assert (taken / "code/slurm/common.sh").exists() and not list(taken.rglob("__pycache__"))
    variables = small_run.environment() | {"PYTHONPATH": str(taken / "code")}
    for words, said in (
        (["-c", "import unimo_ds; print(unimo_ds.__file__)"], str(taken / "code/unimo_ds/__init__.py")),
        ([str(taken / "code/start.py"), "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        ([str(taken / "code/doctor.py"), "--help"], "usage: python -m unimo_ds.doctor"),
    ):
        ran = subprocess.run([sys.executable, *words], cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=120)
        assert said in ran.stdout + ran.stderr


def test_edits_do_not_reach_it(config: Path) -> None:
    taken = take_snapshot("pretrain", "job-1", config, [])
    content = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump({**content, "seed": 99}))
    assert take_snapshot("pretrain", "job-1", config, []) == taken and load_config(taken / "config.yaml").seed == 1
    assert take_snapshot("pretrain", "job-2", taken / "config.yaml", []) == taken
    with pytest.raises(ConfigError, match="is of a snapshot, which is not changed"):
        take_snapshot("pretrain", "job-2", taken / "config.yaml", ["seed=3"])


def test_the_command_says_what_is_wrong(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "job-1", str(config), "training.step=3"]) == 1
    assert "did you mean" in capsys.readouterr().err
    assert main(["train", "job-1", str(config)]) == 2
    assert "usage" in capsys.readouterr().err
    assert not (config.parent / "run/snapshots").exists()
