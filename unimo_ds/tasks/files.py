"""What the readers of task files share: how a file begins, which tells its form, and lines with their numbers."""

import zlib
from collections.abc import Iterator
from pathlib import Path

from unimo_ds.data.prepared import Rejects
from unimo_ds.errors import DataError
from unimo_ds.region_layouts.lines import unzipped


def opening(path: Path) -> str:
    """The first 4,096 bytes of a file, gzipped or not, or of the first file of a folder, without the space before them.

    Raises:
        DataError: it cannot be read.
    """
    try:
        file = min(path.iterdir(), default=path) if path.is_dir() else path
        with file.open("rb") as raw:
            return unzipped(raw).read(4096).decode("utf-8-sig", errors="replace").lstrip()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def number_or_name(name: str) -> int | str:
    """The name of an image or a question as public evaluations have it: a number where it is one."""
    return int(name) if name.isdecimal() else name


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
