"""What is compared when neighbours are found: the objects of images, the words of texts; and which sentences a text has.

Images: which classes of objects a picture shows, rare ones weighing more. Texts: Okapi BM25 over content words (Robertson
and Zaragoza, The Probabilistic Relevance Framework: BM25 and Beyond, 2009).
"""

import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash
from scipy.sparse import csr_array
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, CountVectorizer
from sklearn.preprocessing import normalize

from unimo_ds.regions import BACKGROUND, Regions

# I images or items, Q queries, C classes, W words, X numbers of a sparse matrix that are not zero

SHORTEST_SENTENCE, LONGEST_SENTENCE = 5, 50  # words
_LEAST_PROBABILITY = 0.05  # a class that no region is likelier to be is not in the picture: the tails of softmax are noise
_K1, _B = 1.2, 0.75  # BM25: how soon repetition saturates, and how much a long sentence is held against its words
_COMMON_WORD = 10_000, 0.1  # sentences, share of them: a word in more than both is left out

Floats = npt.NDArray[np.float32]


def inverse_document_frequency(frequencies: npt.ArrayLike, documents: int) -> Floats:
    """`ln(1 + (N - n + 1/2) / (n + 1/2))`: Robertson and Sparck Jones' weight, above 0 for every n <= N documents of N."""
    frequencies = np.asarray(frequencies, np.float64)
    weights: Floats = np.log1p((documents - frequencies + 0.5) / (frequencies + 0.5)).astype(np.float32)
    return weights


def object_weights(regions: Regions) -> tuple[npt.NDArray[np.int32], Floats]:
    """The classes of objects that an image shows, ascending, and their weights.

    The weight of a class is the highest probability that any region gives it. A sum over regions would let ten boxes of one
    object drown all else, and detectors do find one object many times; the maximum asks whether the object is there.
    Background does not count, nor does a class below 0.05.
    """
    probabilities_C = np.zeros(int(regions.class_ids_RK.max(initial=BACKGROUND)) + 1, np.float32)
    np.maximum.at(probabilities_C, regions.class_ids_RK, regions.class_probabilities_RK.astype(np.float32))
    probabilities_C[BACKGROUND] = 0
    classes = np.flatnonzero(probabilities_C >= _LEAST_PROBABILITY).astype(np.int32)
    return classes, probabilities_C[classes]


class ObjectRows:
    """Collects which objects images show, an image at a time; 8 bytes for each class of an image, and 8 for the image."""

    def __init__(self) -> None:
        self._classes, self._weights, self._ends = array("i"), array("f"), array("q", [0])
        self.width = 1  # one more than the highest class of any image

    def append(self, regions: Regions | None) -> None:
        """Adds the next image; None: one that cannot be read, which shows nothing."""
        if regions is not None:
            classes, weights = object_weights(regions)
            self._classes.frombytes(classes.tobytes())
            self._weights.frombytes(weights.tobytes())
            self.width = max(self.width, int(classes.max(initial=BACKGROUND)) + 1)
        self._ends.append(len(self._classes))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def matrix(self, width: int) -> Any:
        """The weights, a `csr_array` float32 [I, `width`]."""
        parts = (np.array(self._weights, np.float32), np.array(self._classes, np.int32), np.array(self._ends, np.int64))
        return csr_array(parts, shape=(len(self), width))


def image_vectors(queries: ObjectRows, images: ObjectRows) -> tuple[Any, Any]:
    """Unit vectors of what images show, rare classes weighing more: sparse, [Q, C] and [I, C].

    The inner product of two is the cosine of their IDF-weighted class weights. The document frequency of a class is soft too:
    the sum of its weights over the images that can be found. An image that shows nothing has the zero vector.
    """
    width = max(queries.width, images.width)
    images_IC = images.matrix(width)
    idf_C = inverse_document_frequency(images_IC.sum(axis=0), len(images))
    return _weighted(queries.matrix(width), idf_C), _weighted(images_IC, idf_C)


def _weighted(rows_IC: Any, idf_C: Floats) -> Any:
    rows_IC.data *= idf_C[rows_IC.indices]
    return normalize(rows_IC, copy=False)


def fingerprint(regions: Regions) -> int:
    """64 bits that are equal for two records of one picture, whatever their keys: of all boxes and class distributions."""
    hashed = xxhash.xxh3_64()
    for part in (regions.boxes_R4, regions.class_ids_RK, regions.class_probabilities_RK):
        hashed.update(part.tobytes())
    return hashed.intdigest()


_BREAK = re.compile(r"""[.!?]["'”’)\]]*(\s+)(?=["'“‘(\[]*(.))""")
_ABBREVIATION = re.compile(
    r"mrs?|ms|dr|prof|rev|gen|col|sgt|capt|lt|jr|sr|st|mt|vs|cf|ca|figs?|vol|pp|inc|ltd|co|corp|dept|approx"
    r"|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|[^\W\d_](\.[^\W\d_])*"
)


def split_sentences(document: str) -> list[str]:
    """The sentences of a text, each on one line.

    A sentence ends at a full stop, question or exclamation mark and the quotes or brackets that it closes, before white
    space and anything but a small letter. It does not end at the full stop of an abbreviation (`Dr.`) or initial (`J. R. Doe`,
    `U.S.`): rather one sentence too long than half a sentence.
    """
    sentences, start = [], 0
    for found in _BREAK.finditer(document):
        if found[2].islower() or (found[0][0] == "." and _is_abbreviation(document[start : found.start()])):
            continue
        sentences.append(document[start : found.start(1)])
        start = found.end(1)
    sentences.append(document[start:])
    return [" ".join(sentence.split()) for sentence in sentences if sentence.strip()]


def _is_abbreviation(text: str) -> bool:
    """Whether the full stop behind `text` belongs to its last word."""
    word = text.rsplit(maxsplit=1)[-1] if text.strip() else ""
    return _ABBREVIATION.fullmatch(word.lstrip("\"'“‘([").lower()) is not None


_WORD = re.compile(r"[^\W_]+")


def words(text: str) -> list[str]:
    """The words of a text, in small letters, without punctuation."""
    return _WORD.findall(text.lower())


def is_of_usual_length(sentence: str) -> bool:
    """Whether a sentence has 5 to 50 words (unimo-spec, 5)."""
    return SHORTEST_SENTENCE <= len(words(sentence)) <= LONGEST_SENTENCE


def content_words(text: str) -> list[str]:
    """The words that say what a text is about: no stop words of scikit-learn's list, no single letters; without plural s."""
    return [_singular(word) for word in words(text) if len(word) > 1 and word not in ENGLISH_STOP_WORDS]


@lru_cache(maxsize=1 << 18)
def _singular(word: str) -> str:
    """Harman's S stemmer (How effective is suffixing?, 1991): the plural of most English nouns, and no other ending."""
    if word.endswith("ies") and not word.endswith(("eies", "aies")):
        return word[:-3] + "y"
    if word.endswith("es") and not word.endswith(("aes", "ees", "oes")):
        return word[:-1]
    if word.endswith("s") and not word.endswith(("us", "ss")):
        return word[:-1]
    return word


def text_vectors(captions: Sequence[str], sentences: Sequence[str]) -> tuple[Any, Any]:
    """Sparse vectors [Q, W] of captions and [I, W] of sentences whose inner product is the sentence's BM25 for the caption.

    It is the sum over distinct words w of the caption of `idf(w) tf (k1 + 1) / (tf + k1 (1 - b + b length / mean length))`,
    with tf the count of w in the sentence, lengths in content words, k1 = 1.2 and b = 0.75. Words in more than a tenth of the
    sentences, and in more than 10,000, are left out: they tell sentences apart badly and would take most of the time.

    Memory: 8 bytes for each distinct content word of each text, three times that while they are counted.
    """
    least, share = _COMMON_WORD
    counting = CountVectorizer(analyzer=content_words, dtype=np.float32)
    try:
        counts_IW = csr_array(counting.fit_transform(sentences))
    except ValueError:  # scikit-learn's word for: not one sentence has a content word
        return csr_array((len(captions), 1), dtype=np.float32), csr_array((len(sentences), 1), dtype=np.float32)
    frequencies_W = np.bincount(counts_IW.indices, minlength=counts_IW.shape[1])
    idf_W = inverse_document_frequency(frequencies_W, len(sentences))
    idf_W[frequencies_W > max(least, share * len(sentences))] = 0
    length_I = counts_IW.sum(axis=1)
    saturation_I = _K1 * (1 - _B + _B * length_I / length_I.mean())
    tf_X = counts_IW.data
    counts_IW.data = tf_X * (_K1 + 1) / (tf_X + np.repeat(saturation_I, np.diff(counts_IW.indptr)).astype(np.float32))
    counts_IW.data *= idf_W[counts_IW.indices]
    counts_IW.eliminate_zeros()
    known_QW = csr_array(counting.transform(captions))
    known_QW.data[:] = 1  # a thing that a caption names twice is not twice as important
    return known_QW, counts_IW


def iterate_sentences(documents: Iterable[str]) -> Iterator[str]:
    """The sentences of 5 to 50 words of texts, one after another."""
    return (sentence for document in documents for sentence in split_sentences(document) if is_of_usual_length(sentence))
