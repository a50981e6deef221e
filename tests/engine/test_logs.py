"""The run's logs on a disk that fills, after a kill in the middle of a line, and for other ranks; signals in a row."""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unimo_ds.engine import run_log
from unimo_ds.engine.run_log import RunLog, SampleLog, forget_after, was_evaluated
from unimo_ds.engine.signals import StopRequest
from unimo_ds.errors import UnimoError
from unimo_ds.progress import say

FULL = Path("/dev/full")  # every write to it says that there is no space left


def lines(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_are_on_disk_as_soon_as_they_are_written_and_are_added_to_by_the_next_start(tmp_path: Path) -> None:
    for start in range(2):
        log = RunLog(tmp_path, enabled=True)
        log.write({"step": start, "loss": 0.5, "count": 3})
        assert lines(tmp_path / "metrics.jsonl")[-1] == {"step": start, "loss": 0.5, "count": 3}
        log.close()
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [0, 1]
    assert list((tmp_path / "tensorboard").iterdir())


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")
def test_a_disk_that_is_full_from_start_to_end_ends_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.jsonl").symlink_to(FULL)
    log = RunLog(tmp_path, enabled=True)
    for step in (7, 8):
        log.write({"step": step, "loss": 1.0})
    log.close()
    said = capsys.readouterr().out
    assert f"{tmp_path}: step 7 is not yet in the metrics: No space left on device" in said
    assert "step 8 is not yet" in said and "the end of the metrics cannot be written" in said


class AlmostFull(FileIO):
    """A file on a disk with `room` bytes."""

    room = 30

    def write(self, content: Any) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = super().write(content[: self.room])
        AlmostFull.room -= written
        return written


def test_lines_that_a_full_disk_refuses_are_written_when_there_is_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_log, "FileIO", AlmostFull)
    monkeypatch.setattr(AlmostFull, "room", 30)
    log = SampleLog(tmp_path, 3, enabled=True)
    for step in (1, 2):
        log.write(step, [(0, step, 7)])
    path = tmp_path / "samples-rank0003.jsonl"
    assert len(path.read_bytes()) == 30 and f"{path}: step 2 is not yet there: No space left" in capsys.readouterr().err
    AlmostFull.room = 1000
    log.write(3, [])
    log.close()
    assert lines(path) == [{"step": step, "samples": [[0, step, 7]] if step < 3 else []} for step in (1, 2, 3)]
    assert capsys.readouterr().err == ""


def test_what_is_lost_on_a_disk_that_stays_full_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_log, "FileIO", AlmostFull)
    monkeypatch.setattr(AlmostFull, "room", 0)
    monkeypatch.setattr(run_log, "_MOST_WAITING", 100)
    log = SampleLog(tmp_path, 0, enabled=True)
    for step in range(50):
        log.write(step, [])
    assert len(log._lines._waiting) < 150  # type: ignore[union-attr]
    log.close()
    assert "the last lines are missing: No space left" in capsys.readouterr().err


def test_a_tensorboard_whose_disk_was_full_goes_on_in_another_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLog(tmp_path, enabled=True)
    (before,) = (tmp_path / "tensorboard").iterdir()
    log._scalars.file_writer.event_writer._async_writer._worker.exception = OSError(errno.ENOSPC, "No space left on device")
    log.write({"step": 1, "loss": 0.5})
    assert "No space left on device" in capsys.readouterr().out
    log.write({"step": 2, "loss": 0.25})
    log.close()
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2 and before.exists()
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [1, 2]
    assert "WARNING" not in capsys.readouterr().out


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")
def test_a_job_s_own_log_on_a_full_disk_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with FULL.open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        say("nobody reads this")
        with contextlib.suppress(OSError):
            full.close()


def test_a_start_on_a_full_disk_says_so_and_leaves_the_receipt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    log = RunLog(tmp_path, enabled=True)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    monkeypatch.setattr(run_log, "replace_text", refuse)
    with pytest.raises(UnimoError, match=r"the run cannot start: No space left on device \(.*config\.yaml\); free some space"):
        log.start("", {}, 1, 0)
    forget_after(tmp_path, 2)  # there is nothing to be forgotten, and nothing to be written
    with pytest.raises(UnimoError, match=r"No space left on device \(.*metrics\.jsonl\)"):
        forget_after(tmp_path, 1)
    log.close()


def test_an_evaluation_is_known_by_its_line(tmp_path: Path) -> None:
    assert not was_evaluated(tmp_path, 4)
    (tmp_path / "metrics.jsonl").write_text('{"step": 4, "loss": 1}\n{"step": 2, "eval/accuracy": 0.5}\n')
    assert was_evaluated(tmp_path, 2) and not was_evaluated(tmp_path, 4)


def test_the_first_start_and_a_resumed_one_are_both_in_the_receipt_and_the_configuration_is_the_last(tmp_path: Path) -> None:
    for start in range(2):
        log = RunLog(tmp_path, enabled=True)
        log.start(f"folder: run{start}\n", {"pairs": start}, world_size=2, step=7 * start)
        log.close()
    assert (tmp_path / "config.yaml").read_text() == "folder: run1\n"
    starts = json.loads((tmp_path / "receipt.json").read_text())["starts"]
    assert [(entry["from_step"], entry["world_size"], entry["data"]) for entry in starts] == [
        (0, 2, {"pairs": 0}),
        (7, 2, {"pairs": 1}),
    ]
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize("content", ["{", "[]", "3", "{}", '{"starts": 3}', '{"starts": null}'])
def test_a_receipt_of_another_program_is_refused_and_left_as_it_is(tmp_path: Path, content: str) -> None:
    (tmp_path / "receipt.json").write_text(content)
    (tmp_path / "config.yaml").write_text("theirs: 1")
    log = RunLog(tmp_path, enabled=True)
    with pytest.raises(UnimoError, match=r"receipt\.json: is not a receipt of this program"):
        log.start("", {}, 1, 0)
    log.close()
    assert (tmp_path / "receipt.json").read_text() == content
    assert (tmp_path / "config.yaml").read_text() == "theirs: 1"


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.lists(st.integers(0, 12), max_size=12), st.integers(-1, 13), st.integers(0, 40))
def test_forgetting_keeps_exactly_the_whole_lines_up_to_the_step(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int], last: int, cut: int
) -> None:
    folder = tmp_path_factory.mktemp("run")
    whole = [json.dumps({"step": step, "loss": 0.25}) for step in steps]
    half = json.dumps({"step": 0, "loss": 0.25, "accuracy": 0.5})[:cut]  # never a whole line: it is 45 long
    (folder / "metrics.jsonl").write_text("".join(line + "\n" for line in whole) + half)
    forget_after(folder, last)
    kept = [line for line, step in zip(whole, steps, strict=True) if step <= last]
    assert (folder / "metrics.jsonl").read_text() == "".join(line + "\n" for line in kept)


def test_forgetting_clears_lines_of_no_step_and_the_samples_of_all_ranks(tmp_path: Path) -> None:
    for rank in range(2):
        log = SampleLog(tmp_path, rank, enabled=True)
        for step in range(1, 4):
            log.write(step, [(0, step, rank)])
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnull\n[]\n{"loss": 1}\n{"step": "x"}\n\n{"step": 2}\n')
    forget_after(tmp_path, 2)
    assert lines(tmp_path / "metrics.jsonl") == [{"step": 1}, {"step": 2}]
    for rank in range(2):
        found = lines(tmp_path / f"samples-rank{rank:04}.jsonl")
        assert found == [{"step": step, "samples": [[0, step, rank]]} for step in (1, 2)]


def test_forgetting_in_a_new_folder_makes_nothing(tmp_path: Path) -> None:
    forget_after(tmp_path, 3)
    assert list(tmp_path.iterdir()) == []


def test_samples_are_logged_only_when_asked(tmp_path: Path) -> None:
    SampleLog(tmp_path / "run", 0, enabled=False).write(1, [(0, 0, 0)])
    assert not (tmp_path / "run").exists()


@pytest.fixture
def stop() -> Iterator[StopRequest]:
    request = StopRequest()
    yield request
    request.restore()


@pytest.mark.parametrize(
    ("first", "second"), [(signal.SIGUSR1, signal.SIGTERM), (signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGUSR1)]
)
def test_a_second_signal_of_a_scheduler_does_not_end_the_saving(
    stop: StopRequest, first: signal.Signals, second: signal.Signals
) -> None:
    os.kill(os.getpid(), first)
    assert stop.received == first.name
    os.kill(os.getpid(), second)
    assert stop.received == second.name


def test_a_person_s_second_interrupt_ends_at_once(stop: StopRequest) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    assert stop.received == "SIGINT"
    os.kill(os.getpid(), signal.SIGINT)  # handed on by a launcher at the same moment: not a second wish
    stop._interrupted -= 2
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait(1)


def test_handlers_come_back_even_those_that_ignored(stop: StopRequest) -> None:
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        inner = StopRequest()
        os.kill(os.getpid(), signal.SIGUSR1)
        inner.restore()
        assert inner.received == "SIGUSR1" and stop.received is None
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR1, before)


RANK = """
import time
from unimo_ds.engine.signals import StopRequest
stop = StopRequest()
print("ready", flush=True)
while stop.received is None:
    time.sleep(0.02)
print(stop.received, flush=True)
"""
LAUNCHER = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[2]])"


@pytest.mark.parametrize("name", ["torchrun", "deepspeed", "a_script_of_the_user"])
def test_ranks_leave_when_their_launcher_is_killed(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(LAUNCHER)
    launcher = subprocess.Popen([sys.executable, tmp_path / name, "-", RANK], stdout=subprocess.PIPE, text=True)
    assert launcher.stdout is not None and launcher.stdout.readline() == "ready\n"
    (rank,) = [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/stat") if _parent(path) == launcher.pid]
    launcher.kill()
    launcher.wait()
    if name == "a_script_of_the_user":  # which may end, as a shell does before what it has started with nohup
        time.sleep(0.3)
        os.kill(rank, signal.SIGTERM)
        assert launcher.stdout.read() == "SIGTERM\n"
    else:
        assert launcher.stdout.read() == "its launcher has ended\n"


def _parent(stat: Path) -> int:
    try:
        return int(stat.read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return 0
