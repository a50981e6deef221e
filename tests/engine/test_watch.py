"""Who is blamed, of files that ranks have left: silent ones first, then those that do not wait; honest slow steps are none."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from unimo_ds.config import TimeoutsSection
from unimo_ds.engine.watch import Watch

WORLD = 12


@pytest.fixture
def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watch:
    """Rank 0 of twelve on three nodes, whose thread is not started."""
    for name, value in {"RANK": "0", "WORLD_SIZE": str(WORLD), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "ranks").mkdir()
    return Watch(tmp_path, TimeoutsSection(start_up=30, step=10))


def write(watch: Watch, rank: int, beat: int, **stand: Any) -> None:
    known = {"host": f"host{rank}", "pid": 100 + rank, "phase": "step", "step": 7, "where": "f (a/b.py:3)", "ended": None}
    content = {**known, "waiting": True, "beat": beat, **stand}
    path = watch._folder / f"rank-{rank:04}.json"
    if not path.exists() or json.loads(path.read_text()) != content:  # a silent rank does not write
        path.write_text(json.dumps(content))


def look(watch: Watch, times: int, silent: set[int], **of_rank_5: Any) -> list[int]:
    found: list[int] = []
    for beat in range(times):
        for rank in range(WORLD):
            write(watch, rank, 0 if rank in silent else beat, **(of_rank_5 if rank == 5 else {}))
        found = watch._look()
    return found


def test_a_rank_is_silent_after_five_looks_and_not_before(watch: Watch) -> None:
    assert look(watch, 5, {3}) == []
    assert look(watch, 1, {3}) == [3]


def test_a_silent_rank_is_blamed_before_a_busy_one(watch: Watch) -> None:
    watch.enter("save", 7)
    said = watch._verdict(look(watch, 6, {3}, waiting=False), 20)
    assert (
        said == "after step 7, in save, no sign of life for 10 s of rank 3 (host3, pid 103), last seen in step after step 7, "
        "at f (a/b.py:3)"
    )


def test_the_rank_that_does_not_wait_is_blamed_where_all_live(watch: Watch) -> None:
    watch.enter("step", 7)
    said = watch._verdict(look(watch, 6, set(), waiting=False), 11.2)
    assert "after step 7, step did not end within 11 s (training.timeouts.step = 10)" in said
    assert said.endswith(
        "does not go on while the others wait: rank 5 (host5, pid 105), last seen in step after step 7, at f (a/b.py:3)"
    )


def test_ranks_that_left_no_word_are_listed_with_their_nodes_but_not_thousands_of_them(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_NODELIST", "gpu[1-3]")
    for beat in range(6):
        write(watch, 0, beat)
        silent = watch._look()
    said = watch._verdict(silent, 31)
    assert said.startswith(
        "11 of 12 ranks did not join within 31 s (training.timeouts.start_up = 30): rank 1 on node 0 of gpu[1-3]"
    )
    assert "rank 4 on node 1 of gpu[1-3]" in said and said.endswith("; and 3 more")


def test_a_rank_that_ended_with_an_error_is_quoted(watch: Watch) -> None:
    write(watch, 0, 0)
    write(watch, 4, 0, ended="ended with DataError: captions.json:3: is not JSON")
    said = watch._broken_connection("Connection closed by peer")
    assert (
        "rank 4 (host4, pid 104) ended with DataError: captions.json:3: is not JSON (here: Connection closed by peer)" in said
    )


def test_a_step_may_take_ten_times_the_longest_so_far(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for step, seconds in enumerate([300.0, 3.0, 2.0]):
        watch.enter("first_step" if step == 0 else "step", step)
        now[0] += seconds
    watch.enter("step", 3)
    assert watch._limit() == 30.0
    watch.enter("save", 3)
    assert watch._limit() == 1800


def test_ranks_on_a_full_disk_are_not_silent(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> int:
        raise OSError(28, "No space left on device")

    for rank in range(1, WORLD):
        write(watch, rank, 0)
    watch._write()
    monkeypatch.setattr(Path, "write_text", refuse)
    for _ in range(6):
        watch._write()
        silent = watch._look()
        time.sleep(0.01)
    assert silent == list(range(1, WORLD))  # which write nothing here; rank 0 tries
