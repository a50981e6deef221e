"""Readers of the field's file formats: captions with their images, and plain texts.

A reader yields records and hands what it cannot use to `reject`, so that one broken line costs one record and is counted.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unimo_ds.errors import DataError
from unimo_ds.files import read_json, text_of

Reject = Callable[[str], None]  # called with "file:line: reason"


@dataclass(frozen=True)
class Record:
    """A text, and for a pair the key of its image in the regions store."""

    text: str
    image: str | None = None


def read_records(path: Path, file_format: str, pairs: bool, reject: Reject) -> Iterator[Record]:
    """Yields the records of one file.

    Args:
        path: the file.
        file_format: `coco_captions`, `json_lines` or `plain_text`.
        pairs: whether each record must name an image.
        reject: is told of each record that cannot be used.

    Raises:
        DataError: the file cannot be read, or is no file of that format at all.
    """
    readers = {"coco_captions": _coco_captions, "json_lines": _json_lines, "plain_text": _plain_text}
    try:
        yield from readers[file_format](Path(path), pairs, reject)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _coco_captions(path: Path, pairs: bool, reject: Reject) -> Iterator[Record]:
    """COCO captions JSON: `images` with id and file_name, `annotations` with image_id and caption."""
    content = read_json(path, "images", "annotations")
    try:
        files = {image["id"]: image["file_name"] for image in content["images"]}
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: not COCO captions: an image needs id and file_name ({error!r})") from error
    for number, annotation in enumerate(content["annotations"]):
        try:
            yield _coco_record(annotation, files)
        except ValueError as error:
            reject(f"{path}: annotations[{number}]: {error}")


def _coco_record(annotation: Any, files: dict[Any, Any]) -> Record:
    caption, number = text_of(annotation, "caption"), annotation.get("image_id")
    image = files.get(number) if isinstance(number, int | str) else None
    if not isinstance(image, str):
        raise ValueError(f"image_id {number!r} is not among the images of this file")
    image.encode()  # as in `text_of`
    return Record(caption, image)


def _json_lines(path: Path, pairs: bool, reject: Reject) -> Iterator[Record]:
    """One JSON object a line: `text`, and for pairs `image` (its key in the regions store)."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                yield _record_of(json.loads(line.decode("utf-8-sig").strip()), pairs)
            except (ValueError, RecursionError) as error:  # errors of JSON and of Unicode are ValueErrors
                reject(f"{path}:{number}: {error}: {line.strip()[:60].decode(errors='replace')!r}")


def _record_of(content: Any, pairs: bool) -> Record:
    text = text_of(content, "text")
    if pairs:
        text_of(content, "image")  # a key is taken as it stands, space and all
    return Record(text, content["image"] if pairs else None)


def _plain_text(path: Path, pairs: bool, reject: Reject) -> Iterator[Record]:
    """Documents separated by blank lines; line breaks inside one are spaces. A line that is not UTF-8 is left out."""
    document: list[str] = []
    with path.open("rb") as lines:
        for number, raw in enumerate(lines, 1):
            try:
                line = raw.decode("utf-8-sig").strip()
            except UnicodeDecodeError as error:
                reject(f"{path}:{number}: is not UTF-8 (byte {error.start} of the line: {error.reason})")
                continue
            if line:
                document.append(line)
            elif document:
                yield Record(" ".join(document))
                document = []
    if document:
        yield Record(" ".join(document))
