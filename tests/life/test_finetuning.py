"""Fine-tuning on two ZeRO-3 ranks: as on one rank, through a kill, and with what is wrong said once."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.life import small_run
from tests.tasks.small_task import Inputs, write_inputs

pytestmark = pytest.mark.life
MODULE = "unimo_ds.finetune"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return write_inputs(tmp_path_factory.mktemp("finetuning"))


def logged(folder: Path, key: str) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if key in line]


def adversarial(task: dict[str, Any], **settings: Any) -> dict[str, Any]:
    return {**task, "adversarial": {"rounds": 2, "learning_rate": 0.1, "largest_norm": 0.01, **settings}}


@pytest.mark.parametrize(
    ("family", "score"),
    [
        ("sentences", "accuracy"),
        ("entailment", "accuracy"),
        ("vqa", "accuracy"),
        ("retrieval", "mean_r1"),
        ("captioning", "cider_d"),
        ("writing", "rouge_l"),
        ("dialogue", "f1"),
    ],
)
def test_two_ranks_train_and_score_as_one(inputs: Inputs, family: str, score: str) -> None:
    folders = []
    for world in (1, 2):
        config = inputs.config(f"{family}_{world}", getattr(inputs, family)(), epochs=3)
        small_run.run(config, world, module=MODULE)
        folders.append(inputs.folder / f"{family}_{world}")
    # Sums round differently, and an answer on the edge may fall to the other side: one of twenty, of a score up to 1 or 10.
    one_answer = (10 if score == "cider_d" else 1) / 20
    for key, allowed in (("loss", 2e-4), ("grad_norm", 2e-4), (f"eval/dev_{score}", 1.01 * one_answer)):
        one, two = (logged(folder, key) for folder in folders)
        assert len(one) >= 3 and two == pytest.approx(one, rel=2e-4, abs=allowed), key


@pytest.mark.parametrize("family", ["entailment", "captioning"])
def test_two_ranks_perturb_as_one(inputs: Inputs, family: str) -> None:
    """From a start that draws nothing; afterwards gradients move the perturbations, and their norms shorten some of them."""
    folders = []
    for world in (1, 2):
        name = f"adversarial_{family}_{world}"
        task = adversarial(getattr(inputs, family)(), initial_magnitude=0.0)
        small_run.run(inputs.config(name, task, epochs=2, learning_rate=1e-3), world, module=MODULE)
        folders.append(inputs.folder / name)
    for key in ("loss", "grad_norm"):
        one, two = (logged(folder, key) for folder in folders)
        assert len(one) >= 3 and two == pytest.approx(one, rel=2e-4, abs=2e-4), key


@pytest.mark.parametrize("family", ["vqa", "adversarial_entailment"])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(inputs: Inputs, family: str) -> None:
    task = inputs.vqa() if family == "vqa" else adversarial(inputs.entailment())
    whole = inputs.config(f"whole_{family}", task, epochs=6)
    small_run.run(whole, 2, module=MODULE)
    config, folder = (
        inputs.config(f"killed_{family}", task, epochs=6, checkpoints_per_epoch=2),
        inputs.folder / f"killed_{family}",
    )
    processes = small_run.start(config, 2, module=MODULE)
    deadline = time.monotonic() + 120
    while len(small_run.metrics(folder)) < 9 and time.monotonic() < deadline:
        time.sleep(0.02)
    processes[1].send_signal(signal.SIGKILL)
    small_run.finish(processes, timeout=60)
    assert not (folder / "DONE").exists()
    small_run.run(config, 2, module=MODULE)
    expected = inputs.folder / f"whole_{family}"
    assert logged(folder, "loss") == logged(expected, "loss")
    assert logged(folder, "eval/dev_accuracy")[-1] == logged(expected, "eval/dev_accuracy")[-1]


def test_what_is_wrong_is_said_once(inputs: Inputs) -> None:
    config = inputs.config("wrong", {**inputs.vqa(), "answer_count": 999})
    processes = small_run.start(config, 2, module=MODULE)
    outputs = small_run.finish(processes)
    assert [process.returncode for process in processes] == [1, 1]
    assert sum(output.count("error: task.answer_count = 999") for output in outputs) == 1
