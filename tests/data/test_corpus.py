"""From files to prepared corpora: what cannot be used is named, counted and left out; the rest is kept."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import random_regions
from tests.life.small_run import DETECTOR, write_inputs
from unimo_ds.config import CorpusSection, DataSection
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
        (b'{"pictures": []}', "not COCO captions: needs images"),
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
