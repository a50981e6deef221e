"""The demo of the tasks: its commands, and what one answer to everything is worth."""

from pathlib import Path

import pytest

from tests.tasks.small_task import write_inputs
from unimo_ds.config import load_finetune_config
from unimo_ds.demo import tasks
from unimo_ds.demo.life import ROOT
from unimo_ds.errors import UnimoError


def test_every_task_runs_from_both_starts_with_every_seed() -> None:
    stages = list(tasks._stages())
    assert len(stages) == 12 and len({stage.done for stage in stages}) == 12
    for stage in stages:
        recipe = next(word for word in stage.command if word.endswith(".yaml"))
        config = load_finetune_config(ROOT / recipe, stage.command[stage.command.index(recipe) + 1 :])
        assert stage.done == config.folder / "DONE" and config.random_weights == ("random" in str(config.folder))


def test_it_wants_the_demo_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnimoError, match="run `make demo` first"):
        tasks.run_task_demo()


def test_one_answer_to_everything(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path)
    half = load_finetune_config(inputs.config("half", inputs.entailment()))
    assert tasks.commonest(half) == 0.5, "true and false take turns"
    quarter = load_finetune_config(inputs.config("quarter", inputs.vqa()))
    assert 0.1 < tasks.commonest(quarter) < 0.6
    captions = load_finetune_config(inputs.config("captions", inputs.captioning()))
    assert 0 < tasks.commonest(captions) < 10
