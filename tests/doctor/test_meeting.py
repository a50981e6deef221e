"""The meeting ends when its time is up, whoever is missing."""

import os
import socket
import threading
import time
from concurrent.futures import TimeoutError as TookTooLong

import pytest

from tests.life.small_run import free_port
from unimo_ds.distributed import Environment
from unimo_ds.doctor.meeting import Meeting, within
from unimo_ds.errors import ConfigError, UnimoError


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)


def test_what_has_come_in_time_is_there_and_the_rest_is_not_waited_for() -> None:
    first = Meeting(Environment(0, 4, 0, 4), 5)
    second = Meeting(Environment(1, 4, 1, 4), 5)
    second.post("facts", {"host": "b"})
    started = time.monotonic()
    found = first.gather("facts", range(4), started + 0.5)
    assert found == {1: {"host": "b"}} and 0.4 < time.monotonic() - started < 2
    first.post("facts", {"host": "a"})
    found = first.gather("facts", range(4), started)  # the time is up: what is there is taken all the same
    assert list(found) == [0, 1]
    first.announce("code", 1)
    assert second.hear("code", 1) == 1
    with pytest.raises(UnimoError, match=r"rank 1 \(\S+\): rank 0 gave no answer at 127.0.0.1:\d+ within 0 s"):
        second.hear("nothing", 0.2)


def test_ranks_stand_in_their_order_whoever_comes_first() -> None:
    first, second = Meeting(Environment(0, 2, 0, 2), 5), Meeting(Environment(1, 2, 1, 2), 5)
    second.post("facts", "b")
    threading.Timer(0.3, lambda: second.connect("doctor", 5).set("facts/0", '"a"')).start()
    assert list(first.gather("facts", range(2), time.monotonic() + 5)) == [0, 1]


def test_rank_0_ends_after_the_others() -> None:
    first, second = Meeting(Environment(0, 2, 0, 2), 5), Meeting(Environment(1, 2, 1, 2), 5)
    threading.Timer(0.5, lambda: second.leave((), 0)).start()
    started = time.monotonic()
    first.leave([1], 5)
    assert 0.4 < time.monotonic() - started < 4


def test_without_rank_0_the_others_say_so() -> None:
    started = time.monotonic()
    with pytest.raises(UnimoError, match=r"rank 3 \(\S+\): rank 0 gave no answer at 127.0.0.1:\d+ within 1 s: look whether"):
        Meeting(Environment(3, 4, 3, 4), 1)
    assert time.monotonic() - started < 10


def test_a_port_that_is_taken_and_a_place_that_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("", int(os.environ["MASTER_PORT"])))
        other.listen()
        with pytest.raises(UnimoError, match=r"rank 0 cannot listen at 127.0.0.1:\d+ .*set MASTER_PORT to a free one"):
            Meeting(Environment(0, 2, 0, 2), 2)
    monkeypatch.delenv("MASTER_ADDR")
    with pytest.raises(ConfigError, match="MASTER_ADDR not set, so 2 ranks cannot meet"):
        Meeting(Environment(0, 2, 0, 2), 2)


def test_within_gives_values_errors_and_up() -> None:
    assert within(5, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 // 0)
    with pytest.raises(TookTooLong):
        within(0.1, lambda: time.sleep(3))
