"""The next answer in a dialogue about a story: CoQA (unimo-spec, 7.2).

`[CLS] story [SEP] u_1 [SEP] .. u_n [SEP]` and then `[CLS] answer [SEP]`; the last utterance is the question. Each of these
parts has its own positions, and besides a role and a turn, whose embeddings are added to its words'.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from unimo_ds.batch import FIRST_POSITION
from unimo_ds.config import DialogueFiles
from unimo_ds.data.prepared import Rejects
from unimo_ds.data.sequences import IGNORED, Ints, PackedText
from unimo_ds.files import read_json, text_of
from unimo_ds.metrics.answers import coqa_scores
from unimo_ds.model.embeddings import TURNS
from unimo_ds.tasks.files import opening
from unimo_ds.tasks.id_files import read_id_sources
from unimo_ds.tasks.task import Example, Judged, Tokens
from unimo_ds.tasks.writing import Writing
from unimo_ds.tokenizer import CLS, SEP

_STORY = 2  # its role; that of answers is 0, that of questions 1
_MOST_UTTERANCES = TURNS - 1  # the last ones are kept; turn 0 is of the story and of what is generated


def dialogue(story: Ints, utterances: Sequence[Ints], limit: int) -> PackedText:
    """The source: `n` utterances have the turns n to 1 and, by turns, the roles 1 and 0, so that the last one has 1.

    Args:
        story: its tokens.
        utterances: the tokens of at most 15 utterances.
        limit: rows of a part, with [SEP], and of the [CLS] before all: that many positions there are. The whole is not cut.
    """
    count = len(utterances)
    parts = [np.append(text[: limit - 2], SEP) for text in (story, *utterances)]
    turns = np.arange(count, 0, -1)
    voices = [(_STORY, 0), *zip(turns % 2, turns, strict=True)]
    ids = np.concatenate([[CLS], *parts]).astype(np.int64)
    return PackedText(
        ids,
        np.concatenate([[FIRST_POSITION], *(np.arange(len(part)) + FIRST_POSITION + 1 for part in parts)]),
        np.full(len(ids), IGNORED),
        len(ids),
        np.repeat([(count % 2, count), *voices], [1, *map(len, parts)], axis=0),
    )


class Dialogue(Writing[DialogueFiles]):
    """CoQA."""

    chosen_by = "f1"
    ending = ".json"
    voices = True

    def read(self, files: DialogueFiles, rejects: Rejects, teach: bool) -> Iterator[Example]:
        is_json = opening(files.path).startswith("{")
        for name, texts, answers in self._coqa(files, rejects, teach) if is_json else self._id_rows(files, rejects):
            texts = (texts[0], *texts[1:][-_MOST_UTTERANCES:])
            yield Example(name, texts, target=answers[0]) if teach else Example(name, texts, label=answers)

    def _coqa(self, files: DialogueFiles, rejects: Rejects, teach: bool) -> Iterator[tuple[str, tuple[str, ...], list[str]]]:
        """Name, story with utterances, and human answers of every question, the utterances before it with their first answers.

        A turn that cannot be read costs those after it as well: what they answer would lack it.
        """
        for place, content in enumerate(read_json(files.path, "data")["data"]):
            turn, where = 0, f"{files.path}: data[{place}]"
            try:
                name = text_of(content, "id")
                texts: tuple[str, ...] = (text_of(content, "story"),)
                for turn in range(len(content["questions"])):
                    question = _turn(content["questions"], turn)
                    further = {} if teach else content.get("additional_answers", {})
                    answers = [
                        _turn(content["answers"], turn),
                        *_further_answers(further, turn, f"{where}.additional_answers", rejects),
                    ]
                    texts = (*texts, question)
                    yield f"{name}#{turn + 1}", texts, answers
                    texts = (*texts, answers[0])
            except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
                rejects(f"{where}: turn {turn + 1} and those after it: {_said(error)}")

    def _id_rows(self, files: DialogueFiles, rejects: Rejects) -> Iterator[tuple[str, tuple[str, ...], list[str]]]:
        """The same of the original release's rows, which have no names: the line stands for the story's id."""
        for row in read_id_sources(files.path, self._tokenizer, rejects):
            if row.knowledge and row.target:
                yield f"{row.number}#{(len(row.segments) + 1) // 2}", (row.knowledge, *row.segments), [row.target]
            else:
                rejects(f"{files.path}:{row.number}: has no {'tgt' if row.knowledge else 'knowledge'}")

    def source(self, tokens: Tokens) -> PackedText:
        story, *utterances = tokens.texts
        return dialogue(story, utterances, tokens.limit)

    def text_rows(self, tokens: Tokens) -> int:
        source = 1 + sum(min(len(text) + 1, tokens.limit - 1) for text in tokens.texts)
        return source + (self._rows_of_search(tokens) or self._longest_target)

    def score(self, answers: Sequence[Any], examples: Sequence[Example]) -> dict[str, float]:
        return coqa_scores(answers, [example.label for example in examples])._asdict()

    def judge(self, answers: Sequence[Any], examples: Sequence[Example]) -> list[Judged]:
        """The F1 of each answer alone."""
        pairs = [(answer, example.label) for answer, example in zip(answers, examples, strict=True)]
        return [Judged(answer, "\n".join(labels), coqa_scores([answer], [labels]).f1) for answer, labels in pairs]

    def predictions(self, answers: Sequence[Any], examples: Sequence[Example]) -> str:
        """The file that CoQA's evaluation takes."""
        rows = []
        for example, answer in zip(examples, answers, strict=True):
            story, _, turn = example.name.rpartition("#")
            rows.append({"id": story, "turn_id": int(turn), "answer": answer})
        return json.dumps(rows)


def _further_answers(annotators: dict[str, Any], turn: int, where: str, rejects: Rejects) -> Iterator[str]:
    """What the other annotators answer; one who has left out a turn is left out there."""
    for annotator, items in annotators.items():
        try:
            yield _turn(items, turn)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            rejects(f"{where}.{annotator}: turn {turn + 1}: {_said(error)}")


def _said(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError | IndexError) else str(error)


def _turn(items: Any, number: int) -> str:
    """What is said in a turn."""
    if items[number]["turn_id"] != number + 1:
        raise ValueError(f"turn_id is {items[number]['turn_id']!r}, expected {number + 1}")
    return text_of(items[number], "input_text")
