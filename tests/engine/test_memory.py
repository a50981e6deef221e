"""What a step frees stays with the process, unless the user has set the allocator."""

import ctypes
import os
from types import SimpleNamespace

import pytest

from unimo_ds.engine.memory import keep_freed_memory


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What mallopt is told, by a process whose user has told the allocator nothing."""
    found: list[tuple[int, int]] = []
    for name in [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_"))]:
        monkeypatch.delenv(name)
    library = SimpleNamespace(mallopt=lambda option, value: found.append((option, value)))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    return found


def test_the_end_of_the_heap_is_kept_and_large_blocks_stay_out_of_it(calls: list[tuple[int, int]]) -> None:
    keep_freed_memory()
    assert dict(calls) == {-3: 32 << 20, -1: 2**31 - 1}  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of malloc.h


def test_glibc_takes_both_values() -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # another C library has nothing to set
        assert mallopt(-3, 32 << 20) == 1, "32 MB is the largest that glibc takes"
        assert mallopt(-1, 2**31 - 1) == 1


@pytest.mark.parametrize(
    ("name", "value"), [("MALLOC_ARENA_MAX", "4"), ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=1"), ("MALLOC_CONF", "x")]
)
def test_the_users_settings_stand(calls: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    keep_freed_memory()
    assert calls == []


def test_another_c_library_is_left_alone(calls: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    keep_freed_memory()
    assert calls == []
