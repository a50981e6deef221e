"""Which texts are tried as positives, and which captions of other images are kept as negatives."""

from collections import Counter

from unimo_ds.augment.sentence import _candidates, plain


def candidates(text: str, *variants: str) -> dict[str, tuple[int, int] | None]:
    return {candidate.text: candidate.changed for candidate in _candidates(0, text, variants, Counter())}


def test_a_back_translation_is_tried_whole_and_piece_by_piece() -> None:
    text = "A large cup on the bed, below a red lamp."
    found = candidates(text, "A big mug on the bed, under a red lamp.")
    assert list(found) == [
        "A big mug on the bed, under a red lamp.",
        "A big mug on the bed, below a red lamp.",
        "A large cup on the bed, under a red lamp.",
    ]
    for changed_text, changed in found.items():
        if changed:
            start, end = changed
            assert text.startswith(changed_text[:start]) and text.endswith(changed_text[end:])
            assert changed_text[start:end] in ("big mug", "under")


def test_pieces_agree_with_the_caption_in_articles_and_first_letter() -> None:
    assert candidates("A huge cup.", "Enormous some cup.") == {"Enormous some cup.": None}
    assert list(candidates("A huge cup fell.", "An enormous cup falls.")) == [
        "An enormous cup falls.",
        "An enormous cup fell.",
        "A huge cup falls.",
    ]
    assert "Big cups on beds" in candidates("Large cups on beds", "big cups upon the white beds")


def test_a_bare_preposition_is_no_piece_but_in_a_side() -> None:
    assert list(candidates("A cat looks to the right.", "A dog looks on the right."))[1:] == ["A dog looks to the right."]
    assert "A cat is on the left of a dog." in candidates("A cat is to the left of a dog.", "A fox is on the left of a dog.")


def test_what_equals_the_caption_or_another_is_counted() -> None:
    rejects: Counter[str] = Counter()
    texts = [candidate.text for candidate in _candidates(0, "A cup.", ["a cup!", "A mug.", "a MUG", "..."], rejects)]
    assert texts == ["A mug."]
    assert rejects == {"positive equals caption": 1, "positive equals another": 1, "positive is empty": 1}


def test_plain_leaves_only_the_words() -> None:
    assert plain("A  three-legged Cup, isn't it?") == plain("a three legged cup isn t it")
