"""What starts that were killed leave among the checkpoints."""

from pathlib import Path

from unimo_ds.engine.checkpoint import _publish


def test_half_saves_are_removed_and_what_was_passed_over_takes_no_place(tmp_path: Path) -> None:
    for name in ("step-00000012", "step-00000016", "step-00000020", ".saving-step-00000014", ".old-step-00000012"):
        (tmp_path / name).mkdir()
    temporary = tmp_path / ".saving-step-00000018"
    temporary.mkdir()
    # Of step 20, which is damaged, the run has gone back to step 16, and was asked to stop after step 18.
    _publish(temporary, tmp_path / "step-00000018", 18, {}, keep=2, damaged=frozenset())
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [
        "step-00000016",
        "step-00000018",
        "step-00000020",
    ]
    assert (tmp_path / "latest").read_text() == "step-00000018"
