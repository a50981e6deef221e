"""The run's logs on a disk that fills, after a kill in the middle of a line, and for other ranks; signals in a row."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unimo_ds.engine.run_log import RunLog, SampleLog, forget_after
from unimo_ds.engine.signals import StopRequest
from unimo_ds.errors import UnimoError

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
    assert f"{tmp_path}: step 7 is missing in the metrics: No space left on device" in said
    assert "step 8 is missing" in said


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
