"""Rewritten captions as data: what `tools/rewrite_captions.py` writes and the loader reads.

JSON Lines, one caption of one image a line, so that people can read and filter it with the tools they have:

    {"image": "train/000001.jpg", "text": "A red cup on a table.",
     "positives": [{"text": "A red cup over a table.", "level": "sentence", "reason": "...", "changed": [10, 14]}],
     "negatives": [{"text": "A blue cup on a table.", "level": "word", "reason": "attribute: red -> blue", "changed": [2, 6]}]}

Several processes write several files of one folder, `rewrites-00002-of-00008.jsonl`; a path may name a folder or one file.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import xxhash

from unimo_ds.errors import DataError

Level = Literal["sentence", "phrase", "word"]
LEVELS: tuple[Level, ...] = get_args(Level)


@dataclass(frozen=True)
class Rewrite:
    """One rewritten caption.

    Attributes:
        text: the caption.
        level: what was rewritten (unimo-spec, 5).
        reason: how it was made, for a reader: `object: cup -> ball`.
        changed: the characters `text[start:end]` that stand for other ones in the original; None: the whole sentence.
    """

    text: str
    level: Level
    reason: str
    changed: tuple[int, int] | None = None


@dataclass(frozen=True)
class RewrittenCaption:
    """A caption of an image with its rewrites: `positives` are true of the image, `negatives` are false of it."""

    image: str
    text: str
    positives: tuple[Rewrite, ...] = ()
    negatives: tuple[Rewrite, ...] = ()


def pair_digest(image: str, text: str) -> int:
    """A 64-bit number that names a pair by what it is, so that files of pairs need not be in one order."""
    return xxhash.xxh3_64_intdigest(f"{image}\0{text}".encode())


def dump_caption(caption: RewrittenCaption) -> str:
    """One line of the file, with its line break."""
    sides = {
        side: [
            {"text": rewrite.text, "level": rewrite.level, "reason": rewrite.reason}
            | ({} if rewrite.changed is None else {"changed": list(rewrite.changed)})
            for rewrite in rewrites
        ]
        for side, rewrites in (("positives", caption.positives), ("negatives", caption.negatives))
    }
    return json.dumps({"image": caption.image, "text": caption.text, **sides}, ensure_ascii=False) + "\n"


def parse_caption(line: str) -> RewrittenCaption:
    """The caption of one line.

    Raises:
        ValueError: says which key is wrong and what was expected.
    """
    content = json.loads(line)
    if not isinstance(content, dict):
        raise ValueError(f"expected an object, found {type(content).__name__}")
    sides = [tuple(_rewrite(item, side) for item in _list(content, side)) for side in ("positives", "negatives")]
    return RewrittenCaption(_text(content, "image"), _text(content, "text"), *sides)


def read_rewrites(path: Path, reject: Callable[[str], None]) -> Iterator[RewrittenCaption]:
    """The captions of one file, or of all files of a folder; `reject` is told of each line that cannot be used.

    Raises:
        DataError: there is no such file, the folder holds none, or its files are shards of an unfinished whole.
    """
    for file in rewrite_files(path):
        try:
            with file.open("rb") as lines:
                for number, line in enumerate(lines, 1):
                    try:
                        yield parse_caption(line.decode("utf-8-sig"))
                    except (ValueError, RecursionError) as error:
                        reject(f"{file}:{number}: {error}")
        except OSError as error:
            raise DataError(f"{file}: cannot be read: {error.strerror}") from error


def rewrite_files(path: Path) -> list[Path]:
    """The files behind `path`.

    Raises:
        DataError: as `read_rewrites`.
    """
    if path.is_file():
        return [path]
    files = sorted(path.glob("rewrites-*-of-*.jsonl"))
    if not files:
        raise DataError(f"{path}: no file of rewritten captions, nor a folder with rewrites-*-of-*.jsonl")
    totals = {file.stem.rsplit("-", 1)[1] for file in files}
    if len(totals) > 1 or len(files) != int(next(iter(totals))):
        names = ", ".join(file.name for file in files[:4])
        raise DataError(
            f"{path}: the shards are not one whole ({len(files)} files: {names} ...). "
            "Let every shard of tools/rewrite_captions.py end, or remove those of an earlier run."
        )
    return files


def _list(content: dict[str, Any], key: str) -> list[Any]:
    value = content.get(key, [])
    if not isinstance(value, list):
        raise ValueError(f"{key!r} is {value!r}, expected a list of rewrites")
    return value


def _text(content: dict[str, Any], key: str) -> str:
    value = content.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key!r} is {value!r}, expected a text")
    value.encode()  # half a surrogate pair is no character; UnicodeEncodeError is a ValueError
    return value


def _rewrite(content: Any, side: str) -> Rewrite:
    if not isinstance(content, dict):
        raise ValueError(f"{side!r} holds {content!r}, expected objects")
    level = content.get("level")
    if level not in LEVELS:
        raise ValueError(f"'level' is {level!r}, expected one of {', '.join(LEVELS)}")
    changed = content.get("changed")
    if changed is not None and not (
        isinstance(changed, list) and len(changed) == 2 and all(isinstance(at, int) for at in changed)
    ):
        raise ValueError(f"'changed' is {changed!r}, expected [start, end]")
    return Rewrite(
        _text(content, "text"),
        cast(Level, level),
        str(content.get("reason", "")),
        tuple(changed) if changed is not None else None,
    )
