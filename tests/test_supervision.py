"""Which failures have a launcher started again: judged by launchers that leave what a run would leave."""

import sys
from pathlib import Path

import pytest

from unimo_ds.errors import ConfigError
from unimo_ds.supervision import supervise

BEGIN = """
import json, os, sys
from pathlib import Path
folder = Path(sys.argv[1]); (folder / "checkpoints").mkdir(parents=True, exist_ok=True); (folder / "ranks").mkdir(exist_ok=True)
tries = folder / "tries"; number = int(tries.read_text()) + 1 if tries.exists() else 1; tries.write_text(str(number))
def begin(): (folder / "receipt.json").write_text(json.dumps({"starts": [{}] * number}))
def save(): (folder / "checkpoints/latest").write_text(f"step-{number:08}")
"""


def tries(folder: Path, script: str, max_restarts: int = 5) -> tuple[int, int]:
    """The exit code, and how often the launcher was started."""
    code = supervise(folder, [sys.executable, "-c", BEGIN + script, str(folder)], max_restarts)
    return code, int((folder / "tries").read_text())


def test_a_run_that_ends_is_left_alone(tmp_path: Path) -> None:
    assert tries(tmp_path, 'begin(); (folder / "DONE").touch(); sys.exit(134)') == (0, 1)  # aborted in its teardown


def test_the_end_of_a_shorter_run_is_not_the_end_of_this_one(tmp_path: Path) -> None:
    (tmp_path / "DONE").touch()
    assert tries(tmp_path, "sys.exit(1)") == (1, 1)


def test_it_goes_on_as_long_as_checkpoints_are_added(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script = 'begin(); save(); (folder / "ranks/failure.txt").write_text("rank 1 is lost"); '
    script += 'number == 4 and (folder / "DONE").touch(); sys.exit(7)'
    assert tries(tmp_path, script) == (0, 4)
    assert "restart 3 of 5, from step-00000003: exit code 7, rank 1 is lost" in capfd.readouterr().out


def test_not_more_often_than_allowed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert tries(tmp_path, "begin(); save(); sys.exit(7)", max_restarts=2) == (7, 3)
    assert "not started again (--max-restarts 2): exit code 7" in capfd.readouterr().out


def test_twice_without_a_new_checkpoint_is_enough(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert tries(tmp_path, "begin(); sys.exit(1)") == (1, 2)
    assert "not started again (twice in a row no checkpoint was added)" in capfd.readouterr().out


def test_a_wrong_configuration_is_not_tried_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert tries(tmp_path, "sys.exit(1)") == (1, 1)
    assert "not started again (training had not begun): exit code 1" in capfd.readouterr().out


def test_nor_is_missing_data_that_only_one_of_the_ranks_speaks_of(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    failure = "after step 0, a rank has ended: rank 0 (gpu01, pid 7) ended with DataError: nowhere.json: cannot be read"
    script = f'(folder / "ranks/failure.txt").write_text("{failure} (here: ..)"); sys.exit(143)'
    assert tries(tmp_path, script) == (143, 1)
    assert "not started again (training had not begun): exit code 143, after step 0" in capfd.readouterr().out


@pytest.mark.parametrize("error", ["RuntimeError: no memory", "without error"])
def test_what_is_not_the_users_fault_before_training_is_tried_again(tmp_path: Path, error: str) -> None:
    script = f'(folder / "ranks/failure.txt").write_text("rank 0 ended with {error}"); '
    assert tries(tmp_path, script + 'number == 1 and sys.exit(1); begin(); (folder / "DONE").touch()') == (0, 2)


def test_a_launcher_that_was_killed_before_training_began_is_tried_again(tmp_path: Path) -> None:
    assert tries(tmp_path, 'number == 1 and os.kill(os.getpid(), 9); begin(); (folder / "DONE").touch()') == (0, 2)


def test_ranks_that_save_because_their_launcher_was_killed_were_not_asked_to_stop(tmp_path: Path) -> None:
    script = 'begin(); save(); (folder / "REQUEUE").touch(); number == 1 and os.kill(os.getpid(), 9); (folder / "DONE").touch()'
    assert tries(tmp_path, script) == (0, 2)


@pytest.mark.parametrize("way", ["by a signal to the run", "by a signal to the supervisor"])
def test_a_run_that_was_asked_to_stop_is_not_started_again(tmp_path: Path, way: str) -> None:
    signal_parent = "import signal, time; signal.signal(15, lambda *_: sys.exit(0)); os.kill(os.getppid(), 15); time.sleep(20)"
    script = "begin(); save(); " + ('(folder / "REQUEUE").touch()' if way.endswith("run") else signal_parent)
    assert tries(tmp_path, script) == (0, 1)


def test_a_stop_that_was_asked_for_before_is_not_one_of_now(tmp_path: Path) -> None:
    (tmp_path / "REQUEUE").touch()
    assert tries(tmp_path, 'number == 1 and os.kill(os.getpid(), 9); begin(); (folder / "DONE").touch()') == (0, 2)


def test_a_mistyped_launcher_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="deepsped: cannot be started: No such file or directory"):
        supervise(tmp_path, ["deepsped", "--module", "unimo_ds.pretrain"], 3)
