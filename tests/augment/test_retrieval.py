"""Objects, words and sentences: the vectors that are compared, against their formulas in float64."""

import math
from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest

from tests.helpers import random_regions
from unimo_ds.augment import retrieval
from unimo_ds.augment.retrieval import (
    ObjectRows,
    content_words,
    fingerprint,
    image_vectors,
    inverse_document_frequency,
    iterate_sentences,
    object_weights,
    split_sentences,
    text_vectors,
)
from unimo_ds.regions import Regions


def regions_of(ids: list[list[int]], probabilities: list[list[float]]) -> Regions:
    count, kept = len(ids), len(ids[0]) if ids else 4
    empty = random_regions(np.random.default_rng(0), count, kept=kept)
    shape = (count, kept)
    classes = np.array(ids, "u2").reshape(shape), np.array(probabilities, "f2").reshape(shape)
    return Regions(
        200, 160, empty.boxes_R4, empty.features_RF, *classes, empty.attribute_ids_R, empty.attribute_probabilities_R
    )


def test_a_class_weighs_what_its_surest_region_says() -> None:
    regions = regions_of([[3, 0], [3, 7], [0, 9], [7, 5]], [[0.5, 0.25], [0.75, 0.125], [1, 0.0625], [0.25, 0.03125]])
    classes, weights = object_weights(regions)
    assert classes.tolist() == [3, 7, 9]  # not background, and not class 5, which is below 0.05
    assert weights.tolist() == [0.75, 0.25, 0.0625]


def test_ten_boxes_of_one_object_weigh_as_one() -> None:
    one, ten = regions_of([[3, 4]] * 2, [[0.75, 0.125]] * 2), regions_of([[3, 4]] * 10, [[0.75, 0.125]] * 10)
    assert all((a == b).all() for a, b in zip(object_weights(one), object_weights(ten), strict=True))


def plain_vectors(rows: list[Regions], collection: list[Regions], width: int) -> npt.NDArray[np.float64]:
    """IDF-weighted unit vectors of `rows`, a number at a time."""

    def weights(regions: Regions) -> npt.NDArray[np.float64]:
        found = np.zeros(width)
        for ids, probabilities in zip(regions.class_ids_RK, regions.class_probabilities_RK, strict=True):
            for number, probability in zip(ids.tolist(), probabilities.tolist(), strict=True):
                if number > 0 and probability >= 0.05:
                    found[number] = max(found[number], probability)
        return found

    frequencies, count = sum(weights(regions) for regions in collection), len(collection)
    idf = np.array([math.log(1 + (count - n + 0.5) / (n + 0.5)) for n in frequencies])
    vectors = np.array([weights(regions) * idf for regions in rows])
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)


def test_vectors_of_images_follow_the_formula() -> None:
    rng = np.random.default_rng(0)
    empty, background = random_regions(rng, 0), regions_of([[0, 0]], [[0.75, 0.25]])
    queries = [*(random_regions(rng, 3) for _ in range(8)), empty]
    images = [*(random_regions(rng, 5) for _ in range(30)), background]
    rows = ObjectRows(), ObjectRows()
    for regions in [*queries, None]:
        rows[0].append(regions)
    for regions in images:
        rows[1].append(regions)
    found = [matrix.toarray() for matrix in image_vectors(*rows)]
    np.testing.assert_allclose(found[0][:-1], plain_vectors(queries, images, found[0].shape[1]), atol=1e-6)
    np.testing.assert_allclose(found[1], plain_vectors(images, images, found[1].shape[1]), atol=1e-6)
    assert not found[0][-2:].any() and not found[1][-1].any()  # nothing, unreadable; only background


def test_rare_classes_weigh_more_and_none_weighs_nothing() -> None:
    idf = inverse_document_frequency([0, 1, 50, 99, 100], 100)
    assert (np.diff(idf) < 0).all() and idf[-1] > 0


def test_one_picture_under_two_keys_has_one_fingerprint() -> None:
    one, same, other = (random_regions(np.random.default_rng(seed), 6) for seed in (0, 0, 1))
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)


def plain_bm25(caption: str, sentence: str, sentences: list[str]) -> float:
    known = [content_words(text) for text in sentences]
    mean = sum(map(len, known)) / len(known)
    counts = Counter(content_words(sentence))
    total = 0.0
    for word in set(content_words(caption)):
        n, tf = sum(word in text for text in known), counts[word]
        idf = math.log(1 + (len(known) - n + 0.5) / (n + 0.5))
        total += idf * tf * 2.2 / (tf + 1.2 * (0.25 + 0.75 * sum(counts.values()) / mean)) if tf else 0.0
    return total


def random_texts(rng: np.random.Generator, count: int) -> list[str]:
    vocabulary = ["the", "of", "and", "with", *(f"noun{number}x" for number in range(20))]
    return [" ".join(rng.choice(vocabulary, int(rng.integers(3, 15)))) for _ in range(count)]


def test_the_inner_product_of_texts_is_bm25() -> None:
    rng = np.random.default_rng(0)
    captions, sentences = [*random_texts(rng, 12), "nothing known here", "of the and"], random_texts(rng, 40)
    queries, items = text_vectors(captions, sentences)
    scores = (queries @ items.T).toarray()
    expected = [[plain_bm25(caption, sentence, sentences) for sentence in sentences] for caption in captions]
    np.testing.assert_allclose(scores, expected, rtol=2e-6, atol=1e-6)
    assert scores[:12].any() and not scores[12:].any()


def test_a_word_of_too_many_sentences_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    sentences = [f"a table {word}" for word in ("red", "green", "blue", "brown")]
    for least, found in ((3, [False, True]), (4, [True, True])):
        monkeypatch.setattr(retrieval, "_COMMON_WORD", (least, 0.5))
        queries, items = text_vectors(["table", "red"], sentences)
        assert (queries @ items.T).toarray().any(axis=1).tolist() == found


@pytest.mark.parametrize("sentences", [[], ["of the and"], ["a"]], ids=["none", "stop words", "a letter"])
def test_sentences_without_content_find_nothing(sentences: list[str]) -> None:
    queries, items = text_vectors(["a red cup"], sentences)
    assert queries.shape[0] == 1 and items.shape[0] == len(sentences) and not (queries @ items.T).toarray().any()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The red cups are on a table.", ["red", "cup", "table"]),
        ("Cities, ponies & BUSES!", ["city", "pony", "buse"]),
        ("glass octopus shoes trees", ["glass", "octopus", "shoe", "tree"]),
        ("A dog's x-ray: 12 o'clock", ["dog", "ray", "12", "clock"]),
        ("Café über naïve", ["café", "über", "naïve"]),
        ("is of the", []),
    ],
)
def test_content_words(text: str, words: list[str]) -> None:
    assert content_words(text) == words


@pytest.mark.parametrize(
    ("document", "sentences"),
    [
        ("One is here. Two is there! Is three? Yes", ["One is here.", "Two is there!", "Is three?", "Yes"]),
        ("Dr. Fox met J. R. Doe in the U.S. Army. They ate.", ["Dr. Fox met J. R. Doe in the U.S. Army.", "They ate."]),
        ("It costs 3.50 a piece. 12 are sold.", ["It costs 3.50 a piece.", "12 are sold."]),
        ('"Come in." He came. (It rained.) So what?', ['"Come in."', "He came.", "(It rained.)", "So what?"]),
        ("He said hello. and left ... at once.", ["He said hello. and left ... at once."]),
        ("A line\nof a \t text.\u2028Next one.", ["A line of a text.", "Next one."]),
        ("  ", []),
        ("No end", ["No end"]),
        ("They went to (e.g. Paris). Él llegó.", ["They went to (e.g. Paris).", "Él llegó."]),
    ],
)
def test_sentences_of_a_document(document: str, sentences: list[str]) -> None:
    assert split_sentences(document) == sentences


def test_only_sentences_of_5_to_50_words_are_taken() -> None:
    sentences = [" ".join(["word"] * count) + " ." for count in (4, 5, 50, 51)]
    assert list(iterate_sentences(sentences)) == sentences[1:3]
