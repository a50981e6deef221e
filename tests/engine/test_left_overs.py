"""What lies among the checkpoints and is none: what starts that were killed leave, and what other ranks have begun."""

from pathlib import Path

import torch

from unimo_ds.engine.checkpoint import _publish
from unimo_ds.engine.checkpoint_folder import Extras, facts_of, remove_old, write_content


def test_half_saves_are_removed_and_what_was_passed_over_takes_no_place(tmp_path: Path) -> None:
    for name in ("step-00000012", "step-00000016", "step-00000020", ".saving-step-00000014", ".old-step-00000012"):
        (tmp_path / name).mkdir()
    temporary = tmp_path / ".saving-step-00000018"
    temporary.mkdir()
    # Of step 20, which is damaged, the run has gone back to step 16, and was asked to stop after step 18.
    _publish(temporary, tmp_path / "step-00000018", 18, {})
    remove_old(tmp_path / "step-00000018", keep=2, damaged=frozenset())
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [
        "step-00000016",
        "step-00000018",
        "step-00000020",
    ]
    assert (tmp_path / "latest").read_text() == "step-00000018"


def test_what_other_ranks_have_begun_to_write_is_not_ours(tmp_path: Path) -> None:
    """safetensors begins a file under another name, which is gone a moment later."""
    tokenizer, folder = tmp_path / "words", tmp_path / "saving"
    for path in (tokenizer, folder):
        path.mkdir()
    for name in ("vocab.json", "merges.txt"):
        (tokenizer / name).write_text("{}")
    (folder / ".tmpFPxFES").touch()
    written = write_content(folder, {"weight": torch.zeros(2)}, Extras("seed: 1", {"step": 3}, tokenizer))
    (folder / ".tmpFPxFES").rename(folder / "optimizer-00002-of-00002.safetensors")
    facts = facts_of(folder, written)
    assert sorted(facts) == ["config.yaml", "model.safetensors", "state.json", "tokenizer/merges.txt", "tokenizer/vocab.json"]
