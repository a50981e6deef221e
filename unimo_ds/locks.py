"""Locks between processes that end with their holder.

POSIX's (`fcntl.lockf`): they hold between the nodes of a shared file system too, and processes that the holder forks do not
inherit them, so what a killed process held is free at once although its children live on for seconds.
"""

import fcntl
from io import FileIO
from typing import IO


def try_lock(file: IO[str] | FileIO) -> bool:
    """Takes the lock of an open file; False if another process has it.

    Raises:
        OSError: the file system has no locks.
    """
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # POSIX allows both answers
        return False
    return True
