"""What single answers are worth, against formulas in float64; and which of them a report shows."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers import WordsTokenizer
from tests.tasks.test_losses import sentences
from unimo_ds.config import CaptioningSection, WritingSection
from unimo_ds.metrics.captions import caption_scores
from unimo_ds.metrics.ptb import tokenize
from unimo_ds.tasks.entailment import Entailment
from unimo_ds.tasks.report import ReportSet, best_and_worst, render_report
from unimo_ds.tasks.task import Example, Judged, Task
from unimo_ds.tasks.vqa import Vqa
from unimo_ds.tasks.writing import Captioning, TextWriting


def labelled(labels: list[Any]) -> list[Example]:
    return [Example(str(number), (f"text {number}",), label=label) for number, label in enumerate(labels)]


@pytest.mark.parametrize("task", [sentences(["a", "b", "c"]), Entailment(WordsTokenizer())], ids=["sentences", "entailment"])
def test_a_class_is_worth_1_where_it_is_right(task: Task[Any]) -> None:
    scores, labels = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32), [0, 1, 2] * 3
    judged = task.judge(list(scores), labelled(labels))
    assert np.mean([each.worth for each in judged]) == pytest.approx(task.score(list(scores), labelled(labels))["accuracy"])
    for row, label, each in zip(scores.astype(float).tolist(), labels, judged, strict=True):
        assert each.belief == pytest.approx(math.exp(row[label]) / sum(map(math.exp, row)), abs=1e-9)
        assert each.worth == float(max(row) == row[label]) == float(each.answer == each.truth)


def test_a_number_is_worth_minus_its_squared_error() -> None:
    answers = [np.array([number], np.float32) for number in (1.5, 4.25)]
    assert sentences([]).judge(answers, labelled([2.0, 4.25])) == [
        Judged("1.500", "2", -0.25),
        Judged("4.250", "4.25", 0.0),
    ]


def test_an_answer_is_worth_its_soft_score() -> None:
    task = Vqa(["cat", "dog", "bird"])
    given = [["cat"] * 3 + ["Dog"] * 7, ["zebra"] * 10]
    answers = [np.array(row, np.float32) for row in ([[0, 1], [0.9, 0.25]], [[2, 0], [0.8, 0.5]])]  # answers, probabilities
    first, second = task.judge(answers, labelled(given))
    assert (first.answer, first.truth, first.worth) == ("cat", "dog (7 of 10), cat (3 of 10)", pytest.approx(0.9))
    assert first.belief == 0.25, "that of what most people said"
    assert second == Judged("bird", "zebra (10 of 10)", 0.0, 0.0)
    assert (first.worth + second.worth) / 2 == pytest.approx(task.score(answers, labelled(given))["accuracy"])


def captioning() -> Captioning:
    files = {"path": "none", "regions": "none"}
    section = CaptioningSection.model_validate({"family": "captioning", "train": files, "dev": {"dev": files}})
    return Captioning(section, WordsTokenizer())  # type: ignore[arg-type]


def writing(metric: str) -> TextWriting:
    files = {"path": "none"}
    section = {"family": "writing", "metric": metric, "train": files, "dev": {"dev": files}, "decoding": {"longest": 9}}
    return TextWriting(WritingSection.model_validate(section), WordsTokenizer())  # type: ignore[arg-type]


CAPTIONS = ["A red bus stops here.", "Two dogs run.", "A bus."]
TRUE = [["A red bus stops.", "The bus is red."], ["A dog runs."], ["Nobody is here at all."]]


def test_captions_are_worth_their_part_in_the_sets_cider() -> None:
    judged = captioning().judge(CAPTIONS, labelled(TRUE))
    assert np.mean([each.worth for each in judged]) == pytest.approx(caption_scores(CAPTIONS, TRUE)["cider_d"])
    assert max(judged, key=lambda each: each.worth) == judged[0] and judged[0].truth == "A red bus stops.\nThe bus is red."
    assert judged[2].worth == 0.0


def test_texts_are_worth_their_own_rouge_or_bleu() -> None:
    """ROUGE-L by hand: of 5 words and 4, 4 in common. BLEU-4 by hand: clipped precisions, no brevity penalty."""
    (judged,) = writing("rouge").judge(["a red bus stops here"], labelled(["a red bus stops"]))
    assert judged.worth == pytest.approx(2 * (4 / 5) * (4 / 4) / (4 / 5 + 4 / 4))
    (judged,) = writing("bleu").judge(["a red bus stops here"], labelled(["a red bus stops"]))
    assert judged.worth == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25, abs=1e-6)
    assert tokenize("a red bus stops here") == ["a", "red", "bus", "stops", "here"]


def test_java_scores_are_asked_for_by_evaluate_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    lines = ["METEOR needs the package pycocoevalcap: pip install 'unimo_ds[captions]'"]
    lines.append(lines[0].replace("METEOR", "SPICE"))
    assert captioning().further_scores(CAPTIONS, labelled(TRUE)) == ({}, lines)
    assert writing("bleu").further_scores(["a bus"], labelled(["a bus"])) == ({}, lines[:1])
    assert writing("rouge").further_scores(["a bus"], labelled(["a bus"])) == ({}, [])
    assert Entailment(WordsTokenizer()).further_scores([], []) == ({}, [])  # type: ignore[arg-type]


def test_the_best_and_the_worst_are_ordered_and_never_the_same() -> None:
    answers = [(1.0, 0.9), (0.0, 0.2), (1.0, 0.99), (0.0, 0.01), (0.3, 0.5)]
    judged = [Judged("a", "b", worth, belief) for worth, belief in answers]
    assert best_and_worst(judged, most=2) == ([2, 0], [3, 1])
    assert best_and_worst(judged, most=9) == ([2, 0, 4], [3, 1])
    assert best_and_worst(judged[:1]) == ([0], [])
    assert best_and_worst([]) == ([], [])


def test_a_set_without_labels_and_what_looks_like_a_tag() -> None:
    judged = [Judged("<script>", "a & b", 1.0)]
    sets = [ReportSet("dev", {"accuracy": 1.0}, labelled([0]), judged), ReportSet("other", {}, labelled([None, None]), [])]
    page = render_report("run", Path("checkpoint"), "accuracy", sets, ["METEOR needs Java"], None)
    assert "&lt;script&gt;" in page and "<script>" not in page and "a &amp; b" in page
    assert "2 examples, not all of which have labels: there is nothing to judge answers by" in page
    assert "METEOR needs Java" in page and "--images" not in page, "there is no image to miss"
