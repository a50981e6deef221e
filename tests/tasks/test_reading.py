"""The published file formats of the tasks: what is read of them, and that one bad record costs itself."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import random_regions
from tests.life.small_run import DETECTOR
from unimo_ds.config import (
    CaptionFiles,
    CaptioningSection,
    EntailmentFiles,
    RetrievalSection,
    SentenceFiles,
    SentencesSection,
    TextFiles,
    VqaFiles,
    VqaSection,
    WritingSection,
)
from unimo_ds.data.prepared import Rejects
from unimo_ds.data.store import RegionStoreWriter, finish_store
from unimo_ds.errors import DataError
from unimo_ds.tasks.entailment import Entailment
from unimo_ds.tasks.retrieval import Retrieval
from unimo_ds.tasks.sentences import Sentences
from unimo_ds.tasks.task import Example
from unimo_ds.tasks.vqa import Vqa, common_answers
from unimo_ds.tasks.writing import Captioning, TextWriting
from unimo_ds.tokenizer import Tokenizer, train_tokenizer


def read_sentences(path: Path, content: str | bytes, labels: list[str]) -> tuple[list[Example], Rejects]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    files = {"path": path}
    metric = "accuracy" if labels else "correlation"
    section = {"family": "sentences", "labels": labels, "metric": metric, "train": files, "dev": {"dev": files}}
    rejects = Rejects()
    return list(
        Sentences(SentencesSection.model_validate(section)).read(SentenceFiles(path=path), rejects, teach=True)
    ), rejects


@pytest.mark.parametrize(
    ("content", "labels", "expected"),
    [
        ("sentence\tlabel\nfine film\t1\n", ["0", "1"], Example("2", ("fine film",), label=1)),  # SST-2
        (
            "gj04\t1\t\tThe sailors rode.\ngj04\t0\t*\tRode they.\n",
            ["0", "1"],
            Example("1", ("The sailors rode.",), label=1),
        ),  # CoLA
        ("index\tsentence\n7\tThe sailors rode.\n", ["0", "1"], Example("7", ("The sailors rode.",))),  # CoLA's test file
        (  # MNLI: labels of single annotators stand before the one that counts
            "index\tpromptID\tgenre\tsentence1\tsentence2\tlabel1\tlabel2\tgold_label\n3\t1\tx\tA.\tB.\tneutral\tentailment\tcontradiction\n",
            ["entailment", "neutral", "contradiction"],
            Example("3", ("A.", "B."), label=2),
        ),
        (
            "index\tgenre\tsentence1\tsentence2\tscore\n4\tx\tA.\tB.\t3.250\n",
            [],
            Example("4", ("A.", "B."), label=3.25),
        ),  # STS-B
        ('text_a\ttext_b\tlabel\tqid\nA "b\tC\t1\tq9\n', ["0", "1"], Example("q9", ('A "b', "C"), label=1)),  # the original's
        ("\ufefflabel\ttext_a\r\n0\tA\r\n", ["0", "1"], Example("2", ("A",), label=0)),
    ],
)
def test_sentences_of_every_published_form(tmp_path: Path, content: str, labels: list[str], expected: Example) -> None:
    examples, rejects = read_sentences(tmp_path / "file.tsv", content, labels)
    assert examples[0] == expected and rejects.count == 0


def test_a_bad_row_costs_itself_and_is_named(tmp_path: Path) -> None:
    content = b"sentence\tlabel\nfine\t1\nno label\n\n\t0\nbad\t7\n\xff\xfe\t1\nlast\t0\n"
    examples, rejects = read_sentences(tmp_path / "file.tsv", content, ["0", "1"])
    assert [example.texts for example in examples] == [("fine",), ("last",)]
    assert rejects.count == 4
    for reason, line, words in zip(
        rejects.reasons, (3, 5, 6, 7), ("few columns", "empty", "label '7' is none of", "UTF-8"), strict=True
    ):
        assert f"file.tsv:{line}: " in reason and words in reason


def test_a_file_without_sentences_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"file\.tsv:1: no sentences among the columns a, b; known are text_a/text_b"):
        read_sentences(tmp_path / "file.tsv", "a\tb\n1\t2\n", ["0", "1"])
    with pytest.raises(DataError, match=r"nowhere\.tsv: cannot be read"):
        section = {
            "family": "sentences",
            "labels": ["0", "1"],
            "metric": "accuracy",
            "train": {"path": "x"},
            "dev": {"a": {"path": "x"}},
        }
        list(
            Sentences(SentencesSection.model_validate(section)).read(
                SentenceFiles(path=tmp_path / "nowhere.tsv"), Rejects(), teach=True
            )
        )


@pytest.fixture
def regions(tmp_path: Path) -> Path:
    import numpy as np

    with RegionStoreWriter(tmp_path / "regions", DETECTOR) as writer:
        for key in ("42.jpg", "COCO_val2014_000000000042.jpg", "val/other.jpg"):
            writer.write(key, random_regions(np.random.default_rng(0), 3))
    finish_store(tmp_path / "regions")
    return tmp_path / "regions"


def test_entailment(tmp_path: Path, regions: Path, tokenizer: Tokenizer) -> None:
    good = {"Flickr30K_ID": "42", "sentence2": "A cup.", "pairID": "42.jpg#0r1e", "gold_label": "neutral", "sentence1": "x"}
    lines = [
        good,
        {**good, "gold_label": "-"},
        {**good, "Flickr30K_ID": "43"},
        {**good, "sentence2": " "},
        {**good, "gold_label": None},
    ]
    path = tmp_path / "file.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + "{broken\n")
    rejects = Rejects()
    found = list(Entailment(tokenizer).read(EntailmentFiles(path=path, regions=regions), rejects, teach=True))
    assert [(example.name, example.texts, example.image, example.label) for example in found] == [
        ("42.jpg#0r1e", ("A cup.",), "42.jpg", 1),
        ("42.jpg#0r1e", ("A cup.",), "42.jpg", None),
    ]
    for reason, line, words in zip(
        rejects.reasons, (2, 3, 4, 6), ("label '-' is none", "no regions", "sentence2", "Expecting"), strict=True
    ):
        assert f"file.jsonl:{line}: " in reason and words in reason


def vqa_files(folder: Path, regions: Path, **others: Any) -> VqaFiles:
    question = {"question_id": 420, "image_id": 42, "question": "What is it?"}
    questions = [question, {**question, "image_id": 43}, {**question, "question_id": 7}, {"image_id": 42}]
    (folder / "questions.json").write_text(json.dumps({"questions": questions}))
    answers = [{"answer": answer} for answer in ["Two", "2", "two.", *["cat"] * 7]]
    annotations = [{"question_id": 420, "multiple_choice_answer": "cat", "answers": answers}, {"question_id": 9}]
    (folder / "annotations.json").write_text(json.dumps({"annotations": annotations}))
    return VqaFiles(questions=folder / "questions.json", annotations=folder / "annotations.json", regions=regions, **others)


def test_vqa(tmp_path: Path, regions: Path) -> None:
    files, rejects, task = vqa_files(tmp_path, regions), Rejects(), Vqa(["cat", "2", "dog"])
    (example,) = task.read(files, rejects, teach=True)
    assert (example.name, example.image, len(example.label)) == ("420", "COCO_val2014_000000000042.jpg", 10)
    (targets,) = task.targets([example]).tolist()
    assert targets == pytest.approx([1.0, 0.9, 0.0]), "Two, 2 and two. are one answer, given three times"
    assert rejects.count == 4
    for reason, words in zip(rejects.reasons, ("annotations[1]", "questions[1]", "questions[2]", "questions[3]"), strict=True):
        assert words in reason


def test_images_of_vqa_by_a_listing(tmp_path: Path, regions: Path) -> None:
    (tmp_path / "listing.json").write_text(json.dumps({"images": [{"id": 42, "file_name": "val/other.jpg"}]}))
    files, rejects = vqa_files(tmp_path, regions, images=tmp_path / "listing.json"), Rejects()
    (example,) = Vqa(["cat"]).read(files, rejects, teach=True)
    assert example.image == "val/other.jpg"
    assert any("number 43, which" in reason for reason in rejects.reasons)


def test_the_common_answers_are_those_given_often_enough(tmp_path: Path) -> None:
    answers = ["Cat", "cat.", "dog", "a dog", "dog", "two", "bird"]
    annotations = [{"multiple_choice_answer": answer} for answer in answers]
    (tmp_path / "annotations.json").write_text(json.dumps({"annotations": annotations}))
    files = {"questions": "q", "annotations": str(tmp_path / "annotations.json"), "regions": "r"}
    section = VqaSection.model_validate({"family": "vqa", "answer_count": 2, "train": [files], "dev": {"dev": files}})
    assert common_answers(section) == ["dog", "cat"]


def captions(files: CaptionFiles, teach: bool, tokenizer: Tokenizer) -> tuple[list[Example], Rejects]:
    section = {"family": "captioning", "train": files.model_dump(), "dev": {"dev": files.model_dump()}}
    rejects = Rejects()
    return list(Captioning(CaptioningSection.model_validate(section), tokenizer).read(files, rejects, teach)), rejects


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(["A cup is red."], 270, folder)
    return Tokenizer(folder)


def test_captions_of_coco(tmp_path: Path, regions: Path, tokenizer: Tokenizer) -> None:
    images = [{"id": 42, "file_name": "42.jpg"}, {"id": 43, "file_name": "43.jpg"}, {"id": 5}]
    told = [{"image_id": 42, "caption": "A cup."}, {"image_id": 42, "caption": "One cup."}, {"image_id": 42, "caption": ""}]
    (tmp_path / "captions.json").write_text(json.dumps({"images": images, "annotations": told}))
    files = CaptionFiles(path=tmp_path / "captions.json", regions=regions)
    taught, rejects = captions(files, True, tokenizer)
    assert [(each.name, each.image, each.target) for each in taught] == [
        ("42", "42.jpg", "A cup."),
        ("42", "42.jpg", "One cup."),
    ]
    assert [
        words in reason for words, reason in zip(("annotations[2]", "43.jpg", "images[2]"), rejects.reasons, strict=True)
    ] == [True] * 3
    (evaluated,), _ = captions(files, False, tokenizer)
    assert evaluated.label == ["A cup.", "One cup."] and not evaluated.target


def test_captions_of_karpathys_split(tmp_path: Path, regions: Path, tokenizer: Tokenizer) -> None:
    image = {"cocoid": 7, "filename": "other.jpg", "split": "val", "sentences": [{"raw": "A cup."}, {"raw": "Two cups."}]}
    images = [image, {**image, "split": "train"}, {"filename": "x.jpg"}]
    (tmp_path / "dataset.json").write_text(json.dumps({"images": images}))
    files = CaptionFiles(path=tmp_path / "dataset.json", splits=["val", "restval"], regions=regions, images="val/{}")
    (evaluated,), rejects = captions(files, False, tokenizer)
    assert (evaluated.name, evaluated.image, evaluated.label) == ("7", "val/other.jpg", ["A cup.", "Two cups."])
    assert rejects.count == 1 and "images[2]: 'split'" in rejects.reasons[0]


def test_retrieval_reads_karpathys_split_of_flickr30k(tmp_path: Path, regions: Path, tokenizer: Tokenizer) -> None:
    image = {"imgid": 7, "filename": "other.jpg", "split": "val", "sentences": [{"raw": "A cup."}, {"raw": "Two cups."}]}
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"images": [image, {**image, "filename": "lost.jpg"}], "dataset": "flickr30k"}))
    content = {"path": path, "regions": regions, "splits": ["val"], "images": "val/{}"}
    section = {"family": "retrieval", "train": content, "dev": {"dev": content}, "negatives": 1}
    task, rejects = Retrieval(RetrievalSection.model_validate(section), tokenizer), Rejects()
    found = list(task.read(CaptionFiles.model_validate(content), rejects, teach=False))
    assert [(each.name, each.texts, each.image) for each in found] == [
        ("7", ("A cup.",), "val/other.jpg"),
        ("7", ("Two cups.",), "val/other.jpg"),
    ]
    assert rejects.count == 1 and "image 'val/lost.jpg' has no regions" in rejects.reasons[0]
    with pytest.raises(
        DataError, match=r"dataset\.json: has 1 images with captions and regions; task\.negatives = 1 wants at least one more"
    ):
        list(task.read(CaptionFiles.model_validate(content), rejects, teach=True))
    content["splits"] = ["trian"]
    with pytest.raises(DataError, match=r"has no image of the splits trian; there are: val"):
        list(task.read(CaptionFiles.model_validate(content), Rejects(), teach=True))
    with pytest.raises(DataError, match=r"dataset\.json: holds several splits; say with `splits`"):
        list(task.read(CaptionFiles(path=path, regions=regions), rejects, teach=False))


def texts(files: TextFiles, teach: bool, tokenizer: Tokenizer) -> tuple[list[Example], Rejects]:
    dumped, rejects = files.model_dump(), Rejects()
    section = {"family": "writing", "metric": "rouge", "train": dumped, "dev": {"dev": dumped}, "decoding": {"longest": 9}}
    return list(TextWriting(WritingSection.model_validate(section), tokenizer).read(files, rejects, teach)), rejects


def test_texts_as_json_lines(tmp_path: Path, tokenizer: Tokenizer) -> None:
    lines = ['{"article": "A. B.", "highlights": "A."}', '{"article": "C."}', "[1]", '{"article": 3, "highlights": "x"}']
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    files = TextFiles(path=tmp_path / "texts.jsonl", source="article", target="highlights")
    taught, rejects = texts(files, True, tokenizer)
    assert [(each.texts, each.target) for each in taught] == [(("A. B.",), "A.")]
    assert [f":{line}: " in reason for line, reason in zip((2, 3, 4), rejects.reasons, strict=True)] == [True] * 3
    evaluated, _ = texts(files, False, tokenizer)
    assert [each.label for each in evaluated] == ["A.", None]


def test_texts_as_two_files_of_lines(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "src.txt").write_text("one\ntwo\n")
    (tmp_path / "tgt.txt").write_text("1\n2\n")
    files = TextFiles(path=tmp_path / "src.txt", targets=tmp_path / "tgt.txt")
    taught, _ = texts(files, True, tokenizer)
    assert [(each.texts[0], each.target) for each in taught] == [("one", "1"), ("two", "2")]
    (tmp_path / "tgt.txt").write_text("1\n")
    with pytest.raises(DataError, match=r"src\.txt has 2 lines.*tgt\.txt has 1.*line n of the one"):
        texts(files, True, tokenizer)


def test_questions_of_squad(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """The answer stands before its paragraph, so that a cut takes the paragraph's end."""
    asked = {"id": "q1", "question": "Where is it?", "answers": [{"text": "Rome", "answer_start": 3}, {"text": "in Rome"}]}
    bad = [{"id": "q2", "question": "Why?", "answers": []}, {"id": "q3", "answers": asked["answers"]}, 7]
    paragraphs = [{"context": "It is in Rome.", "qas": [asked, *bad]}, {"qas": [asked]}, {"context": "x"}]
    data = [{"title": "A", "paragraphs": paragraphs}, {"title": "B"}]
    files = TextFiles(path=tmp_path / "train-v1.1.json")
    for content in ({"data": data, "version": "1.1"}, {"version": "v2.0", "data": data}):
        files.path.write_text(json.dumps(content))
        taught, rejects = texts(files, True, tokenizer)
        assert [(each.name, each.texts, each.target) for each in taught] == [("q1", ("Rome", "It is in Rome."), "Where is it?")]
        assert rejects.count == 6
        where = ["[0].qas[1]: ", "[0].qas[2]: ", "[0].qas[3]: ", "[1].qas[0]: ", "[2].qas is None, expected a list"]
        for reason, place in zip(rejects.reasons, where, strict=True):
            assert f"train-v1.1.json: data[0].paragraphs{place}" in reason
    (evaluated,), _ = texts(files, False, tokenizer)
    assert evaluated.label == "Where is it?" and not evaluated.target
