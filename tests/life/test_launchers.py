"""The same run through every launcher: deepspeed, torchrun, srun's variables, python alone; and how it stops when asked."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.life import small_run
from tests.life.launchers import LAUNCHERS, start_by
from unimo_ds.tokenizer import train_tokenizer

pytestmark = pytest.mark.life


def test_every_launcher_gives_one_curve(inputs: Path) -> None:
    """Bit for bit. The first one prepares the data; the others run at the same time."""
    configs = {launcher: str(small_run.write_config(inputs, f"by_{launcher}", steps=4)) for launcher in LAUNCHERS}
    for together in (LAUNCHERS[:1], LAUNCHERS[1:]):
        processes = [process for each in together for process in start_by(each, "unimo_ds.pretrain", configs[each])]
        outputs = small_run.finish(processes)
        assert not any(process.returncode for process in processes), "\n".join(outputs)
    curves = {launcher: small_run.losses(inputs / f"by_{launcher}") for launcher in LAUNCHERS}
    assert len(curves["python"]) == 4
    for launcher, curve in curves.items():
        assert curve == curves["python"], launcher


def test_usr1_saves_marks_the_run_for_requeue_and_the_restart_finishes_it(inputs: Path) -> None:
    config = small_run.write_config(inputs, "asked", steps=200, checkpoint_every=1000)
    folder = inputs / "asked"
    processes = small_run.start(config, 2)
    deadline = time.monotonic() + 120
    while len(small_run.metrics(folder)) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    processes[1].send_signal(signal.SIGUSR1)  # one rank alone is told; all must agree
    outputs = small_run.finish(processes)
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    assert (folder / "REQUEUE").exists() and not (folder / "DONE").exists()
    saved = int((folder / "checkpoints/latest").read_text().removeprefix("step-"))
    assert saved == len(small_run.metrics(folder)) < 200
    small_run.run(config, 2)
    assert (folder / "DONE").exists() and not (folder / "REQUEUE").exists()
    assert [line["step"] for line in small_run.metrics(folder)] == list(range(1, 201))


def test_a_signal_to_the_whole_process_group_saves_too(inputs: Path) -> None:
    """Launchers and Slurm signal loader workers with their rank."""
    config = small_run.write_config(inputs, "group", steps=300, checkpoint_every=1000)
    folder = inputs / "group"
    (process,) = small_run.start(config, 1, "data.workers=1")
    deadline = time.monotonic() + 120
    while len(small_run.metrics(folder)) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGTERM)
    (output,) = small_run.finish([process])
    assert process.returncode == 0, output
    assert (folder / "REQUEUE").exists() and (folder / "checkpoints/latest").exists()


def test_another_tokenizer_is_refused_on_resuming(inputs: Path) -> None:
    config = small_run.write_config(inputs, "words", steps=8)
    small_run.run(config, 1, "training.steps=4")
    train_tokenizer(["entirely other words stand here and there"] * 9, 400, inputs / "other_tokenizer")
    (process,) = small_run.start(config, 1, f"data.tokenizer={inputs / 'other_tokenizer'}")
    (output,) = small_run.finish([process])
    assert process.returncode == 1 and "Traceback" not in output and "step-00000004: " in output, output


def test_a_finished_run_is_left_alone(inputs: Path) -> None:
    config = small_run.write_config(inputs, "finished", steps=4)
    small_run.run(config, 1)
    before = (inputs / "finished/metrics.jsonl").read_text()
    (output,) = small_run.run(config, 1)
    assert "already" in output
    assert (inputs / "finished/metrics.jsonl").read_text() == before


def test_the_run_folder_is_a_receipt(inputs: Path) -> None:
    config = small_run.write_config(inputs, "receipt", steps=4)
    small_run.run(config, 1)
    folder = inputs / "receipt"
    from unimo_ds.config import load_config

    resolved = load_config(folder / "config.yaml")
    assert resolved.model.vocabulary_size < 1000, "the resolved configuration holds what was taken from the data"
    starts = json.loads((folder / "receipt.json").read_text())["starts"]
    assert starts[0]["packages"]["torch"] and starts[0]["data"]["pairs"]["samples"] == 48
    assert list((folder / "tensorboard").iterdir())
    line = small_run.metrics(folder)[-1]
    wanted = {"step", "samples", "loss", "lr", "grad_norm", "temperature", "positions_per_second", "data_wait"}
    wanted |= {f"loss/{name}" for name in ("mlm", "seq2seq", "mrfr", "mrc", "cmcl")}
    assert wanted <= set(line)
