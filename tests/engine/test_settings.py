"""The learning rate as a pure function of the step, and DeepSpeed's configuration, without starting DeepSpeed."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unimo_ds.config import TrainingSection
from unimo_ds.engine.engine import deepspeed_config, learning_rate
from unimo_ds.errors import ConfigError

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "ds_configs").glob("*.json"))
REFUSED = [
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "bf16",
    "zero_allow_untested_optimizer",
    "steps_per_print",
    "train_batch_size",
    "optimizer",
    "scheduler",
]


def section(**values: Any) -> TrainingSection:
    return TrainingSection.model_validate({"steps": 10, **values})


def test_known_values() -> None:
    training = section(steps=10, warmup_steps=4, learning_rate=8.0)
    found = [learning_rate(training, step) for step in range(11)]
    assert found == pytest.approx([2, 4, 6, 8, 8, 8 * 5 / 6, 8 * 4 / 6, 4, 8 * 2 / 6, 8 / 6, 0])


def test_without_warm_up_the_first_step_has_the_whole_rate() -> None:
    assert learning_rate(section(steps=4, learning_rate=1.0), 0) == 1.0
    assert learning_rate(section(steps=4, learning_rate=1.0), 3) == pytest.approx(0.25)


def test_a_rate_that_falls_in_steps_keeps_its_warm_up() -> None:
    training = section(steps=10, warmup_steps=2, learning_rate=8.0, tenth_after=[5, 8])
    found = [learning_rate(training, step) for step in range(10)]
    assert found == pytest.approx([4, 8, 8, 8, 8, 0.8, 0.8, 0.8, 0.08, 0.08])


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.integers(1, 300), st.integers(0, 400))
def test_the_rate_is_never_0_in_the_run_rises_then_falls_and_never_exceeds_its_peak(steps: int, warmup: int) -> None:
    training = section(steps=steps, warmup_steps=warmup, learning_rate=0.5)
    rates = [learning_rate(training, step) for step in range(steps)]
    assert all(0 < rate <= 0.5 for rate in rates)
    rising = min(warmup, steps)
    assert rates[:rising] == sorted(rates[:rising]) and rates[rising:] == sorted(rates[rising:], reverse=True)
    if warmup < steps:
        assert rates[-1] == pytest.approx(0.5 / (steps - warmup)) and learning_rate(training, steps) == 0.0


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_file_is_completed_by_the_run(path: Path, precision: str) -> None:
    folder = "/scratch/run"
    found = deepspeed_config(section(deepspeed=path, precision=precision, gradient_clipping=0.7, offload_folder=folder))
    plain = json.loads(path.read_text())
    if path.stem == "zero3_nvme":
        plain["zero_optimization"]["offload_optimizer"]["nvme_path"] = folder
    assert found["zero_optimization"] == plain["zero_optimization"]
    assert found["bf16"] == {"enabled": precision == "bf16"}
    assert found["gradient_clipping"] == 0.7
    assert found["train_micro_batch_size_per_gpu"] == found["gradient_accumulation_steps"] == 1
    assert set(plain) | set(REFUSED[:6]) == set(found)


def test_the_files_cover_every_stage() -> None:
    stages = {path.stem: json.loads(path.read_text())["zero_optimization"]["stage"] for path in FILES}
    assert {name: stages.pop(name) for name in ("zero0", "zero1", "zero2", "zero3")} == {f"zero{n}": n for n in range(4)}
    assert stages == dict.fromkeys(("cpu", "zero3_nvme", "zero3_offload", "zeropp"), 3)


def test_nvme_wants_the_folder_of_the_run_and_no_other(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"zero3_nvme\.json: .*offload_optimizer.device = nvme needs training.offload_folder"):
        deepspeed_config(section(deepspeed="ds_configs/zero3_nvme.json"))
    path = tmp_path / "mine.json"
    offload = {"device": "nvme", "nvme_path": "/scratch"}
    path.write_text(json.dumps({"zero_optimization": {"stage": 3, "offload_param": offload}}))
    with pytest.raises(ConfigError, match=r"mine\.json: zero_optimization.offload_param.nvme_path belongs to the run"):
        deepspeed_config(section(deepspeed=path, offload_folder=tmp_path))


def test_a_file_beside_the_package_is_found_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert deepspeed_config(section(deepspeed="ds_configs/zero2.json"))["zero_optimization"]["stage"] == 2


def test_a_file_in_the_working_folder_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ds_configs").mkdir()
    (tmp_path / "ds_configs/zero2.json").write_text('{"zero_optimization": {"stage": 1}}')
    assert deepspeed_config(section(deepspeed="ds_configs/zero2.json"))["zero_optimization"]["stage"] == 1


@pytest.mark.parametrize("key", REFUSED)
def test_a_key_of_the_run_is_refused_by_name(tmp_path: Path, key: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 0}, key: {}}))
    with pytest.raises(ConfigError, match=rf"mine\.json: {key} belongs to the run's configuration"):
        deepspeed_config(section(deepspeed=path))


def test_other_keys_of_deepspeed_pass(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{"wall_clock_breakdown": true}')
    assert deepspeed_config(section(deepspeed=path))["wall_clock_breakdown"] is True


@pytest.mark.parametrize("content", [b"{", b"", b"{'stage': 0}", b"\xff\xfe{}", b"[]", b"3", b'"zero"'])
def test_a_file_that_is_no_json_object_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"mine\.json: is not"):
        deepspeed_config(section(deepspeed=path))


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"nowhere/none\.json: cannot be read: No such file"):
        deepspeed_config(section(deepspeed="nowhere/none.json"))
