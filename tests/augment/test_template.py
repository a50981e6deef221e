"""Filling holes, and the forms of words."""

import pytest

from unimo_ds.augment.inflection import article, plural
from unimo_ds.augment.template import Template


def hole(text: str, word: str) -> tuple[int, int]:
    start = text.index(word)
    return start, start + len(word)


@pytest.mark.parametrize(
    ("text", "word", "new", "filled"),
    [
        ("An orange ball.", "orange", "red", "A red ball."),
        ("We see a ball.", "ball", "apple", "We see an apple."),
        ("A red ball.", "ball", "apple", "A red apple."),
        ("Dogs run.", "Dogs", "cats", "Cats run."),
        ("In a room, a cup.", "In a room", "at the beach", "At the beach, a cup."),
        ("A panda on a mat.", "mat", "old rug", "A panda on an old rug."),
        ("Cuba on a mat.", "mat", "umbrella", "Cuba on an umbrella."),
    ],
)
def test_fills_a_hole(text: str, word: str, new: str, filled: str) -> None:
    result = Template(text, [hole(text, word)]).fill([new])
    assert result is not None
    assert result[0] == filled
    assert result[0][slice(*result[1])].lower() == new


def test_fills_several_holes_and_tells_the_first() -> None:
    text = "A drum left of a boat, and a cup on the boat."
    boats = [(text.index("boat"), text.index("boat") + 4), (text.rindex("boat"), text.rindex("boat") + 4)]
    for spans, place in ((boats, "old apple,"), (boats[::-1], "old apple.")):
        result = Template(text, spans).fill(["old apple"] * 2)
        assert result is not None
        assert result[0] == "A drum left of an old apple, and a cup on the old apple."
        assert result[0][result[1][0] : result[1][1] + 1] == place


@pytest.mark.parametrize(("word", "new"), [("small", "orange"), ("ball", "orange"), ("left", "ball")])
def test_says_no_word_twice(word: str, new: str) -> None:
    text = "A small orange ball left of it."
    assert Template(text, [hole(text, word)]).fill([new]) is None


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("apple", "an"),
        ("ball", "a"),
        ("orange cup", "an"),
        ("umbrella", "an"),
        ("uniform", "a"),
        ("unicorn", "a"),
        ("uninvited guest", "an"),
        ("used car", "a"),
        ("hour", "an"),
        ("house", "a"),
        ("European", "a"),
        ("one-way street", "a"),
    ],
)
def test_article(word: str, expected: str) -> None:
    assert article(word) == expected


@pytest.mark.parametrize(
    ("noun", "expected"),
    [
        ("cup", "cups"),
        ("box", "boxes"),
        ("bench", "benches"),
        ("city", "cities"),
        ("key", "keys"),
        ("man", "men"),
        ("fish", "fish"),
        ("space suit", "space suits"),
    ],
)
def test_plural(noun: str, expected: str) -> None:
    assert plural(noun) == expected
