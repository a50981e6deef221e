"""BLEU, ROUGE-L, CIDEr-D and the words they count, against pycocoevalcap."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.metrics.official import official
from unimo_ds.metrics.captions import bleu, caption_scores, cider_d, rouge_l
from unimo_ds.metrics.ptb import tokenize

quick = settings(deadline=None, derandomize=True, max_examples=60)
sentence = st.lists(st.sampled_from(["a", "man", "dog", "on", "the", "bus"]), min_size=1, max_size=7)
corpus = st.lists(st.tuples(sentence, st.lists(sentence, min_size=1, max_size=3)), min_size=1, max_size=5)
KEPT = official("captions")
BY_JAVA = {"meteor"}


@pytest.mark.parametrize("case", KEPT["tokens"], ids=lambda case: case["caption"])
def test_words_are_those_of_the_official_tokenizer(case: dict[str, Any]) -> None:
    assert tokenize(case["caption"]) == case["tokens"]


@pytest.mark.parametrize("case", KEPT["scores"], ids=lambda case: case["name"])
def test_scores_of_raw_captions_are_the_official_ones(case: dict[str, Any]) -> None:
    scores = caption_scores(case["predictions"], case["references"])
    assert scores == pytest.approx(
        {name: case[name] for name in case.keys() - {"name", "predictions", "references"} - BY_JAVA}, abs=1e-9
    )


@quick
@given(corpus, st.randoms())
def test_scores_are_bounded_and_blind_to_order(items: list[tuple[list[str], list[list[str]]]], random: Any) -> None:
    shuffled = [(words, random.sample(several, len(several))) for words, several in random.sample(items, len(items))]
    predictions, references = zip(*items, strict=True)
    for scores, highest in ((bleu, 1), (lambda *of: [rouge_l(*of)], 1), (lambda *of: [cider_d(*of)], 10)):
        found = scores(predictions, references)
        assert all(0 <= score <= highest + 1e-9 for score in found)
        assert scores(*zip(*shuffled, strict=True)) == pytest.approx(found)


@quick
@given(st.lists(sentence.filter(lambda words: len(words) > 3), min_size=1, max_size=5))
def test_perfect_captions_have_perfect_scores(captions: list[list[str]]) -> None:
    references = [[["something", "else", "is", "here"], words] for words in captions]
    assert bleu(captions, references) == pytest.approx([1, 1, 1, 1])
    assert rouge_l(captions, references) == pytest.approx(1)


def test_cider_of_perfect_captions_is_ten_where_no_two_images_share_a_word() -> None:
    captions = [["a", "red", "bus", "stops"], ["two", "dogs", "run", "fast"]]
    assert cider_d(captions, [[words] for words in captions]) == pytest.approx(10)


def test_what_every_image_shows_weighs_nothing() -> None:
    assert cider_d([["a", "dog"]] * 2, [[["a", "dog"]]] * 2) == 0


def test_bleu_by_hand() -> None:
    """Two of three words, one of two pairs; the closest reference is one word longer."""
    found = bleu([["the", "big", "dog"]], [[["the", "big", "cat", "sleeps"], ["a"]]])
    brevity = 2.718281828459045 ** (1 - 4 / 3)
    assert found[:2] == pytest.approx([brevity * 2 / 3, brevity * (2 / 3 * 1 / 2) ** 0.5], abs=1e-8)


@pytest.mark.parametrize("score", [bleu, rouge_l, cider_d])
def test_captions_that_cannot_be_scored(score: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="2 predictions but 1 references"):
        score([["a"], ["b"]], [[["a"]]])
    with pytest.raises(ValueError, match="nothing to score"):
        score([], [])
    with pytest.raises(ValueError, match="item 0: has no reference"):
        score([["a"]], [[]])
    with pytest.raises(ValueError, match="item 1: a list of words is expected, not a text: 'a dog'"):
        score([["a"], ["b"]], [[["a"]], [["b"], "a dog"]])


def test_raw_captions_have_lists_of_references() -> None:
    with pytest.raises(ValueError, match="item 0: a list of references is expected, not one text: 'a dog'"):
        caption_scores(["a dog"], ["a dog"])


@quick
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text_has_words_without_spaces_and_capitals(text: str) -> None:
    assert all(word and word == word.lower() and not any(map(str.isspace, word)) for word in tokenize(text))
