"""Units of masking are words; what stands in a text never becomes a special id."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unimo_ds.config import MaskingSection
from unimo_ds.data.masking import choose_spans
from unimo_ds.errors import DataError
from unimo_ds.tokenizer import Tokenizer, train_tokenizer

TEXTS = [
    "A red cup is beside a blue ball.",
    "Two dogs run; the cat sleeps, and a naïve café is closed.",
    "It's the cup's colour: red\nor blue\ttoo.",
] * 5


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TEXTS, 380, folder)
    return Tokenizer(folder)


def units(tokenizer: Tokenizer, text: str) -> list[str]:
    """The pieces of text that are masked as one; as in masking, the first token begins a unit."""
    (ids,) = tokenizer.encode([text])
    starts = [0, *(np.flatnonzero(tokenizer.starts_word_V[ids][1:]) + 1), len(ids)]
    # Tokens may end in the middle of a character: only whole units can be decoded.
    return [tokenizer._fast.decode(ids[a:b], clean_up_tokenization_spaces=False) for a, b in itertools.pairwise(starts)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A red cup is beside a blue ball.", ["A", " red", " cup", " is", " beside", " a", " blue", " ball", "."]),
        ("Two dogs; the cat,", ["Two", " dogs", ";", " the", " cat", ","]),
        ("unseenable wordlings here", ["unseenable", " wordlings", " here"]),
        ("a naïve café 123", ["a", " naïve", " café", " 123"]),
        ("red\nblue\tcup", ["red", "\nblue", "\tcup"]),
    ],
)
def test_a_word_with_its_space_is_one_unit_and_punctuation_another(
    tokenizer: Tokenizer, text: str, expected: list[str]
) -> None:
    assert units(tokenizer, text) == expected


def test_a_caption_loses_15_percent_of_its_words_and_not_itself(tokenizer: Tokenizer) -> None:
    """Were a space taken for a letter, a whole sentence would be one word: each caption would be masked from end to end."""
    rng, hidden, total = np.random.default_rng(0), 0, 0
    for ids in tokenizer.encode(TEXTS * 20):
        chosen = choose_spans(tokenizer.starts_word_V[ids], MaskingSection(), rng)
        assert chosen.sum() <= 0.5 * len(ids)
        hidden, total = hidden + int(chosen.sum()), total + len(ids)
    assert hidden / total == pytest.approx(0.15, abs=0.04)


@pytest.mark.parametrize("special", ["<s>", "</s>", "<pad>", "<unk>", "<mask>"])
def test_the_name_of_a_special_token_in_a_text_is_text(tokenizer: Tokenizer, special: str) -> None:
    text = f"a {special} red{special}cup"
    (ids,) = tokenizer.encode([text])
    assert min(ids) >= 4 and max(ids) < tokenizer.mask
    assert tokenizer.decode(ids) == text


def test_special_ids_are_left_out_of_decoded_text_and_named_one_by_one(tokenizer: Tokenizer) -> None:
    (ids,) = tokenizer.encode(["a red cup"])
    assert tokenizer.decode([0, *ids, tokenizer.mask, 2, 1]) == "a red cup"
    assert [tokenizer.token(index) for index in (0, 1, 2, 3, tokenizer.mask)] == ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def test_every_byte_has_a_token(tokenizer: Tokenizer) -> None:
    text = "".join(map(chr, [*range(1, 0x250), 0x4E2D, 0x1F600]))
    (ids,) = tokenizer.encode([text])
    assert tokenizer._fast.decode(ids, clean_up_tokenization_spaces=False) == text and 3 not in ids


def test_an_empty_text_has_no_ids(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode(["", "a"])[0] == []


def test_the_vocabulary_s_size_is_bounded_and_ids_are_all_there(tokenizer: Tokenizer) -> None:
    vocabulary = json.loads((tokenizer.folder / "vocab.json").read_text(encoding="utf-8"))
    assert tokenizer.size == len(vocabulary) <= 380
    assert sorted(vocabulary.values()) == list(range(tokenizer.size)) and len(tokenizer.starts_word_V) == tokenizer.size


def test_another_vocabulary_or_other_merges_have_another_fingerprint(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((tokenizer.folder / name).read_bytes())
    assert Tokenizer(tmp_path).fingerprint == tokenizer.fingerprint
    with (tmp_path / "merges.txt").open("a") as merges:
        merges.write("a b\n")
    assert Tokenizer(tmp_path).fingerprint != tokenizer.fingerprint


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        (b'{"<s>": 0,', r"vocab\.json: is not valid JSON .*copy it again"),
        (b'{"caf\xe9": 0}', r"vocab\.json: is not valid JSON .*can't decode byte 0xe9"),
        (b"[]", r"vocab\.json: holds list, expected an object"),
        (b'{"<s>": 0, "<pad>": 2, "</s>": 1, "<unk>": 3, "<mask>": 4}', r"ids \{'<pad>': 2, '</s>': 1\}, expected"),
        (b'{"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4, "a": 5}', r"ids \{'<mask>': 4\}, expected"),
    ],
)
def test_a_vocabulary_that_cannot_be_used_is_named(tmp_path: Path, vocabulary: bytes, message: str) -> None:
    (tmp_path / "vocab.json").write_bytes(vocabulary)
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(DataError, match=message):
        Tokenizer(tmp_path)


@pytest.mark.parametrize("lost", ["vocab.json", "merges.txt"])
def test_the_file_that_is_missing_is_named_with_what_to_do(tokenizer: Tokenizer, tmp_path: Path, lost: str) -> None:
    for name in {"vocab.json", "merges.txt"} - {lost}:
        (tmp_path / name).write_bytes((tokenizer.folder / name).read_bytes())
    with pytest.raises(DataError, match=f"no {lost}: not a tokenizer folder.*train-tokenizer"):
        Tokenizer(tmp_path)


@settings(deadline=None, derandomize=True, max_examples=80)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text_comes_back_from_its_ids(tokenizer: Tokenizer, text: str) -> None:
    (ids,) = tokenizer.encode([text])
    assert tokenizer._fast.decode(ids, clean_up_tokenization_spaces=False) == text
    assert all(4 <= index < tokenizer.mask for index in ids), "no special id, whatever stands in the text"


def test_special_ids_are_roberta_s(tokenizer: Tokenizer) -> None:
    vocabulary = json.loads((tokenizer.folder / "vocab.json").read_text())
    assert [vocabulary[token] for token in ("<s>", "<pad>", "</s>", "<unk>")] == [0, 1, 2, 3]
    assert vocabulary["<mask>"] == tokenizer.mask == tokenizer.size - 1


@pytest.mark.parametrize("text", [*TEXTS[:3], "unseen wörds ☃", "a,b. c!"])
def test_decoding_gives_the_text_back(tokenizer: Tokenizer, text: str) -> None:
    (ids,) = tokenizer.encode([text])
    assert tokenizer.decode(ids) == text and min(ids) >= 4


def test_words_and_punctuation_begin_units(tokenizer: Tokenizer) -> None:
    (ids,) = tokenizer.encode(["the unseenable cup."])
    starts = tokenizer.starts_word_V[ids]
    pieces = [tokenizer.token(index) for index in ids]
    assert "".join(pieces) == "the unseenable cup."
    assert [piece for piece, first in zip(pieces, starts, strict=True) if first][-1] == "."
    assert starts.sum() <= 4 < len(ids), "the pieces of one word are one unit"
    assert [piece for piece, first in zip(pieces, starts, strict=True) if first and piece[0] == " "]


def test_training_is_deterministic(tokenizer: Tokenizer, tmp_path: Path) -> None:
    train_tokenizer(TEXTS, 380, tmp_path)
    assert Tokenizer(tmp_path).fingerprint == tokenizer.fingerprint


def test_a_folder_that_is_no_tokenizer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no vocab\.json and no merges\.txt: not a tokenizer folder"):
        Tokenizer(tmp_path)
    (tmp_path / "merges.txt").write_text("")
    (tmp_path / "vocab.json").write_text('{"a": 0, "<mask>": 1}')
    with pytest.raises(DataError, match="special tokens have ids"):
        Tokenizer(tmp_path)
