"""Counting a corpus, in parts, and what the counts say."""

from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from unimo_ds.augment.scene_graph import SceneGraph
from unimo_ds.augment.vocabulary import Vocabulary
from unimo_ds.errors import DataError

Read = Callable[..., list[SceneGraph]]

IMAGES = (
    ("A red cup on a table.", "Two red cups and a small box."),
    ("A tiny blue ball left of a red cup.", "A ball to the left of a cup in a meadow."),
    ("Some dogs are running on a sandy beach.", "Hot coffee."),
)


def count(read: Read, images: tuple[tuple[str, ...], ...] = IMAGES) -> Vocabulary:
    vocabulary = Vocabulary()
    for texts in images:
        vocabulary.add(read(*texts))
    return vocabulary


def content(vocabulary: Vocabulary) -> dict[str, dict[tuple[str, ...], int]]:
    return {name: dict(counts) for name, counts in vars(vocabulary).items() if not name.startswith("_")}


def test_counts(read: Read) -> None:
    vocabulary = count(read)
    assert vocabulary.nouns["cup",] == 4
    assert vocabulary.forms["cup", "plural", "cups"] == 1
    assert vocabulary.uses["cup", "a"] == 3
    assert vocabulary.uses["coffee", "bare"] == 1
    assert vocabulary.numbers["two",] == 1
    assert vocabulary.noun_attributes["cup", "red"] == 3
    assert vocabulary.attributes["tiny",] == 1
    assert vocabulary.expressions["left", "preposition", "to the left of"] == 1
    assert vocabulary.slots["ball", "subject", "left"] == 2
    assert vocabulary.phrases["ball", "singular", "tiny blue ball"] == 1
    assert vocabulary.relation_phrases["beach", "preposition", "on", "on a sandy beach"] == 1


def test_parts_add_up_to_the_whole(read: Read) -> None:
    whole, joined = count(read), Vocabulary()
    for images in (IMAGES[2:], IMAGES[:2]):
        joined.merge(count(read, images))
    assert content(joined) == content(whole)


def test_comes_back_from_a_file(read: Read, tmp_path: Path) -> None:
    vocabulary = count(read)
    vocabulary.save(tmp_path / "vocabulary.json")
    assert content(Vocabulary.load(tmp_path / "vocabulary.json")) == content(vocabulary)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"nouns": [["cup", "many"]]}', "\0"])
def test_a_broken_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "vocabulary.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"vocabulary\.json"):
        Vocabulary.load(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.json"):
        Vocabulary.load(tmp_path / "none.json")


def test_freezing_drops_what_is_rare(read: Read) -> None:
    vocabulary = count(read)
    frozen = vocabulary.freeze(2)
    assert set(frozen.nouns) == {("cup",), ("ball",)}
    assert frozen.nouns["cup",] == 4
    assert set(frozen.attributes) == {("red",)}
    assert {key[0] for key in frozen.phrases} <= {"cup", "ball"}
    assert vocabulary.nouns["dog",] == 1  # the original stays


def test_freezing_keeps_the_frequent_phrases(read: Read) -> None:
    adjectives = ["red", "blue", "green", "old", "new", "wet", "dry", "hot", "cold", "big", "small", "round"]
    texts = [f"A {one} {other} cup." for one, other in product(adjectives, adjectives) if one != other]
    vocabulary = count(read, (*((text,) for text in texts), *(("A red cup.",),) * 3))
    frozen = vocabulary.freeze(1)
    kept = [text for noun, _, text in frozen.phrases if noun == "cup"]
    assert len(vocabulary.phrases) > 100
    assert len(kept) == 50
    assert "red cup" in kept


def test_learns_which_attributes_exclude_each_other(read: Read) -> None:
    """`wet` and `dry` never meet in an image though both are frequent; `wet` and `old` do."""
    images = [(f"A {state} {age} street.", f"A {state} street.") for state in ("wet", "dry") for age in ("old", "new")] * 8
    vocabulary = count(read, tuple(images))
    assert vocabulary.exclusive("wet", "dry")
    assert vocabulary.exclusive("dry", "wet")
    assert not vocabulary.exclusive("wet", "old")
    assert not vocabulary.exclusive("wet", "wet")
    assert not vocabulary.exclusive("wet", "unheard")


def test_different_captions_of_one_image_show_what_goes_together(read: Read) -> None:
    images = [("A tall man.", "A young man."), ("A tall man.",), ("A young man.",)] * 8
    assert not count(read, tuple(images)).exclusive("tall", "young")


def test_too_little_evidence_excludes_nothing(read: Read) -> None:
    assert not count(read, (("A tall man.",), ("A young man.",)) * 3).exclusive("tall", "young")


def test_two_things_of_one_name_tell_nothing(read: Read) -> None:
    """A wet and a dry street in one picture do not make one street both."""
    images = [("A wet street and a dry street.",), ("A wet street.",), ("A dry street.",)] * 12
    assert count(read, tuple(images)).exclusive("wet", "dry")
