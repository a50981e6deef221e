"""The original release's files, which hold texts as ids: between tabs under a header, or between semicolons (unimo-spec, 7).

Ids become texts as they are read, so that all behind a reader is as for other formats; a text gets the same ids again. What the
files hold of images is for `tools/convert_regions.py`: of the same file it makes the regions store.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from unimo_ds.data.prepared import Rejects
from unimo_ds.data.sequences import FIRST_WORD
from unimo_ds.errors import DataError
from unimo_ds.region_layouts.lines import read_lines
from unimo_ds.region_layouts.tables import UnimoCaptions, UnimoEntailment, caption_image
from unimo_ds.tasks.files import lines
from unimo_ds.tokenizer import CLS, SEP, Tokenizer

R = TypeVar("R")

_RETRIEVAL = ("token_ids", "sent_ids", "pos_ids", "image_name", "sent_id")
_SEGMENT_END = " [SEP] "


class IdSource(NamedTuple):
    """A row of a sequence-to-sequence set; `knowledge` is a dialogue's story, and what is not there is empty."""

    number: int
    knowledge: str
    segments: list[str]
    target: str


class IdCaption(NamedTuple):
    """A caption, empty where it is to be predicted, and the key that `convert_regions` gives its image."""

    place: str
    image: str
    text: str


class Hypothesis(NamedTuple):
    """A sentence about an image, with its name and label as they stand in the file."""

    place: str
    image: str
    name: str
    label: str
    text: str


class IdSentence(NamedTuple):
    """A sentence of retrieval, the file name of its image, and its own id."""

    text: str
    image_name: str
    sent_id: str


def is_id_table(opening: str) -> bool:
    """Whether a file that begins so is a sequence-to-sequence set: `src`, `tgt` and perhaps `knowledge` between tabs."""
    return {"src", "tgt"} <= set(opening.partition("\n")[0].rstrip("\r").split("\t"))


def is_id_sentences(opening: str) -> bool:
    """Whether a file that begins so is a set of retrieval: five fields between semicolons."""
    return opening.partition("\n")[0].count(";") == len(_RETRIEVAL) - 1


def read_id_sources(path: Path, tokenizer: Tokenizer, rejects: Rejects) -> Iterator[IdSource]:
    """The rows of a sequence-to-sequence set: GPT-2's ids, with [SEP] between the segments of `src`.

    Raises:
        DataError: the file cannot be read, has other columns, or has ids of another vocabulary than the run's.
    """
    columns: list[str] = []
    for number, line in lines(path, rejects):
        fields = line.split("\t")
        if not columns:
            columns = fields
            if not {"src", "tgt"} <= set(columns) <= {"src", "tgt", "knowledge"}:
                raise DataError(f"{path}:1: columns {', '.join(columns)[:200]}; expected src, tgt and, of dialogues, knowledge")
            _check_vocabulary(path, tokenizer)
            continue
        try:
            row = _named(fields, columns)
            segments = [_gpt2_text(segment, tokenizer) for segment in row["src"].split(_SEGMENT_END)]
            knowledge, target = (
                _gpt2_text(row[name], tokenizer) if row.get(name, "").strip() else "" for name in ("knowledge", "tgt")
            )
            yield IdSource(number, knowledge, segments, target)
        except ValueError as error:
            rejects(f"{path}:{number}: {error}")


def read_id_captions(path: Path, tokenizer: Tokenizer, rejects: Rejects) -> Iterator[IdCaption]:
    """The rows of a set of captions: of a file, gzipped or not, or of all files of a folder.

    Raises:
        DataError: a file cannot be read, or has ids of another vocabulary than the run's.
    """

    def caption(place: str, row: dict[str, str]) -> IdCaption:
        text = _model_text(row["token_ids"], tokenizer) if row["token_ids"].strip() else ""
        return IdCaption(place, caption_image(row["image_id"]), text)

    return _rows(path, UnimoCaptions.columns, caption, tokenizer, rejects)


def read_id_hypotheses(path: Path, tokenizer: Tokenizer, rejects: Rejects) -> Iterator[Hypothesis]:
    """The rows of SNLI-VE, as `read_id_captions` reads captions."""

    def hypothesis(place: str, row: dict[str, str]) -> Hypothesis:
        return Hypothesis(place, row["image_id"], row["data_id"], row["label"], _model_text(row["token_ids"], tokenizer))

    return _rows(path, UnimoEntailment.columns, hypothesis, tokenizer, rejects)


def read_id_sentences(path: Path, tokenizer: Tokenizer, rejects: Rejects) -> Iterator[IdSentence]:
    """The rows of Flickr30k retrieval, as `read_id_captions` reads captions."""

    def sentence(_: str, row: dict[str, str]) -> IdSentence:
        return IdSentence(_model_text(row["token_ids"], tokenizer), row["image_name"], row["sent_id"])

    return _rows(path, _RETRIEVAL, sentence, tokenizer, rejects)


def _rows(
    path: Path, columns: Sequence[str], make: Callable[[str, dict[str, str]], R], tokenizer: Tokenizer, rejects: Rejects
) -> Iterator[R]:
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        for line in read_lines(file):
            try:
                row = _named(line.content.decode().split(";"), columns)
                _check_vocabulary(file, tokenizer)
                yield make(line.where, row)
            except ValueError as error:  # an error of UTF-8 is one
                rejects(f"{line.where}: {error}")


def _named(fields: Sequence[str], columns: Sequence[str]) -> dict[str, str]:
    if len(fields) != len(columns):
        raise ValueError(f"{len(fields)} fields; expected {len(columns)}: {', '.join(columns)}")
    return dict(zip(columns, fields, strict=True))


def _check_vocabulary(path: Path, tokenizer: Tokenizer) -> None:
    if not tokenizer.is_published:
        raise DataError(
            f"{path}: holds ids of RoBERTa's vocabulary, and the run's tokenizer, {tokenizer.folder} of {tokenizer.size} "
            "entries, has another one; start from a checkpoint with RoBERTa's vocab.json and merges.txt, or give the texts"
        )


def _model_text(field: str, tokenizer: Tokenizer) -> str:
    """The text of `[CLS] w.. [SEP]` in the model's ids."""
    ids = _ids(field)
    if len(ids) < 3 or ids[0] != CLS or ids[-1] != SEP:
        raise ValueError(f"token ids {field[:40]!r}; expected {CLS} ([CLS]), words, {SEP} ([SEP])")
    _check_range(ids[1:-1], FIRST_WORD, tokenizer.mask)
    return tokenizer.exact_text(ids[1:-1])


def _gpt2_text(field: str, tokenizer: Tokenizer) -> str:
    """The text of GPT-2's ids."""
    ids = _ids(field)
    _check_range(ids, 0, len(tokenizer.from_gpt2_V))
    return tokenizer.exact_text(tokenizer.from_gpt2_V[ids].tolist())


def _ids(field: str) -> list[int]:
    ids = [int(word) for word in field.split()]
    if not ids:
        raise ValueError("a text is empty")
    return ids


def _check_range(ids: Sequence[int], first: int, end: int) -> None:
    wrong = [number for number in ids if not first <= number < end]
    if wrong:
        raise ValueError(f"token id {wrong[0]}; expected {first} to {end - 1}")
