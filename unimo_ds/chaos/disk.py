"""A disk of a few megabytes, to be filled: a file system in memory, mounted where nobody else sees it.

The program starts itself again in mounts of its own (`unshare`, util-linux), which end with it however it ends.
"""

import os
import subprocess
import sys
from pathlib import Path

from unimo_ds.errors import UnimoError

_INSIDE = "UNIMO_DS_CHAOS_MOUNTS"
_BLOCK = 4096


def enter_own_mounts() -> None:
    """Goes on as the same command in mounts of its own; where the system refuses that, as it is."""
    words = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    if _INSIDE in os.environ or _refusal([*words, "true"]) is not None:
        return
    os.execvpe("unshare", [*words, sys.executable, *sys.argv], {**os.environ, _INSIDE: "1"})


def _refusal(words: list[str]) -> str | None:
    """Why a command fails; None if it does not."""
    try:
        done = subprocess.run(words, capture_output=True, text=True)
    except OSError as error:
        return str(error)
    return None if done.returncode == 0 else done.stderr.strip()


class SmallDisk:
    """A folder that is a disk of its own.

    Args:
        folder: the mount point, made if need be.
        megabytes: how much it holds.

    Raises:
        UnimoError: it cannot be mounted; says why.
    """

    def __init__(self, folder: Path, megabytes: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if _INSIDE not in os.environ:
            raise UnimoError("no small disk: `unshare --mount` wants root or user namespaces")
        refusal = _refusal(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "chaos", str(folder)])
        if refusal is not None:
            raise UnimoError(f"no small disk: {refusal}")
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self, left: int) -> None:
        """Takes all but about `left` bytes of what is free; called again, of what has become free since."""
        keep = -(-left // _BLOCK)
        with self._ballast.open("ab", buffering=0) as file:
            found = os.statvfs(self.folder)
            for _ in range(found.f_bavail * found.f_frsize // _BLOCK - keep):
                try:
                    file.write(bytes(_BLOCK))
                except OSError:  # the run has taken the rest
                    return

    def free(self) -> None:
        """Gives it back."""
        self._ballast.unlink(missing_ok=True)
