"""What the readers of task files share: lines with their numbers, JSON with clear errors."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unimo_ds.data.prepared import Rejects
from unimo_ds.errors import DataError


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


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    """A JSON file that is an object with these lists.

    Raises:
        DataError: it is not.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: is not valid JSON: {error.msg} (column {error.colno})") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not valid JSON: {error}") from error
    missing = [key for key in keys if not isinstance(content, dict) or not isinstance(content.get(key), list)]
    if missing:
        raise DataError(f"{path}: expected an object with the lists {', '.join(keys)}; {', '.join(missing)} is missing")
    return dict(content)


def text_of(content: Any, key: str) -> str:
    """A text of a record.

    Raises:
        ValueError: it is missing, empty, or no text.
    """
    value = content.get(key) if isinstance(content, dict) else None
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key!r} is {value!r}, expected a text")
    value.encode()  # JSON can spell half of a surrogate pair, which is no character; the error is a ValueError
    return value.strip()
