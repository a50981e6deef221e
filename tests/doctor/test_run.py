"""What a rank sees of a run: every input by key, what is wrong with it, and what its disk must hold."""

import os
import re
import time
from pathlib import Path

import pytest
import yaml

from tests.life import small_run
from unimo_ds.config import load_config
from unimo_ds.data.corpus import prepare_corpora
from unimo_ds.doctor import run as doctor_run
from unimo_ds.doctor.command import Examination
from unimo_ds.doctor.run import RunDisk, configuration_of, data_of, load_any, settings_findings
from unimo_ds.planning.plan import model_size


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    small_run.write_inputs(folder)
    small_run.write_candidates(folder)
    return folder


def test_every_input_is_known_by_its_key(inputs: Path) -> None:
    run = load_config(small_run.write_config(inputs, "run", candidates=True))
    looked: list[str] = []
    known, findings = data_of(run, looked.append)
    assert not findings and looked[-1] == f"data.prepared = {inputs / 'prepared'}"
    assert {key for key, value in known.items() if value.startswith("manifest.json ")} == {
        f"data.corpora.{name}" for name in ("pairs.regions", "pairs.neighbours", "images.regions")
    }
    assert known["data.tokenizer"].startswith("2 files") and known["data.corpora.pairs.rewrites"].startswith("1 files")
    size = (inputs / "captions.json").stat().st_size
    assert known["data.corpora.pairs.path"].startswith(f"{size:,} bytes of 20")
    os.utime(inputs / "captions.json", (10**9, 10**9))  # prepared corpora know their source by its time
    later = data_of(run, looked.append)[0]
    assert {key for key in known if known[key] != later[key]} == {"data.corpora.pairs.path", "data.prepared.pairs"}


def test_corpora_are_known_by_what_they_are_prepared_as(inputs: Path) -> None:
    run = load_config(small_run.write_config(inputs, "run"))
    before = data_of(run, lambda what: None)[0]
    assert re.fullmatch(r"texts-\w{12} \(not prepared yet\)", before["data.prepared.texts"])
    prepare_corpora(run.data, run.data.corpora, show=False)
    after = data_of(run, lambda what: None)[0]
    name = before["data.prepared.texts"].split()[0]
    assert after["data.prepared.texts"].startswith(f"{name} (manifest.json ") and (inputs / "prepared" / name).exists()


def test_inputs_that_cannot_be_read(inputs: Path, tmp_path: Path) -> None:
    (tmp_path / "regions").mkdir()
    manifest = (inputs / "regions/manifest.json").read_text()
    (tmp_path / "regions/manifest.json").write_text(manifest)  # without its shard
    words = [f"data.corpora.pairs.regions={tmp_path / 'regions'}", "data.corpora.texts.path=nowhere.txt"]
    run = load_config(small_run.write_config(inputs, "run"), words)
    known, findings = data_of(run, lambda what: None)
    damaged, missing = findings
    assert f"data.corpora.pairs.regions = {tmp_path / 'regions'}: " in damaged.what and "cannot be opened" in damaged.what
    assert missing.what == "cannot be read: data.corpora.texts.path = nowhere.txt (No such file or directory)"
    assert known["data.corpora.texts.path"] == "unreadable"


def test_configurations_differ_in_any_key_of_both_files(inputs: Path, tmp_path: Path) -> None:
    path = small_run.write_config(inputs, "run")
    usual = configuration_of(load_config(path))
    other = configuration_of(load_config(path, ["training.deepspeed=ds_configs/zero1.json", "seed=2"]))
    different = {key for key in {*usual, *other} if usual.get(key) != other.get(key)}
    assert {"seed", "training.deepspeed", "deepspeed.zero_optimization.stage"} <= different
    assert usual["data.corpora.texts.per_step"] == "3"


def test_a_wrong_configuration_and_refused_settings_are_findings(inputs: Path, tmp_path: Path) -> None:
    path = small_run.write_config(inputs, "run")
    said = [finding.what for finding in Examination(path, ["training.step=3"]).facts().findings if finding.fault]
    assert len(said) == 1 and "did you mean" in said[0]
    said = [
        finding.what for finding in Examination(path, ["training.deepspeed=nowhere.json"]).facts().findings if finding.fault
    ]
    assert len(said) == 1 and "training.deepspeed = nowhere.json: cannot be read" in said[0]
    (finding,) = settings_findings(load_config(path, ["training.optimizer=apex_lamb"]))
    assert "training.optimizer = apex_lamb" in finding.what
    examination = Examination(path, ["model.layer_norm=apex"])  # the model cannot be made, and so not be counted
    assert [each.what[:24] for each in examination.facts().findings if each.fault] == ["model.layer_norm = apex:"]


def test_a_task_makes_it_fine_tuning(tmp_path: Path) -> None:
    recipe = small_run.ROOT / "recipes/tasks/sst2.yaml"
    assert "task" in yaml.safe_load(recipe.read_text())
    assert load_any(recipe, []).task.family == "sentences"  # type: ignore[union-attr]
    known, (missing,) = data_of(load_any(recipe, [f"init={tmp_path / 'none'}"]), lambda what: None)
    assert "init" in known and "task.train.path" in known and "task.train.path = " in missing.what


def test_the_disk_must_hold_what_is_kept_and_one_more(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = load_config(small_run.write_config(inputs, "run", keep_checkpoints=2))
    checkpoint = 12 * model_size(run.model, run.objectives).parameters
    disk = RunDisk(run)
    assert (disk.folder, disk.checkpoint, disk.needed) == (inputs, checkpoint, 3 * checkpoint)
    assert list(disk.findings()) == [] and disk.probe.exists()
    disk.close()
    assert not disk.probe.exists()
    disk.free = 2 * checkpoint
    (warning,) = disk.findings()
    assert not warning.fault and "training.keep_checkpoints = 2" in warning.what
    disk.free = checkpoint - 1
    (fault,) = disk.findings()
    assert fault.fault and "and a checkpoint needs" in fault.what
    disk.close()
    for step in (4, 8):
        (inputs / f"run/checkpoints/step-{step:08}").mkdir(parents=True)
    assert RunDisk(run).needed == checkpoint


def test_a_folder_that_cannot_be_written(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = RunDisk(load_config(small_run.write_config(inputs, "run")))
    monkeypatch.setattr(disk, "probe", Path("/proc/none/file"))
    (fault,) = disk.findings()
    assert fault.fault and "cannot be written: No such file" in fault.what
    disk.close()


def test_a_file_system_that_never_answers_is_named(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_run, "_identity", lambda path: time.sleep(3))
    monkeypatch.setattr("unimo_ds.doctor.command._LOOKING", 1.0)
    (stuck,) = Examination(small_run.write_config(inputs, "run"), []).facts_in_time().findings
    assert f"could not look at data.corpora.pairs.path = {inputs / 'captions.json'} within 1 s" in stuck.what
