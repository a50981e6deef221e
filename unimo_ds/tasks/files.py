"""What the readers of task files share: how a file begins, which tells its form, and lines with their numbers."""

from collections.abc import Iterator
from pathlib import Path

from unimo_ds.data.prepared import Rejects
from unimo_ds.errors import DataError


def opening(path: Path) -> str:
    """The first 4,096 bytes of a file without the space before them; of a folder, nothing.

    Raises:
        DataError: it cannot be read.
    """
    if path.is_dir():
        return ""
    try:
        with path.open("rb") as file:
            return file.read(4096).decode("utf-8-sig", errors="replace").lstrip()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def lines(path: Path, rejects: Rejects) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not blank, with their numbers from 1; one that is not UTF-8 costs itself.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    rejects(f"{path}:{number}: is not UTF-8 (byte {error.start} of the line: {error.reason})")
                    continue
                if line.strip():
                    yield number, line
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
