"""Scores of short answers: VQA v2, and the exact match and F1 of SQuAD and CoQA."""

import re
import string
from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from unimo_ds.metrics.paired import check_several

# VQA's evaluation mends an answer that lacks one apostrophe of a contraction; "let's" and "she's" are not in its table, because
# "lets" and "shes" are read as they stand, and "somebody'd" is in it the wrong way round.
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
    how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've o'clock
    oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
    someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
    they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd
    where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all
    y'all'd've y'all'll you'd you'd've you'll you're you've
"""
_MENDED = {
    form[: apostrophe.start()] + form[apostrophe.end() :]: form
    for form in _CONTRACTIONS.split()
    for apostrophe in re.finditer("'", form)
} | {"somebody'd": "somebodyd"}
_NUMBER_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBER_WORDS)} | {"none": "0"}
_VQA_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_ENOUGH_ANNOTATORS = 3  # of ten, who gave an answer that is then wholly right


class AnswerScores(NamedTuple):
    """Share of answers that equal a reference, and mean F1 of their words."""

    exact_match: float
    f1: float


def normalize_vqa_answer(answer: str) -> str:
    """An answer as VQA's evaluation compares it (Antol et al., 2015; `vqaEval.py` of the VQA v2 tools).

    Punctuation becomes a space, or nothing where it stands beside a space or where the answer has a comma between digits, so
    that "1,000" is "1000"; a full stop goes unless a digit follows it. Then lower case, number words as digits, no articles,
    and contractions with their apostrophe. (The official code takes out at most 32 full stops, by a slip; this takes out all.)
    """
    answer = re.sub(r"[\n\t]", " ", answer).strip()
    comma_in_number = re.search(r"\d,\d", answer) is not None
    plain = answer
    for mark in _VQA_PUNCTUATION:
        vanishes = comma_in_number or f"{mark} " in answer or f" {mark}" in answer
        plain = plain.replace(mark, "" if vanishes else " ")
    words = (_DIGITS.get(word, word) for word in re.sub(r"\.(?!\d)", "", plain).lower().split())
    return " ".join(_MENDED.get(word, word) for word in words if word not in ("a", "an", "the"))


def vqa_accuracy(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> float:
    """Mean accuracy of VQA v2, as the official tool computes it.

    An answer is right to min(1, n / 3) where n annotators gave it, averaged over the subsets that leave one annotator out.
    Prediction and answers are normalised only where the annotators differ: where all agree, theirs is the only spelling.

    Args:
        predictions: one answer a question.
        answers: the answers of the annotators, ten a question.
    """
    check_several(predictions, answers)
    return fmean(map(_vqa_score, predictions, answers))


def _vqa_score(prediction: str, answers: Sequence[str]) -> float:
    prediction, *answers = (re.sub(r"[\n\t]", " ", text).strip() for text in (prediction, *answers))
    if len(set(answers)) > 1:
        prediction, *answers = map(normalize_vqa_answer, (prediction, *answers))
    return _soft_score(answers.count(prediction), len(answers))


def vqa_soft_targets(answers: Sequence[str]) -> dict[str, float]:
    """Target of each normalised answer of one question: with ten annotators 0.3, 0.6, 0.9, and 1 from four who gave it.

    These are the numbers that LXMERT and UNITER train on, and what `vqa_accuracy` gives each where the annotators differ.
    """
    if not answers:
        raise ValueError("0 answers: there is nothing to make targets of")
    counts = Counter(map(normalize_vqa_answer, answers))
    return {answer: _soft_score(count, len(answers)) for answer, count in counts.items()}


def _soft_score(count: int, annotators: int) -> float:
    """Mean of min(1, n / 3) over the subsets that leave one annotator out, where `count` of all gave the answer."""
    without_one_of_them = min(1.0, (count - 1) / _ENOUGH_ANNOTATORS)
    without_another = min(1.0, count / _ENOUGH_ANNOTATORS)
    return (count * without_one_of_them + (annotators - count) * without_another) / annotators


def normalize_answer(answer: str) -> str:
    """An answer as SQuAD's and CoQA's evaluations compare it: lower case, no ASCII punctuation, no articles, single spaces."""
    bare = answer.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def squad_scores(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> AnswerScores:
    """Exact match and F1 of SQuAD, each the best over an answer's references (Rajpurkar et al., 2016, section 6.1).

    As the script of version 2.0: where a question has no answer its one reference is the empty text. On version 1.1 its script
    differs in one case: where prediction and reference both normalise to nothing, F1 is 0 there and 1 here.
    """
    check_several(predictions, references)
    return _mean(list(map(_best, predictions, references)))


def coqa_scores(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> AnswerScores:
    """Exact match and F1 of CoQA (Reddy et al., 2019, section 6.1; `evaluate-v1.0.py`), the mean over all turns.

    With several references the score is the best over all but one of them, averaged over which is left out: so a person, who is
    one of them, can be scored by the same rule.
    """
    check_several(predictions, references)
    turns = zip(predictions, references, strict=True)
    return _mean([_mean([_best(prediction, some) for some in _all_but_one(several)]) for prediction, several in turns])


def _all_but_one(references: Sequence[str]) -> list[Sequence[str]]:
    if len(references) == 1:
        return [references]
    return [[*references[:left_out], *references[left_out + 1 :]] for left_out in range(len(references))]


def _best(prediction: str, references: Sequence[str]) -> AnswerScores:
    words = normalize_answer(prediction).split()
    each = [normalize_answer(reference).split() for reference in references]
    return AnswerScores(float(words in each), max(_f1(words, reference) for reference in each))


def _f1(words: list[str], reference: list[str]) -> float:
    """Twice the shared words over all words: the harmonic mean of precision and recall."""
    if not words and not reference:
        return 1.0
    return 2 * (Counter(words) & Counter(reference)).total() / (len(words) + len(reference))


def _mean(scores: Sequence[AnswerScores]) -> AnswerScores:
    return AnswerScores(fmean(score.exact_match for score in scores), fmean(score.f1 for score in scores))
