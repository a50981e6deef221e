"""Progress for a log file and for one rank alone."""

import io
import sys

import pytest

from unimo_ds.progress import Progress, format_duration, track


def test_a_log_file_gets_a_line_every_few_seconds_and_one_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("reading", 10, "files") as progress:
        progress.advance()
        assert capsys.readouterr().err == ""
        progress._last -= 6
        progress.advance(2, note="slow disk")
        shown = capsys.readouterr().err
        assert shown.startswith("reading: 3/10 files, ") and shown.endswith("| slow disk\n") and shown.count("\n") == 1
    assert capsys.readouterr().err.startswith("reading: 3/10 files")


def test_what_has_no_known_total_has_no_time_left() -> None:
    progress = Progress("reading", None, "lines")
    progress.advance(1234)
    assert progress.line().startswith("reading: 1,234 lines, ") and "left" not in progress.line()


def test_other_ranks_print_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track(range(5), "reading", 5, enabled=False)) == [0, 1, 2, 3, 4]
    assert capsys.readouterr().err == ""


def test_a_failure_is_not_reported_as_an_end(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError), Progress("reading", 5) as progress:
        progress.advance(2)
        raise RuntimeError
    assert capsys.readouterr().err == ""


def test_tracked_items_are_counted_as_they_are_done(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track(iter("abc"), "reading", unit="letters")) == ["a", "b", "c"]
    assert capsys.readouterr().err.startswith("reading: 3 letters, ")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_one_line_is_rewritten_and_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", Terminal())
    with Progress("reading", 3, "files") as progress:
        for _ in range(3):
            progress._last -= 1
            progress.advance()
    shown = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert shown.count("\r\033[K") == 4 and shown.count("\n") == 1 and shown.endswith("\n")
    assert [f"{number}/3 files" in part for number, part in zip((1, 2, 3, 3), shown.split("\r")[1:], strict=True)] == [True] * 4


def test_on_a_terminal_a_failure_leaves_the_line_and_starts_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error message must not be written behind the numbers."""
    monkeypatch.setattr("sys.stderr", Terminal())
    with pytest.raises(RuntimeError), Progress("reading", 3) as progress:
        progress._last -= 1
        progress.advance()
        raise RuntimeError
    assert sys.stderr.getvalue().count("\n") == 1 and sys.stderr.getvalue().endswith("\n")  # type: ignore[attr-defined]


def test_lines_come_no_more_often_than_every_five_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr("unimo_ds.progress.time.monotonic", lambda: float(next(clock)) / 2)  # half a second a look
    assert len(list(track(range(60), "reading", 60))) == 60
    assert 4 <= capsys.readouterr().err.count("\n") <= 8


@pytest.mark.parametrize(
    ("done", "total", "left"), [(0, 10, False), (1, 10, True), (9, 10, True), (10, 10, False), (11, 10, False)]
)
def test_time_left_is_told_while_there_is_some(done: int, total: int, left: bool) -> None:
    progress = Progress("reading", total)
    progress.advance(done)
    assert ("left" in progress.line()) == left


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (75, "1:15"), (3725, "1:02:05")])
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_progress_says_count_rate_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("reading", 200, "images") as progress:
        progress._start -= 10
        progress.advance(50)
        assert "reading: 50/200 images, 5.0 images/s, 0:10 so far, 0:30 left" in progress.line()
        progress.advance(150)
    assert "200/200" in capsys.readouterr().err
