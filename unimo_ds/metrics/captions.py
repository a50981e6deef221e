"""Scores of generated sentences against several references, as the COCO caption evaluation (`pycocoevalcap`) computes them.

`caption_scores` takes raw captions; the others take words: `ptb.tokenize(text)` of raw text, `text.split()` of tokenised text.
METEOR and SPICE, which are Java programs, are in `java`.
"""

import math
from collections import Counter
from collections.abc import Sequence
from statistics import fmean

from unimo_ds.metrics.paired import Words, check_several, check_words
from unimo_ds.metrics.ptb import tokenize

_LENGTHS = (1, 2, 3, 4)  # of n-grams
_RECALL_WEIGHT = 1.2  # beta of ROUGE-L: recall counts this many times as much as precision
_LENGTH_SPREAD = 6.0  # sigma of CIDEr-D's penalty for another length

Ngram = tuple[str, ...]
Weights = dict[Ngram, float]


def caption_scores(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """BLEU-1 to 4, ROUGE-L and CIDEr-D of raw captions; references: several captions an image."""
    check_several(predictions, references)
    words = [tokenize(prediction) for prediction in predictions]
    reference_words = [[tokenize(reference) for reference in several] for several in references]
    return {
        **{f"bleu_{longest}": score for longest, score in zip(_LENGTHS, bleu(words, reference_words), strict=True)},
        "rouge_l": rouge_l(words, reference_words),
        "cider_d": cider_d(words, reference_words),
    }


def bleu(predictions: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """BLEU-1, 2, 3 and 4 of a whole corpus, with the reference of the closest length (Papineni et al., 2002).

    BLEU-N is the geometric mean of the clipped n-gram precisions up to N, times exp(1 - reference length / length) where the
    predictions are shorter in all. There is no smoothing, but as in the official code numerators are 1e-15 larger and
    denominators 1e-9, so that nothing is 0 / 0.
    """
    check_words(predictions, references)
    precisions = [_clipped_precision(predictions, references, n) for n in _LENGTHS]
    length = sum(map(len, predictions))
    ratio = (length + 1e-15) / (sum(map(_closest_length, predictions, references)) + 1e-9)
    brevity = math.exp(min(0.0, 1 - 1 / ratio))
    return [brevity * math.prod(precisions[:n]) ** (1 / n) for n in _LENGTHS]


def rouge_l(predictions: Sequence[Words], references: Sequence[Sequence[Words]]) -> float:
    """Mean over items of ROUGE-L with beta 1.2 (Lin, 2004): F of the longest common subsequence with each reference.

    As in the official code the best precision and the best recall may come from different references, and a text without words
    counts as one empty word.
    """
    check_words(predictions, references)
    return fmean(map(_rouge_l, predictions, references))


def cider_d(predictions: Sequence[Words], references: Sequence[Sequence[Words]]) -> float:
    """CIDEr-D of a corpus, from 0 to 10 (Vedantam et al., 2015, section 5 and its CIDEr-D), with these references' frequencies.

    What all images' references say weighs nothing: the score means something for many images only, and is 0 for one.
    """
    return fmean(cider_d_each(predictions, references))


def cider_d_each(predictions: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """CIDEr-D of each image, whose mean is `cider_d`."""
    check_words(predictions, references)
    images = len(references)
    frequency = Counter(ngram for several in references for ngram in _all_ngrams(several))

    def weights(words: Words, n: int) -> Weights:
        return {ngram: count * math.log(images / max(1, frequency[ngram])) for ngram, count in _ngrams(words, n).items()}

    def similarity(words: Words, reference: Words) -> float:
        cosine = fmean(_clipped_cosine(weights(words, n), weights(reference, n)) for n in _LENGTHS)
        longer = len(words[1:]) - len(reference[1:])  # the official code counts bigrams: a lone word is as long as none
        return cosine * math.exp(-(longer**2) / (2 * _LENGTH_SPREAD**2))

    return [
        10 * fmean(similarity(words, reference) for reference in several)
        for words, several in zip(predictions, references, strict=True)
    ]


def _ngrams(words: Words, n: int) -> Counter[Ngram]:
    return Counter(zip(*(words[start:] for start in range(n)), strict=False))


def _all_ngrams(references: Sequence[Words]) -> set[Ngram]:
    return {ngram for reference in references for n in _LENGTHS for ngram in _ngrams(reference, n)}


def _clipped_precision(predictions: Sequence[Words], references: Sequence[Sequence[Words]], n: int) -> float:
    """Share of all n-grams that a reference has too, each counted at most as often as in the one that has it most often."""
    shared = total = 0
    for words, several in zip(predictions, references, strict=True):
        counts = _ngrams(words, n)
        most: Counter[Ngram] = Counter()
        for reference in several:
            most |= _ngrams(reference, n)
        shared += (counts & most).total()
        total += counts.total()
    return (shared + 1e-15) / (total + 1e-9)


def _closest_length(words: Words, references: Sequence[Words]) -> int:
    """Of two lengths equally far the shorter."""
    return min(map(len, references), key=lambda length: (abs(length - len(words)), length))


def _rouge_l(words: Words, references: Sequence[Words]) -> float:
    words, *references = (some or [""] for some in (words, *references))
    common = [_longest_common_subsequence(words, reference) for reference in references]
    precision = max(common) / len(words)
    recall = max(length / len(reference) for length, reference in zip(common, references, strict=True))
    weight = _RECALL_WEIGHT**2
    return (1 + weight) * precision * recall / (recall + weight * precision) if precision else 0.0


def _longest_common_subsequence(first: Words, second: Words) -> int:
    """Its length, by the usual table of prefixes, of which one row is kept."""
    row = [0] * (len(second) + 1)
    for word in first:
        above, row = row, [0]
        for column, other in enumerate(second):
            row.append(above[column] + 1 if word == other else max(above[column + 1], row[column]))
    return row[-1]


def _clipped_cosine(weights: Weights, reference: Weights) -> float:
    """Cosine in which no n-gram counts for more than its weight in the reference; 0.0 where one of the two is all zeros."""
    product = sum(min(weight, reference.get(ngram, 0.0)) * reference.get(ngram, 0.0) for ngram, weight in weights.items())
    norms = math.hypot(*weights.values()) * math.hypot(*reference.values())
    return product / norms if norms else 0.0
