"""Lines of a text file that may be huge, gzipped, or cut: one at a time, with their places."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from unimo_ds.errors import DataError

_LONGEST_LINE = 64 << 20  # bytes; published lines have some 2 MB, and a file without line breaks must not fill the memory
_BUFFER = 1 << 20  # bytes read at a time


class Line(NamedTuple):
    """A line without its end; `where` is file, number and byte; `position` is how far the file on disk is read."""

    content: bytes
    where: str
    position: int
    whole: bool  # whether a line break ended it: the last line of a file that was cut has none

    def first_column(self, separator: bytes) -> bytes:
        """What is before the first `separator`, found without a copy of all that comes after it."""
        end = self.content.find(separator)
        return self.content if end < 0 else self.content[:end]


def unzipped(raw: BinaryIO) -> BinaryIO | gzip.GzipFile:
    """The content of an open file, which may be gzipped."""
    gzipped = raw.read(2) == b"\x1f\x8b"
    raw.seek(0)
    return gzip.GzipFile(fileobj=raw) if gzipped else raw


def read_lines(path: Path) -> Iterator[Line]:
    """Every line that is not empty.

    Raises:
        DataError: the file cannot be read, its gzip stream is damaged, or a line is too long to be one.
    """
    try:
        with path.open("rb", buffering=_BUFFER) as raw:
            stream = unzipped(raw)
            start = number = 0
            while content := stream.readline(_LONGEST_LINE):
                number += 1
                where = f"{path}:{number} (byte {start:,})"
                if len(content) == _LONGEST_LINE:
                    raise DataError(f"{where}: a line of more than {_LONGEST_LINE >> 20} MB; this is no table of regions")
                start += len(content)
                line = content.rstrip(b"\r\n")
                if line:
                    yield Line(line, where, raw.tell() if stream is not raw else start, content.endswith(b"\n"))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path}: damaged gzip after line {number} ({error}); fetch it again, what was read so far is kept"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
