"""ROUGE of summaries against kept numbers of rouge-score, and how sentences are cut."""

import sys
from typing import Any

import pytest

from tests.metrics.official import official
from unimo_ds.errors import UnimoError
from unimo_ds.metrics.summaries import rouge, sentence_lines

KEPT = official("summaries")
KINDS = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL", "rouge_lsum": "rougeLsum"}


@pytest.mark.parametrize("case", KEPT, ids=lambda case: repr(case["prediction"][:20]))
def test_scores_are_those_of_the_kept_version(case: dict[str, Any]) -> None:
    expected = {name: case[kind] for name, kind in KINDS.items()}
    assert rouge([case["prediction"]], [case["reference"]]) == pytest.approx(expected, abs=1e-9)


def test_scores_are_means_over_summaries() -> None:
    found = rouge([case["prediction"] for case in KEPT], [case["reference"] for case in KEPT])
    assert found == pytest.approx(
        {name: sum(case[kind] for case in KEPT) / len(KEPT) for name, kind in KINDS.items()}, abs=1e-9
    )


def test_words_are_compared_by_their_stems() -> None:
    assert rouge(["He was jumping."], ["he was jumped"])["rouge_2"] == 1


def test_the_order_of_sentences_counts_for_rouge_l_alone() -> None:
    scores = rouge(["The dog barks. A cat sleeps."], ["A cat sleeps. The dog barks."])
    assert scores["rouge_l"] == 0.5 and scores["rouge_lsum"] == 1


@pytest.mark.parametrize(
    ("summary", "lines"),
    [
        ("One. Two! Three?", "One.\nTwo!\nThree?"),
        ("one . two .", "one .\ntwo ."),
        ("One. Two.\nThree.", "One. Two.\nThree."),
        ("It cost 3.50 at 10:30", "It cost 3.50 at 10:30"),
        ("One. Two.\n", "One.\nTwo.\n"),
        ("", ""),
    ],
)
def test_sentences_are_cut_where_there_are_no_lines_yet(summary: str, lines: str) -> None:
    assert sentence_lines(summary) == lines


def test_summaries_that_cannot_be_scored() -> None:
    with pytest.raises(ValueError, match="1 predictions but 2 references"):
        rouge(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="nothing to score"):
        rouge([], [])


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(UnimoError, match=r"^ROUGE needs rouge-score: pip install 'unimo_ds\[tasks\]'$"):
        rouge(["a"], ["a"])
