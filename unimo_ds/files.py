"""Files that are whole or not there, and JSON with errors that say where it is wrong."""

import json
import os
from pathlib import Path
from typing import Any

from unimo_ds.errors import DataError


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    """A JSON file that is an object with these lists.

    Raises:
        DataError: it is not, or it cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 (byte {error.start}: {error.reason}); convert it first") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: is not valid JSON: {error.msg} (column {error.colno})") from error
    except (ValueError, RecursionError) as error:  # absurd numbers, absurd nesting
        raise DataError(f"{path}: is not valid JSON: {error}") from error
    missing = [key for key in keys if not isinstance(content, dict) or not isinstance(content.get(key), list)]
    if missing:
        raise DataError(f"{path}: expected an object with the lists {', '.join(keys)}; {', '.join(missing)} is missing")
    return dict(content)


def text_of(content: Any, key: str) -> str:
    """A text of a record that was read from JSON, without the space around it.

    Raises:
        ValueError: it is missing, empty, or no text.
    """
    if not isinstance(content, dict):
        raise ValueError(f"expected an object, found {type(content).__name__}")
    value = content.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key!r} is {value!r}, expected a text")
    value.encode()  # JSON can spell half of a surrogate pair, which is no character; the error is a ValueError
    return value.strip()


def replace_text(path: Path, text: str) -> None:
    """Writes `path` under another name, on disk, and renames it: a kill at any moment leaves the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    temporary.replace(path)
