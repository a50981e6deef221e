"""ROUGE of summaries (Lin, 2004), by the library `rouge-score`.

Papers report the F1 of ROUGE-1.5.5.pl with Porter's stemmer (`-m`), through pyrouge, whose ROUGE-L takes the union of common
subsequences over a summary's sentences. Its number is `rouge_lsum` for CNN/DailyMail, and `rouge_l` for Gigaword, where a
summary is one sentence. The library follows that program; small differences remain, because the program averages over bootstrap
samples and stems irregular words by a table.
"""

import re
from collections.abc import Sequence
from statistics import fmean

from unimo_ds.errors import UnimoError
from unimo_ds.metrics.paired import check_paired

_KINDS = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL", "rouge_lsum": "rougeLsum"}


def rouge(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Mean F1 of ROUGE-1, ROUGE-2, ROUGE-L and ROUGE-Lsum, with Porter stemming.

    Args:
        predictions: summaries, with one sentence a line for ROUGE-Lsum; one without line breaks is cut at its full stops.
        references: one for each.

    Raises:
        UnimoError: `rouge-score` is not installed.
    """
    check_paired(predictions, references)
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise UnimoError("ROUGE needs rouge-score: pip install 'unimo_ds[tasks]'") from error
    scorer = RougeScorer(list(_KINDS.values()), use_stemmer=True)
    scores = [scorer.score(sentence_lines(of), sentence_lines(text)) for text, of in zip(predictions, references, strict=True)]
    return {name: fmean(score[kind].fmeasure for score in scores) for name, kind in _KINDS.items()}


def sentence_lines(summary: str) -> str:
    """A summary with one sentence a line: as it is where it has lines, else cut behind each `.`, `!` or `?` before a space."""
    return summary if "\n" in summary.strip() else re.sub(r"(?<=[.!?])\s+", "\n", summary)
