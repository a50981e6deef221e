"""From files to prepared corpora: what cannot be used is named, counted and left out; the rest is kept."""

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import random_regions
from tests.life.small_run import DETECTOR, write_inputs
from unimo_ds.config import CorpusSection, DataSection
from unimo_ds.data import corpus as corpus_module
from unimo_ds.data.corpus import Corpus, prepare_corpus
from unimo_ds.data.store import RegionStoreWriter, finish_store
from unimo_ds.errors import DataError
from unimo_ds.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_inputs(folder)
    return folder


def prepared(inputs: Path, into: Path, **section: object) -> Corpus:
    corpus = CorpusSection.model_validate({"name": "corpus", **section})
    data = DataSection(corpora=[corpus], tokenizer=inputs / "tokenizer", prepared=into, max_text_tokens=32)
    return Corpus(prepare_corpus(corpus, data, Tokenizer(inputs / "tokenizer"), show=True), corpus)


def pairs(inputs: Path, path: Path, file_format: str = "json_lines") -> dict[str, object]:
    return {"kind": "pairs", "format": file_format, "path": path, "regions": inputs / "regions"}


def test_a_broken_line_17_is_named_and_the_others_are_kept(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [json.dumps({"text": f"cup {number}", "image": "0001.jpg"}) for number in range(30)]
    lines[16] = lines[16][:-4]
    path = tmp_path / "captions.jsonl"
    path.write_text("\n".join(lines))
    corpus = prepared(inputs, tmp_path, **pairs(inputs, path))
    assert len(corpus) == 29 and corpus.manifest["rejected"] == 1
    assert f"{path}:17:" in capsys.readouterr().err and f"{path}:17:" in corpus.manifest["rejected_first"][0]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('["a", "list"]', "expected an object, found list"),
        ('{"image": "0001.jpg"}', "'text' is None, expected a text"),
        ('{"text": "a cup", "image": 3}', "'image' is 3, expected a text"),
        ('{"text": "a cup", "image": "missing.jpg"}', "image 'missing.jpg' has no regions"),
    ],
)
def test_other_records_that_cannot_be_used(inputs: Path, tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "captions.jsonl"
    path.write_text('{"text": "a cup", "image": "0001.jpg"}\n' + line)
    corpus = prepared(inputs, tmp_path, **pairs(inputs, path))
    assert len(corpus) == 1 and reason in corpus.manifest["rejected_first"][0]


def test_coco_captions(inputs: Path, tmp_path: Path) -> None:
    path = tmp_path / "captions.json"
    images = [{"id": 7, "file_name": "0002.jpg"}]
    annotations = [
        {"image_id": 7, "caption": " A red cup. "},
        {"image_id": 8, "caption": "of no image"},
        {"image_id": 7, "caption": ""},
    ]
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    corpus = prepared(inputs, tmp_path, **pairs(inputs, path, "coco_captions"))
    assert len(corpus) == 1 and corpus.image_key(0) == "0002.jpg" and corpus.manifest["rejected"] == 2
    assert Tokenizer(inputs / "tokenizer").decode(corpus.tokens(0)) == "A red cup."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"images": [\n{"id": 1', r"captions\.json:2: is not valid JSON"),
        (b'{"pictures": []}', "expected an object with the lists images, annotations"),
        (b"\xff\xfe", "is not UTF-8"),
        (b'{"images": [], "annotations": []}', "not one usable record"),
    ],
)
def test_a_file_that_is_no_caption_file_ends_with_its_reason(
    inputs: Path, tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "captions.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        prepared(inputs, tmp_path / "prepared", **pairs(inputs, path, "coco_captions"))
    left = list((tmp_path / "prepared").iterdir()) if (tmp_path / "prepared").exists() else []
    assert left == [], "nothing half prepared is left behind"


def test_a_missing_file_is_named(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.txt: cannot be read: No such file"):
        prepared(inputs, tmp_path, kind="texts", format="plain_text", path=tmp_path / "nowhere.txt")


def test_a_long_text_becomes_pieces_of_equal_length_and_loses_nothing(inputs: Path, tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    text = "The cup near the ball was red. " * 20
    path.write_text(text + "\n\nThe lamp was blue.\n")
    corpus = prepared(inputs, tmp_path, kind="texts", format="plain_text", path=path)
    lengths = [corpus.token_count(index) for index in range(len(corpus))]
    assert max(lengths) <= 30 and max(lengths[:-1]) - min(lengths[:-1]) < len(lengths)
    joined = np.concatenate([corpus.tokens(index) for index in range(len(corpus) - 1)])
    assert Tokenizer(inputs / "tokenizer").decode(joined) == text.strip()


def test_what_is_prepared_is_reused_until_its_input_changes(inputs: Path, tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("The cup was red.\n")
    section = {"kind": "texts", "format": "plain_text", "path": path}
    prepared(inputs, tmp_path / "out", **section)
    (folder,) = (tmp_path / "out").iterdir()
    stamp = (folder / "manifest.json").stat().st_mtime_ns
    prepared(inputs, tmp_path / "out", **section)
    assert (folder / "manifest.json").stat().st_mtime_ns == stamp
    path.write_text("The cup was blue and old.\n")
    prepared(inputs, tmp_path / "out", **section)
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_images_alone_and_groups_by_image(inputs: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with RegionStoreWriter(tmp_path / "store", DETECTOR) as writer:
        for name in ("b.jpg", "a.jpg"):
            writer.write(name, random_regions(rng, 4))
    finish_store(tmp_path / "store")
    alone = prepared(inputs, tmp_path / "out", kind="images", format="regions", regions=tmp_path / "store")
    assert [alone.image_key(index) for index in range(2)] == ["a.jpg", "b.jpg"] and alone.region_count(1) == 4
    path = tmp_path / "captions.jsonl"
    path.write_text("\n".join(json.dumps({"text": "a cup", "image": name}) for name in ("a.jpg", "b.jpg", "a.jpg")))
    both = prepared(inputs, tmp_path / "out", **{**pairs(inputs, path), "regions": tmp_path / "store"})
    groups = [both.image_group(index) for index in range(3)]
    assert groups[0] == groups[2] != groups[1]


def test_texts_with_a_store_beside_them_are_texts(inputs: Path, tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("The cup was red.\n")
    corpus = prepared(inputs, tmp_path, kind="texts", format="plain_text", path=path, regions=inputs / "regions")
    assert len(corpus) == 1 and corpus.manifest["rejected"] == 0


@pytest.mark.parametrize("image", ["x" * 600, "nowhere.jpg"])
def test_an_image_that_no_store_can_hold_costs_its_record(inputs: Path, tmp_path: Path, image: str) -> None:
    path = tmp_path / "captions.jsonl"
    path.write_text("\n".join(json.dumps({"text": "a cup", "image": name}) for name in (image, "0001.jpg")))
    corpus = prepared(inputs, tmp_path, **pairs(inputs, path))
    assert len(corpus) == 1 and "has no regions" in corpus.manifest["rejected_first"][0]


def test_another_store_of_the_same_detector_and_size_is_not_taken_for_the_first(inputs: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for folder, names in (("one", "ab"), ("two", "cd")):
        with RegionStoreWriter(tmp_path / folder, DETECTOR) as writer:
            for name in names:
                writer.write(name, random_regions(rng, 4))
        finish_store(tmp_path / folder)
    found = [
        prepared(inputs, tmp_path / "out", kind="images", format="regions", regions=tmp_path / name) for name in ("one", "two")
    ]
    assert [[corpus.image_key(index) for index in range(2)] for corpus in found] == [["a", "b"], ["c", "d"]]


def test_a_store_that_was_extracted_again_is_prepared_again(inputs: Path, tmp_path: Path) -> None:
    keys = []
    for names in ("ab", "cd"):
        shutil.rmtree(tmp_path / "store", ignore_errors=True)
        with RegionStoreWriter(tmp_path / "store", DETECTOR) as writer:
            for name in names:
                writer.write(name, random_regions(np.random.default_rng(0), 4))
        finish_store(tmp_path / "store")
        corpus = prepared(inputs, tmp_path / "out", kind="images", format="regions", regions=tmp_path / "store")
        keys.append([corpus.image_key(index) for index in range(2)])
    assert keys == [["a", "b"], ["c", "d"]]


def test_a_preparation_that_is_killed_leaves_nothing_half_and_is_done_again(inputs: Path, tmp_path: Path) -> None:
    """Killed as it writes its arrays; in a container the next process often has the same number."""
    path = tmp_path / "texts.txt"
    path.write_text("The cup was red.\n\nThe ball was blue.\n")
    section = {"kind": "texts", "format": "plain_text", "path": path}
    child = os.fork()
    if child == 0:
        corpus_module._Writer.finish = lambda self, manifest: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign,assignment,return-value]
        prepared(inputs, tmp_path / "out", **section)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    (left,) = (tmp_path / "out").iterdir()
    assert left.name.startswith(".") and not (left / "manifest.json").exists(), "what is half has a hidden name"
    left.rename(left.with_name(left.name.removesuffix(str(child)) + str(os.getpid())))
    assert len(prepared(inputs, tmp_path / "out", **section)) == 2
    (whole,) = (tmp_path / "out").iterdir()
    assert not whole.name.startswith(".")


def test_two_processes_that_prepare_the_same_corpus_do_not_hurt_each_other(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one finishes while this one writes."""
    path = tmp_path / "texts.txt"
    path.write_text("The cup was red.\n")
    section = {"kind": "texts", "format": "plain_text", "path": path}
    finish = corpus_module._Writer.finish

    def after_the_other(writer: corpus_module._Writer, manifest: dict[str, object]) -> int:
        monkeypatch.setattr(corpus_module._Writer, "finish", finish)
        monkeypatch.setattr(os, "getpid", lambda: 1)
        assert len(prepared(inputs, tmp_path / "out", **section)) == 1
        monkeypatch.undo()
        return finish(writer, manifest)

    monkeypatch.setattr(corpus_module._Writer, "finish", after_the_other)
    assert len(prepared(inputs, tmp_path / "out", **section)) == 1
    assert [folder.name.startswith(".") for folder in (tmp_path / "out").iterdir()] == [False]


@pytest.mark.parametrize("content", [b"", b"\n \n\n"])
def test_an_empty_corpus_is_refused(inputs: Path, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"not one usable record in .*: it is empty"):
        prepared(inputs, tmp_path / "out", kind="texts", format="plain_text", path=path)


def test_a_long_caption_is_cut_and_stays_one_pair(inputs: Path, tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    path.write_text(json.dumps({"text": "a cup and a ball and " * 20, "image": "0001.jpg"}))
    corpus = prepared(inputs, tmp_path, **pairs(inputs, path))
    assert len(corpus) == 1 and corpus.token_count(0) == 30, "32 with [CLS] and [SEP]"


def test_special_tokens_that_stand_in_a_text_become_no_special_ids(inputs: Path, tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("The <s>old</s> cup was <mask> and <pad> red.\n")
    corpus = prepared(inputs, tmp_path, kind="texts", format="plain_text", path=path)
    tokenizer = Tokenizer(inputs / "tokenizer")
    tokens = corpus.tokens(0)
    assert tokens.min() >= 4 and tokens.max() < tokenizer.mask


def test_many_records_are_counted_and_the_first_five_are_told(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "captions.jsonl"
    path.write_text("\n".join(['{"text": "a cup", "image": "0001.jpg"}', *["{"] * 40]))
    corpus = prepared(inputs, tmp_path, **pairs(inputs, path))
    told = capsys.readouterr().err
    assert corpus.manifest["rejected"] == 40 and len(corpus.manifest["rejected_first"]) == 5
    assert "40 records left out, 1 used" in told and f"{path}:6:" in told and f"{path}:7:" not in told and "and 35 more" in told


def test_an_image_is_one_group_in_all_corpora_of_its_store(inputs: Path, tmp_path: Path) -> None:
    """Two captions files of one set of images: else a caption of the image itself would be its hard negative."""
    path = tmp_path / "captions.jsonl"
    path.write_text("\n".join(json.dumps({"text": "a cup", "image": name}) for name in ("0001.jpg", "0002.jpg")))
    shutil.copytree(inputs / "regions", tmp_path / "elsewhere")
    section = pairs(inputs, path)
    first = prepared(inputs, tmp_path / "out", **section)
    second = prepared(inputs, tmp_path / "out", **{**section, "name": "second"})
    elsewhere = prepared(inputs, tmp_path / "out", **{**section, "name": "third", "regions": tmp_path / "elsewhere"})
    assert [first.image_group(n) for n in (0, 1)] == [second.image_group(n) for n in (0, 1)]
    assert len({corpus.image_group(n) for corpus in (first, elsewhere) for n in (0, 1)}) == 4
    assert all(0 <= first.image_group(n) < 2**63 for n in (0, 1)), "fits int64"


def test_half_a_surrogate_pair_costs_its_record_and_not_the_corpus(inputs: Path, tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    path.write_text('{"text": "a \\ud800 cup", "image": "0001.jpg"}\n{"text": "a cup", "image": "0001.jpg"}')
    corpus = prepared(inputs, tmp_path / "out", **pairs(inputs, path))
    assert len(corpus) == 1 and f"{path}:1: " in corpus.manifest["rejected_first"][0]


@pytest.mark.parametrize(("size", "narrow"), [(1 << 16, True), ((1 << 16) + 1, False)])
def test_ids_of_a_vocabulary_beyond_16_bits_are_kept_wide(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, narrow: bool
) -> None:
    ids = [4, size - 2, 77]
    monkeypatch.setattr(Tokenizer, "encode", lambda self, texts: [ids for _ in texts])
    tokenizer = Tokenizer(inputs / "tokenizer")
    tokenizer.size = size
    path = tmp_path / "texts.txt"
    path.write_text("any text")
    section = CorpusSection(name="texts", kind="texts", format="plain_text", path=path)
    data = DataSection(corpora=[section], tokenizer=inputs / "tokenizer", prepared=tmp_path / "out")
    corpus = Corpus(prepare_corpus(section, data, tokenizer, show=False), section)
    assert corpus.manifest["narrow"] is narrow and corpus.tokens(0).tolist() == ids


@pytest.mark.parametrize(("words", "pieces"), [(30, [30]), (31, [16, 15]), (60, [30, 30]), (61, [21, 21, 19]), (1, [1])])
def test_pieces_of_a_long_text(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: int, pieces: list[int]
) -> None:
    """Of at most 30 ids, 32 with [CLS] and [SEP]; in equal parts, where plain cutting would leave a tiny rest."""
    monkeypatch.setattr(Tokenizer, "encode", lambda self, texts: [list(range(4, 4 + len(text.split()))) for text in texts])
    path = tmp_path / "texts.txt"
    path.write_text("word " * words)
    corpus = prepared(inputs, tmp_path / "out", kind="texts", format="plain_text", path=path)
    assert [corpus.token_count(index) for index in range(len(corpus))] == pieces
    assert np.concatenate([corpus.tokens(index) for index in range(len(corpus))]).tolist() == list(range(4, 4 + words))


@pytest.mark.parametrize("change", ["tokenizer", "max_text_tokens", "name", "format"])
def test_whatever_decides_the_arrays_makes_a_new_folder(inputs: Path, tmp_path: Path, change: str) -> None:
    path = tmp_path / "texts.txt"
    path.write_text('{"text": "The cup was red."}\n')
    shutil.copytree(inputs / "tokenizer", tmp_path / "tokenizer")

    def folder(tokenizer: Path = inputs / "tokenizer", longest: int = 32, name: str = "a", form: str = "json_lines") -> Path:
        section = CorpusSection.model_validate({"name": name, "kind": "texts", "format": form, "path": path})
        data = DataSection(corpora=[section], tokenizer=tokenizer, prepared=tmp_path / "out", max_text_tokens=longest)
        return prepare_corpus(section, data, Tokenizer(tokenizer), show=False)

    merges = tmp_path / "tokenizer/merges.txt"
    merges.write_text("\n".join(merges.read_text().splitlines()[:-1]))
    before = folder()
    changed = {
        "tokenizer": {"tokenizer": tmp_path / "tokenizer"},
        "max_text_tokens": {"longest": 33},
        "name": {"name": "b"},
        "format": {"form": "plain_text"},
    }[change]
    assert folder(**changed) != before and folder() == before  # type: ignore[arg-type]
