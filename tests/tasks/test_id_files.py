"""The original release's id files: decoded they are texts that get the same ids again; a bad row costs itself and is named."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import random_regions
from tests.life.small_run import DETECTOR
from tests.tasks.test_dialogue import task as dialogues
from tests.tasks.test_reading import captions, texts
from unimo_ds.config import CaptionFiles, DialogueFiles, EntailmentFiles, TextFiles
from unimo_ds.data.prepared import Rejects
from unimo_ds.data.store import RegionStoreWriter, finish_store
from unimo_ds.errors import DataError
from unimo_ds.tasks.captions import captioned
from unimo_ds.tasks.entailment import Entailment
from unimo_ds.tasks.id_files import read_id_sentences
from unimo_ds.tokenizer import CLS, SEP, Tokenizer, train_tokenizer


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(["A cup is red. The cup, a naïve café? It's here."] * 3, 320, folder)
    return Tokenizer(folder)


@pytest.fixture
def tokenizer(small: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Tokenizer:
    """A small one that is taken for RoBERTa's, which no package has."""
    monkeypatch.setattr(Tokenizer, "is_published", True)
    return small


def gpt2_ids(tokenizer: Tokenizer, text: str) -> str:
    """As a file has them: 256 bytes in the order of GPT-2's own table, then the merges."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + place) for place in range(len(others))]
    merges = (tokenizer.folder / "merges.txt").read_text().splitlines()[1:]
    numbers = {piece: number for number, piece in enumerate([*letters, *(merge.replace(" ", "") for merge in merges)])}
    pieces = {number: piece for piece, number in tokenizer._vocabulary.items()}
    return " ".join(str(numbers[pieces[number]]) for number in tokenizer.encode([text])[0])


def model_ids(tokenizer: Tokenizer, text: str) -> str:
    return " ".join(map(str, [CLS, *tokenizer.encode([text])[0], SEP]))


def line(tokenizer: Tokenizer, text: str, before: list[str], fields: int) -> str:
    """Fields between semicolons, of which those of images are left long and unread."""
    ids = model_ids(tokenizer, text) if text else ""
    return ";".join([*before, ids, "0 0", "2 3", *["x" * 5000] * (fields - len(before) - 3)])


@settings(deadline=None, max_examples=100)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30))
def test_a_text_gets_the_ids_that_it_had(small: Tokenizer, text: str) -> None:
    (ids,) = small.encode([text])
    assert small.exact_text(ids) == text and small.encode([small.exact_text(ids)]) == [ids]


@settings(deadline=None, max_examples=50)
@given(text=st.text("A cup is red. Thé\n\t'", min_size=1, max_size=30))
def test_gpt2_s_ids_are_those_of_the_same_pieces(small: Tokenizer, text: str) -> None:
    there = [int(number) for number in gpt2_ids(small, text).split()]
    assert small.from_gpt2_V[there].tolist() == small.encode([text])[0]


def test_a_sequence_to_sequence_set(tmp_path: Path, tokenizer: Tokenizer) -> None:
    source, end, target = (gpt2_ids(tokenizer, text) for text in (" The cup", "a café?", "It's red."))
    rows = [f"{source} [SEP] {end}\t{target}", f"{source}\t", source, f"7 x\t{target}", f"{source}\t99999", f"\t{target}"]
    path = tmp_path / "train.tsv"
    path.write_text("\n".join(["src\ttgt", *rows]))
    taught, rejects = texts(TextFiles(path=path), True, tokenizer)
    assert [(each.texts, each.target) for each in taught] == [((" The cup", "a café?"), "It's red.")], "spaces as they are"
    wrong = ("no target", "1 fields; expected 2: src, tgt", "invalid literal", "token id 99999; expected 0 to", "text is empty")
    for reason, number, words in zip(rejects.reasons, (3, 4, 5, 6, 7), wrong, strict=True):
        assert f"train.tsv:{number}: " in reason and words in reason
    evaluated, _ = texts(TextFiles(path=path), False, tokenizer)
    assert [each.label for each in evaluated] == ["It's red.", None]


def test_dialogues(tmp_path: Path, tokenizer: Tokenizer) -> None:
    story, question, answer = (gpt2_ids(tokenizer, text) for text in ("A cup is red.", "A cup?", "It's here"))
    said = " [SEP] ".join([question, answer] * 10 + [question])
    path = tmp_path / "dev.tsv"
    rows = [f"{answer}\t{said}\t{story}", f"{answer}\t{question}\t{story}", f"{answer}\t{question}\t", f"\t{question}\t{story}"]
    path.write_text("\n".join(["tgt\tsrc\tknowledge", *rows]))
    rejects, task = Rejects(), dialogues(tokenizer)
    first, second = task.read(DialogueFiles(path=path), rejects, teach=False)
    assert first.name == "2#11" and len(first.texts) == 16 and first.label == ["It's here"]
    assert first.texts[:3] == ("A cup is red.", "A cup?", "It's here") and first.texts[-1] == "A cup?"
    assert second.name == "3#1" and second.texts == ("A cup is red.", "A cup?")
    assert [reason.partition("dev.tsv:")[2] for reason in rejects.reasons] == ["4: has no knowledge", "5: has no tgt"]
    path.write_text("a\tb\n")
    with pytest.raises(DataError, match=r"dev\.tsv:1: columns a, b; expected src, tgt and, of dialogues, knowledge"):
        list(task.read(DialogueFiles(path=path), rejects, teach=True))


@pytest.fixture
def regions(tmp_path: Path) -> Path:
    with RegionStoreWriter(tmp_path / "regions", DETECTOR) as writer:
        for key in ("42", "000043", "a.jpg"):
            writer.write(key, random_regions(np.random.default_rng(0), 3))
    finish_store(tmp_path / "regions")
    return tmp_path / "regions"


def test_entailment(tmp_path: Path, regions: Path, tokenizer: Tokenizer) -> None:
    rows = [
        line(tokenizer, "A cup is here.", ["a.jpg", "d1", "neutral"], 14),
        line(tokenizer, "A cup.", ["a.jpg", "d2", "2"], 14),
        line(tokenizer, "A cup.", ["b.jpg", "d3", "2"], 14),
        line(tokenizer, "A cup.", ["a.jpg", "d4", "maybe"], 14),
        line(tokenizer, "A cup.", ["a.jpg", "d5", "2"], 13),
        ";".join(["a.jpg", "d6", "2", "5 6 7", *"_" * 10]),
    ]
    (tmp_path / "part").mkdir()
    (tmp_path / "part/0.gz").write_bytes(gzip.compress("\n".join(rows[:2]).encode()))
    (tmp_path / "part/1").write_text("\n".join(rows[2:]))
    rejects = Rejects()
    files = EntailmentFiles(path=tmp_path / "part", regions=regions, images="{}")
    found = list(Entailment(tokenizer).read(files, rejects, teach=True))
    assert [(each.name, each.texts, each.image, each.label) for each in found] == [
        ("d1", ("A cup is here.",), "a.jpg", 1),
        ("d2", ("A cup.",), "a.jpg", 2),
    ]
    wrong = (
        "'b.jpg' has no regions",
        "label 'maybe' is none",
        "13 fields; expected 14: image_id, data_id",
        "expected 0 ([CLS])",
    )
    for number, (reason, words) in enumerate(zip(rejects.reasons, wrong, strict=True), 1):
        assert f"part/1:{number} " in reason and words in reason


def test_captions(tmp_path: Path, regions: Path, tokenizer: Tokenizer) -> None:
    """A caption a line, the image again with each; a line of a test set has none."""
    rows = [
        line(tokenizer, "A cup.", ["coco_val_42", "0"], 16),
        line(tokenizer, "The cup is red.", ["coco_val_42", "1"], 16),
        line(tokenizer, "", ["coco_val_000043", "0"], 16),
        line(tokenizer, "A cup.", ["coco_val_x", "0"], 16),
        line(tokenizer, "A cup.", ["coco_val_", "0"], 16),
    ]
    (tmp_path / "captions.ids").write_text("\n".join(rows))
    files = CaptionFiles(path=tmp_path / "captions.ids", regions=regions)
    taught, rejects = captions(files, True, tokenizer)
    assert [(each.name, each.image, each.target) for each in taught] == [
        ("42", "42", "A cup."),
        ("42", "42", "The cup is red."),
    ]
    assert ["image 'x'" in rejects.reasons[0], "9 characters" in rejects.reasons[1]] == [True, True]
    evaluated, _ = captions(files, False, tokenizer)
    assert [(each.name, each.image, each.label) for each in evaluated] == [
        ("42", "42", ["A cup.", "The cup is red."]),
        ("43", "000043", None),
    ]


def test_sentences_of_retrieval(tmp_path: Path, tokenizer: Tokenizer) -> None:
    row = ";".join([model_ids(tokenizer, "A cup is red."), "0 0", "2 3", "a.jpg", "7"])
    (tmp_path / "train.ids").write_text(f"{row}\n0 5 3 2;0;2;a.jpg;8\n{row};x\n")
    rejects = Rejects()
    assert list(read_id_sentences(tmp_path / "train.ids", tokenizer, rejects)) == [("A cup is red.", "a.jpg", "7")]
    wrong = ("train.ids:2 ", "token id 3; expected 4 to"), ("train.ids:3 ", "6 fields; expected 5: token_ids")
    for reason, words in zip(rejects.reasons, wrong, strict=True):
        assert all(word in reason for word in words)
    files = CaptionFiles(path=tmp_path / "train.ids", regions=tmp_path)
    assert list(captioned(files, tokenizer, Rejects())) == [("a.jpg", "a.jpg", ["A cup is red."])]
    (tmp_path / "part").mkdir()
    (tmp_path / "part/0.gz").write_bytes(gzip.compress(f"{row}\n".encode()))
    for path in (tmp_path / "part", tmp_path / "part/0.gz"):
        files = CaptionFiles(path=path, regions=tmp_path)
        assert list(captioned(files, tokenizer, Rejects())) == [("a.jpg", "a.jpg", ["A cup is red."])]


@pytest.mark.parametrize("family", ["writing", "dialogue", "entailment", "captioning", "retrieval"])
def test_ids_of_another_vocabulary_are_refused(tmp_path: Path, regions: Path, small: Tokenizer, family: str) -> None:
    path, rejects = tmp_path / "file", Rejects()
    table = "src\ttgt\tknowledge\n" + "\t".join([gpt2_ids(small, "A cup.")] * 3)
    contents = {
        "entailment": line(small, "A cup.", ["a.jpg", "d1", "neutral"], 14),
        "captioning": line(small, "A cup.", ["coco_val_42", "0"], 16),
        "retrieval": f"{model_ids(small, 'A cup.')};0;2;a.jpg;7",
    }
    path.write_text(contents.get(family, table))
    read: dict[str, Any] = {
        "writing": lambda: texts(TextFiles(path=path), True, small),
        "dialogue": lambda: list(dialogues(small).read(DialogueFiles(path=path), rejects, teach=True)),
        "entailment": lambda: list(Entailment(small).read(EntailmentFiles(path=path, regions=regions), rejects, teach=True)),
        "captioning": lambda: captions(CaptionFiles(path=path, regions=regions), True, small),
        "retrieval": lambda: list(read_id_sentences(path, small, rejects)),
    }
    with pytest.raises(DataError, match=r"file: holds ids of RoBERTa's vocabulary.*of \d+ entries.*start from a checkpoint"):
        read[family]()
