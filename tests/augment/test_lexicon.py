"""Relatedness by the built-in lists, and by a small database in WordNet's format."""

from pathlib import Path

import pytest

from unimo_ds.augment.lexicon import Lexicon
from unimo_ds.augment.wordnet import WordNet

NOUNS = {
    # synset: its words, its pointers
    "person": (["person"], [("@", "thing")]),
    "thing": (["thing"], []),
    "male": (["male_person"], [("@", "person")]),
    "female": (["female_person"], [("@", "person")]),
    "man": (["man", "gent"], [("@", "male")]),
    "woman": (["woman"], [("@", "female")]),
    "astronaut": (["astronaut"], [("@", "person")]),
    "vessel": (["vessel"], [("@", "thing")]),
    "grail": (["grail", "chalice"], [("@", "vessel")]),
    "ewer": (["ewer"], [("@", "vessel"), ("%p", "spout")]),
    "spout": (["spout"], [("@", "thing")]),
    "hydrant": (["fire_hydrant"], [("@", "thing")]),
}
ADJECTIVES = {
    "wide": (["roomy"], [("!", "narrow")]),
    "narrow": (["cramped"], [("!", "wide")]),
    "vast": (["vast"], [("&", "wide")]),
}


def write_database(folder: Path, pos: str, synsets: dict[str, tuple[list[str], list[tuple[str, str]]]]) -> None:
    """`data.*` and `index.*` as in wndb(5WN): synsets are found by the offset of their line."""
    letter = {"noun": "n", "adj": "a", "verb": "v"}[pos]
    header = "  1 a licence\n"

    def lines(offsets: dict[str, int]) -> list[str]:
        rows = []
        for name, (names, pointers) in synsets.items():
            said = "".join(f" {word} 0" for word in names)
            links = "".join(f" {symbol} {offsets[target]:08d} {letter} 0000" for symbol, target in pointers)
            rows.append(f"{offsets[name]:08d} 03 {letter} {len(names):02x}{said} {len(pointers):03d}{links} | a gloss  \n")
        return rows

    offsets, place = {}, len(header)
    for name, row in zip(synsets, lines(dict.fromkeys(synsets, 0)), strict=True):
        offsets[name] = place
        place += len(row)
    (folder / f"data.{pos}").write_text(header + "".join(lines(offsets)))
    entries = sorted((word, offsets[name]) for name, (names, _) in synsets.items() for word in names)
    rows = [f"{word} {letter} 1 1 @ 1 0 {offset:08d}  \n" for word, offset in entries]
    (folder / f"index.{pos}").write_text(header + "".join(rows))


@pytest.fixture
def small(tmp_path: Path) -> Lexicon:
    write_database(tmp_path, "noun", NOUNS)
    write_database(tmp_path, "adj", ADJECTIVES)
    write_database(tmp_path, "verb", {"go": (["go", "travel"], [])})
    return Lexicon(WordNet(tmp_path))


@pytest.mark.parametrize(
    ("first", "second", "pos", "found"),
    [
        ("grail", "chalice", "noun", "synonym"),
        ("vessel", "grail", "noun", "hypernym"),
        ("grail", "thing", "noun", "hyponym"),
        ("grail", "ewer", "noun", None),
        ("spout", "ewer", "noun", "part"),
        ("ewer", "spout", "noun", "part"),
        ("man", "astronaut", "noun", "similar"),
        ("gent", "woman", "noun", None),
        ("woman", "person", "noun", "hyponym"),
        ("yellow grail", "grail", "noun", "hyponym"),
        ("fire hydrant", "thing", "noun", "hyponym"),
        ("vast", "roomy", "adj", "similar"),
        ("go", "travel", "verb", "synonym"),
        ("no such word", "grail", "noun", None),
    ],
)
def test_reads_wordnet(small: Lexicon, first: str, second: str, pos: str, found: str | None) -> None:
    assert small.has_wordnet
    assert small.related(first, second, pos) == found


def test_finds_every_word_of_an_index(small: Lexicon) -> None:
    """Bisection reaches the first and the last line as well."""
    for names, _ in NOUNS.values():
        for name in names:
            assert small.same_category(name.replace("_", " "), "thing")
    assert not small.same_category("aaa", "thing")
    assert not small.same_category("zzz", "thing")


def test_antonyms_exclude_each_other(small: Lexicon) -> None:
    assert small.exclusive("roomy", "cramped")
    assert not small.exclusive("vast", "roomy")


@pytest.mark.parametrize(
    ("first", "second", "pos", "found"),
    [
        ("cup", "cup", "noun", "synonym"),
        ("couch", "sofa", "noun", "synonym"),
        ("cup", "mug", "noun", "similar"),
        ("kitten", "cat", "noun", "similar"),
        ("man", "astronaut", "noun", "similar"),
        ("man", "woman", "noun", None),
        ("boy", "girl", "noun", None),
        ("space suit", "suit", "noun", "hyponym"),
        ("suit", "space suit", "noun", "hypernym"),
        ("tennis racket", "badminton racket", "noun", "similar"),
        ("cup", "dog", "noun", None),
        ("tiny", "little", "adj", "synonym"),
        ("giant", "huge", "adj", "similar"),
        ("red", "blue", "adj", None),
        ("sit", "stand", "verb", None),
    ],
)
def test_built_in_lists(lexicon: Lexicon, first: str, second: str, pos: str, found: str | None) -> None:
    assert not lexicon.has_wordnet
    assert lexicon.related(first, second, pos) == found


@pytest.mark.parametrize(
    ("first", "second", "exclude"),
    [
        ("red", "blue", True),
        ("navy", "blue", False),
        ("ginger", "orange", False),
        ("tiny", "huge", True),
        ("tiny", "small", False),
        ("striped", "plain", True),
        ("young", "elderly", True),
        ("old", "new", True),
        ("red", "small", False),
        ("short", "long", True),
        ("red", "red", False),
    ],
)
def test_exclusive_attributes(lexicon: Lexicon, first: str, second: str, exclude: bool) -> None:
    assert lexicon.exclusive(first, second) is exclude
    assert lexicon.exclusive(second, first) is exclude


def test_looks_where_wordnet_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for pos in ("noun", "adj", "verb"):
        write_database(tmp_path, pos, {"grail": (["grail", "chalice"], [])})
    monkeypatch.setenv("WNSEARCHDIR", str(tmp_path))
    assert Lexicon.find().related("grail", "chalice", "noun") == "synonym"


def test_installed_wordnet() -> None:
    """The real files, where they are installed."""
    lexicon = Lexicon.find()
    if not lexicon.has_wordnet:
        pytest.skip("WordNet is not installed")
    assert lexicon.related("animal", "dog", "noun") == "hypernym"
    assert lexicon.related("dahlia", "flower", "noun") == "hyponym"
    assert lexicon.related("table", "leg", "noun") == "part"
    assert lexicon.related("dog", "cat", "noun") is None
    assert lexicon.same_category("dog", "zebra")
    assert not lexicon.same_category("dog", "table")
