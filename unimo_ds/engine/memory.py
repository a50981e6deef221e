"""glibc's allocator told to keep what a training step frees, for the next step.

By default glibc gives the free end of the heap back to the system as soon as it is twice as large as the largest block freed so
far: on a CPU every step then faults in and zeroes pages that it had before, up to a tenth of its time (docs/performance.md).
"""

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
_KEPT = (1 << 31) - 1  # bytes of the free end that stay with the process; mallopt takes an int
_LARGEST = 32 << 20  # where glibc's own limit ends: larger blocks never come from the heap, so that it is not torn by them


def keep_freed_memory() -> None:
    """For the rest of this process; nothing happens where the user has set the allocator, or where it is not glibc's."""
    if any(name.startswith("MALLOC_") for name in os.environ) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST)
        mallopt(_TRIM_THRESHOLD, _KEPT)
