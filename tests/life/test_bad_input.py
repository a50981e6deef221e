"""Bad input to a run: the message says what, where and what to do, and nothing else is lost."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import random_regions
from tests.life import small_run
from unimo_ds.data.store import RegionStoreWriter, finish_store

pytestmark = pytest.mark.life


def call(config: Path, *overrides: str, shell_prefix: list[str] | None = None) -> tuple[int, str]:
    words = [*(shell_prefix or []), sys.executable, "-m", "unimo_ds.pretrain", str(config), *overrides]
    done = subprocess.run(
        words, env=small_run.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=200
    )
    return done.returncode, done.stdout


def test_an_unknown_key_is_refused_with_a_suggestion(inputs: Path) -> None:
    config = small_run.write_config(inputs, "typo", steps=4)
    code, output = call(config, "training.warmup_step=10")
    assert code == 1 and "Traceback" not in output
    assert "unknown key training.warmup_step = 10; did you mean 'warmup_steps'?" in output
    assert not (inputs / "typo").exists()


def test_a_broken_line_17_costs_one_record(inputs: Path) -> None:
    lines = [json.dumps({"text": f"a cup and {number} balls", "image": f"{number % 24:04}.jpg"}) for number in range(40)]
    lines[16] = '{"text": "a cup and'
    path = inputs / "captions.jsonl"
    path.write_text("\n".join(lines))
    config = small_run.write_config(inputs, "line_17", steps=4)
    code, output = call(config, f"data.corpora.pairs.path={path}", "data.corpora.pairs.format=json_lines")
    assert code == 0, output
    assert f"{path}:17: " in output and "1 records left out, 39 used" in output
    assert (inputs / "line_17/DONE").exists()


def test_one_flipped_byte_in_the_store_costs_one_image(inputs: Path) -> None:
    store = inputs / "flipped"
    shutil.copytree(inputs / "regions", store)
    rng = np.random.default_rng(0)
    victim = random_regions(rng, int(rng.integers(5, 12))).features_RF.tobytes()[:64]  # of the first image written
    small_run.flip_a_byte(store / "shard-00000/data.mdb", victim)
    config = small_run.write_config(inputs, "flip", steps=16)
    paths = [f"data.corpora.{name}.regions={store}" for name in ("pairs", "images")]
    code, output = call(config, *paths)
    assert code == 0, output
    assert f"{store}: image '0000.jpg'" in output and "checksum" in output and "Remove the shard's folder" in output
    assert "0001.jpg" not in output
    assert len(small_run.metrics(inputs / "flip")) == 16


def test_a_store_of_another_detector_is_refused(inputs: Path) -> None:
    config = small_run.write_config(inputs, "other_detector", steps=8)
    small_run.run(config, 1, "training.steps=4")
    rng = np.random.default_rng(1)
    with RegionStoreWriter(inputs / "other", {**small_run.DETECTOR, "weights_sha256": "1" * 64}) as writer:
        for number in range(24):
            writer.write(f"{number:04}.jpg", random_regions(rng, 6))
    finish_store(inputs / "other")
    before = sorted(path.name for path in (inputs / "other_detector/checkpoints").iterdir())
    code, output = call(
        config, f"data.corpora.pairs.regions={inputs / 'other'}", f"data.corpora.images.regions={inputs / 'other'}"
    )
    assert code == 1 and "Traceback" not in output
    assert f"{inputs / 'other'}: made by another detector" in output and "step-00000004" in output
    assert sorted(path.name for path in (inputs / "other_detector/checkpoints").iterdir()) == before
    mixed, output = call(config, f"data.corpora.pairs.regions={inputs / 'other'}")
    assert mixed == 1 and "weights_sha256" in output, "two detectors in one mixture are refused too"


def test_a_truncated_checkpoint_is_passed_over_for_the_one_before(inputs: Path) -> None:
    config = small_run.write_config(inputs, "truncated", steps=12)
    small_run.run(config, 1)
    whole = small_run.losses(inputs / "truncated")
    (inputs / "truncated/DONE").unlink()
    newest = inputs / "truncated/checkpoints/step-00000012/model.safetensors"
    size = newest.stat().st_size
    with newest.open("r+b") as file:
        file.truncate(size // 2)
    code, output = call(config)
    assert code == 0, output
    assert f"model.safetensors has {size // 2:,} bytes, {size:,} were written" in output and "resumed at step 8" in output
    assert small_run.losses(inputs / "truncated") == whole


def test_when_all_checkpoints_are_damaged_nothing_is_started_anew(inputs: Path) -> None:
    config = small_run.write_config(inputs, "all_damaged", steps=8)
    small_run.run(config, 1, "training.steps=4")
    before = (inputs / "all_damaged/metrics.jsonl").read_text()
    (inputs / "all_damaged/checkpoints/step-00000004/MANIFEST.json").write_text("{")
    code, output = call(config)
    assert code == 1 and "no whole checkpoint" in output and "MANIFEST.json cannot be read" in output
    assert (inputs / "all_damaged/metrics.jsonl").read_text() == before


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(inputs: Path, tmp_path: Path) -> None:
    """A real full disk: checkpoints go to a memory file system that holds two of them, in a mount namespace of its own."""
    config = small_run.write_config(inputs, "full_disk", steps=16)
    checkpoints = inputs / "full_disk/checkpoints"
    checkpoints.mkdir(parents=True)
    script = (
        f'mount -t tmpfs -o size=1700k tmpfs {checkpoints} && "$@"; code=$?; cp -r {checkpoints} {tmp_path}/kept; exit $code'
    )
    code, output = call(config, "training.keep_checkpoints=9", shell_prefix=["unshare", "-rm", "sh", "-c", script, "sh"])
    assert code == 0, output
    assert "CHECKPOINT NOT SAVED at step 12" in output and "No space left on device" in output
    assert "newest whole checkpoint is still step-00000008" in output
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["latest", "step-00000004", "step-00000008"]
    assert len(small_run.metrics(inputs / "full_disk")) == 16
