"""A second job in a run folder waits, and is told whom for."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from unimo_ds.engine import run_lock
from unimo_ds.engine.run_lock import alone_in
from unimo_ds.errors import TrainingError, UnimoError

JOB = """
import json, os, platform, sys
from unimo_ds.locks import try_lock
os.mkdir(sys.argv[1])
with open(sys.argv[1] + "/lock", "w") as file:  # as `alone_in` does, without the seconds that torch takes to be imported
    assert try_lock(file)
    print(json.dumps({"host": platform.node(), "pid": os.getpid()}), file=file, flush=True)
    print("in", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def job(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", JOB, tmp_path / "run"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "in\n"
        yield process
        process.kill()


def test_a_second_job_is_refused_by_name(
    tmp_path: Path, job: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        pytest.raises(TrainingError, match=f"run: process {job.pid} on .* trains in this folder"),
        alone_in(tmp_path / "run", 0.3),
    ):
        pytest.fail("both trained")
    assert f"waiting for process {job.pid} on" in capsys.readouterr().out


def test_a_second_job_goes_on_as_soon_as_the_first_has_ended(tmp_path: Path, job: subprocess.Popen[str]) -> None:
    job.kill()
    with alone_in(tmp_path / "run", 30):
        assert json.loads((tmp_path / "run/lock").read_text()) == {"host": platform.node(), "pid": os.getpid()}


def test_a_folder_that_cannot_be_made_is_an_error_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UnimoError, match=r"the run cannot start: .*choose another folder"), alone_in(tmp_path / "file/run", 0):
        pytest.fail("it trained")


def test_ranks_other_than_0_do_not_wait(tmp_path: Path, job: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with alone_in(tmp_path / "run", 0):
        pass


def test_a_file_system_without_locks_is_no_reason_not_to_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(file: object) -> bool:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(run_lock, "try_lock", refuse)
    with alone_in(tmp_path, 0):
        pass
    assert "cannot be locked (Function not implemented): see to it that no second job" in capsys.readouterr().out
