"""The demo of the tasks: its commands, and what one answer to everything is worth."""

from pathlib import Path

import pytest

from tests.tasks.small_task import write_inputs
from unimo_ds.config import load_finetune_config
from unimo_ds.demo import tasks
from unimo_ds.demo.life import ROOT
from unimo_ds.errors import UnimoError


def test_every_task_runs_from_both_starts_with_every_seed() -> None:
    runs = list(tasks._runs())
    assert len(runs) == 24 and len({run.folder for run in runs}) == 24
    families = set()
    for run in runs:
        recipe, *overrides = run.words
        config = load_finetune_config(ROOT / recipe, overrides)
        assert config.folder == run.folder and config.seed == run.seed and config.random_weights == (run.start == "random")
        families.add(config.task.family)
    assert families == {"retrieval", "vqa", "entailment", "captioning", "sentences", "writing"}


def test_it_wants_the_demo_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnimoError, match="run `make demo` first"):
        tasks.run_task_demo()


def test_one_answer_to_everything(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path)
    half = load_finetune_config(inputs.config("half", inputs.entailment()))
    assert tasks.blind(half)["accuracy"] == 0.5, "true and false take turns"
    quarter = load_finetune_config(inputs.config("quarter", inputs.vqa()))
    assert 0.1 < tasks.blind(quarter)["accuracy"] < 0.6
    captions = load_finetune_config(inputs.config("captions", inputs.captioning()))
    assert 0 < tasks.blind(captions)["cider_d"] < 10
    numbers = load_finetune_config(inputs.config("numbers", inputs.similarity()))
    assert tasks.blind(numbers) == {"correlation": 0.0}
    pictures = load_finetune_config(inputs.config("pictures", inputs.retrieval()))
    assert tasks.blind(pictures)["mean_r1"] == 0.25, "one caption for each of four pictures"
