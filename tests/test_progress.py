"""Progress for a log file and for one rank alone."""

import pytest

from unimo_ds.progress import Progress, track


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
