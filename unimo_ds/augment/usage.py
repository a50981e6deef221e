"""Which nouns a corpus uses alike: what can stand for what in a sentence."""

from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from unimo_ds.augment.vocabulary import Vocabulary

# N nouns, F features by which they are compared

_MOST_FEATURES = 1_000


class NounUsage:
    """How alike nouns are used: the cosine of their counts with attributes, relations and articles, square roots taken.

    Args:
        vocabulary: of the corpus.
        nouns: those to compare, [N].
    """

    def __init__(self, vocabulary: Vocabulary, nouns: Sequence[str]) -> None:
        self._place = {noun: place for place, noun in enumerate(nouns)}
        counts: Counter[tuple[str, str]] = Counter()
        for key, count in chain(vocabulary.slots.items(), vocabulary.noun_attributes.items(), vocabulary.uses.items()):
            counts[key[0], " ".join(key[1:])] += count
        totals: Counter[str] = Counter()
        for (_, feature), count in counts.items():
            totals[feature] += count
        column = {feature: place for place, (feature, _) in enumerate(sorted(totals.items(), key=by_count)[:_MOST_FEATURES])}
        features_NF = np.zeros((len(nouns), len(column)), np.float32)
        for (noun, feature), count in counts.items():
            if noun in self._place and feature in column:
                features_NF[self._place[noun], column[feature]] = count**0.5
        norms_N1 = np.linalg.norm(features_NF, axis=1, keepdims=True)
        self._features_NF = features_NF / np.maximum(norms_N1, 1.0)

    def alike(self, noun: str) -> npt.NDArray[np.float32]:
        """The cosine with each noun, [N]; 0 for one that the vocabulary has not."""
        if noun not in self._place:
            return np.zeros(len(self._features_NF), np.float32)
        alike_N: npt.NDArray[np.float32] = self._features_NF @ self._features_NF[self._place[noun]]
        return alike_N


def by_count(item: tuple[Any, int]) -> tuple[int, Any]:
    """Sorts by count, frequent first, and equal counts by key, so that the order does not depend on who counted first."""
    return -item[1], item[0]
