"""Texts with what is to be written of them, in every form that they are published in."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from unimo_ds.config import TextFiles
from unimo_ds.data.prepared import Rejects
from unimo_ds.errors import DataError
from unimo_ds.files import read_json, text_of
from unimo_ds.tasks.files import lines, opening
from unimo_ds.tasks.id_files import is_id_table, read_id_sources
from unimo_ds.tokenizer import Tokenizer

_SQUAD = re.compile(r'\{\s*("version"\s*:\s*"[^"]*"\s*,\s*)?"data"\s*:\s*\[')  # one object, where JSON Lines are many


class Source(NamedTuple):
    """Where it stands, its line number or question id, its texts, and the target or nothing."""

    place: str
    name: str
    texts: tuple[str, ...]
    target: str


def read_sources(files: TextFiles, tokenizer: Tokenizer, rejects: Rejects) -> Iterator[Source]:
    """The sources of a set: two files of lines, SQuAD's JSON, the original release's ids, or JSON Lines.

    Raises:
        DataError: a file cannot be read, there are not as many targets as sources, or ids are of another vocabulary.
    """
    if files.targets is not None:
        return _two_files(files.path, files.targets, rejects)
    start = opening(files.path)
    if _SQUAD.match(start):
        return _questions(files.path, rejects)
    return _id_rows(files.path, tokenizer, rejects) if is_id_table(start) else _json_lines(files, rejects)


def _two_files(path: Path, path_of_targets: Path, rejects: Rejects) -> Iterator[Source]:
    sources, targets = list(lines(path, rejects)), list(lines(path_of_targets, rejects))
    if [number for number, _ in sources] != [number for number, _ in targets]:
        raise DataError(
            f"{path} has {len(sources)} lines that can be read and {path_of_targets} has {len(targets)}, or others: "
            "line n of the one must belong to line n of the other"
        )
    for (number, source), (_, target) in zip(sources, targets, strict=True):
        yield Source(f"{path}:{number}", str(number), (source.strip(),), target.strip())


def _json_lines(files: TextFiles, rejects: Rejects) -> Iterator[Source]:
    for number, line in lines(files.path, rejects):
        place = f"{files.path}:{number}"
        try:
            content = json.loads(line)
            target = text_of(content, files.target) if files.target in content else ""
            yield Source(place, str(number), (text_of(content, files.source),), target)
        except (ValueError, RecursionError, TypeError) as error:
            rejects(f"{place}: {error}: {line[:60]!r}")


def _id_rows(path: Path, tokenizer: Tokenizer, rejects: Rejects) -> Iterator[Source]:
    for row in read_id_sources(path, tokenizer, rejects):
        texts = (row.knowledge, *row.segments) if row.knowledge else tuple(row.segments)
        yield Source(f"{path}:{row.number}", str(row.number), texts, row.target)


def _questions(path: Path, rejects: Rejects) -> Iterator[Source]:
    """SQuAD's questions, each to be written of its first answer and the paragraph; one without an answer is rejected."""
    for article_place, article in _items(read_json(path, "data"), "data", f"{path}: ", rejects):
        for paragraph_place, paragraph in _items(article, "paragraphs", f"{article_place}.", rejects):
            for place, question in _items(paragraph, "qas", f"{paragraph_place}.", rejects):
                try:
                    answer = next(iter(question["answers"]), None)
                    texts = text_of(answer, "text"), text_of(paragraph, "context")
                    yield Source(place, str(question["id"]), texts, text_of(question, "question"))
                except (KeyError, TypeError, ValueError) as error:
                    rejects(f"{place}: {error}")


def _items(content: Any, key: str, place: str, rejects: Rejects) -> Iterator[tuple[str, Any]]:
    """The items of a list of a record, each with its place."""
    items = content.get(key) if isinstance(content, dict) else None
    if not isinstance(items, list):
        rejects(f"{place}{key} is {str(items)[:40]}, expected a list")
        return
    for number, item in enumerate(items):
        yield f"{place}{key}[{number}]", item
