"""Damaged checkpoints are found while training goes on, and never push whole ones out."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from unimo_ds.engine import background_check
from unimo_ds.engine.background_check import BackgroundCheck
from unimo_ds.engine.checkpoint_folder import all_checkpoints, checkpoint_name, facts_of, mark_best, remove_old, write_manifest


def save(folder: Path, step: int, size: int = 100) -> Path:
    """A checkpoint as far as its manifest goes."""
    checkpoint = folder / checkpoint_name(step)
    checkpoint.mkdir()
    for name in ("model.safetensors", "optimizer-00001-of-00001.safetensors"):
        (checkpoint / name).write_bytes(bytes(step) + bytes(size))
    write_manifest(checkpoint, step, facts_of(checkpoint, sorted(checkpoint.iterdir())))
    return checkpoint


def flip_a_byte(checkpoint: Path) -> None:
    path = checkpoint / "optimizer-00001-of-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[7] ^= 1
    path.write_bytes(content)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in all_checkpoints(folder))


def test_damage_is_told_once_and_forgotten_when_the_step_is_saved_again(tmp_path: Path) -> None:
    told: list[tuple[str, str]] = []
    check = BackgroundCheck(tmp_path, lambda path, damage: told.append((path.name, damage)), enabled=True)
    old, new = save(tmp_path, 10), save(tmp_path, 20)
    flip_a_byte(old)
    check.begin(new)
    wait_for(lambda: check.damaged == {old})
    for _ in range(2):
        check.rest()
        check.begin(None)
    check.rest()
    assert told == [("step-00000010", "optimizer-00001-of-00001.safetensors does not match its checksum")]
    check.begin(old)
    wait_for(lambda: len(told) == 2)  # it is still damaged
    check.rest()


def test_a_check_that_has_to_rest_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background_check, "_BYTES_A_SECOND", 1e4)  # of each file 10 ms, of the large one minutes
    large, small = save(tmp_path, 10, size=1 << 21), save(tmp_path, 20)
    flip_a_byte(small)
    check = BackgroundCheck(tmp_path, lambda path, damage: None, enabled=True)
    check.begin(None)
    wait_for(lambda: small in check.damaged)
    started = time.monotonic()
    check.rest()
    assert time.monotonic() - started < 1
    flip_a_byte(large)
    monkeypatch.setattr(background_check, "_BYTES_A_SECOND", 1e9)
    check.begin(None)
    wait_for(lambda: check.damaged == {small, large})
    check.rest()


def test_only_rank_0_looks(tmp_path: Path) -> None:
    flip_a_byte(save(tmp_path, 10))
    check = BackgroundCheck(tmp_path, lambda path, damage: pytest.fail(damage), enabled=False)
    check.begin(None)
    check.rest()
    assert not check.damaged


def test_damaged_ones_do_not_count_and_go_with_their_age(tmp_path: Path) -> None:
    saved = {step: save(tmp_path, step) for step in (10, 20, 30, 40)}
    remove_old(saved[40], 3, {saved[20]})
    assert steps(tmp_path) == [10, 20, 30, 40]
    saved[50] = save(tmp_path, 50)
    remove_old(saved[50], 3, {saved[20]})
    assert steps(tmp_path) == [30, 40, 50]
    remove_old(saved[50], 2, {saved[50], saved[40]})
    assert steps(tmp_path) == [30, 40, 50]


def test_the_best_and_those_of_later_steps_remain(tmp_path: Path) -> None:
    saved = {step: save(tmp_path, step) for step in (10, 20, 30, 40)}
    mark_best(tmp_path, 10, 0.5)
    remove_old(saved[30], 1, set())
    assert steps(tmp_path) == [10, 30, 40]
