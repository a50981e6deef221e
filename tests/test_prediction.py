"""What is said of a photograph is what is said of its regions in a store: every family beside the predictions for sets."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.small_models import SmallWorld, write_pretrained, write_small_world, write_tuned
from unimo_ds.cli import app
from unimo_ds.errors import ConfigError, DataError, StoreError
from unimo_ds.finetune import predict_sets
from unimo_ds.prediction import answer_questions, caption_photographs, judge_sentences, match_photographs
from unimo_ds.pretrained import Unimo


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> SmallWorld:
    return write_small_world(tmp_path_factory.mktemp("world"))


def tuned(world: SmallWorld, folder: Path, family: str, **task: Any) -> Path:
    return write_tuned(folder / family, world.tokenizer, world.store.detector, 256, {**world.task(family), **task})


def of_sets(run: Path, out: Path) -> str:
    (file,) = predict_sets(run, out, [])
    return file.read_text()


def read(world: SmallWorld, name: str) -> Any:
    return json.loads((world.folder / "world" / name).read_text())


def test_questions_are_answered_as_in_a_set(world: SmallWorld, tmp_path: Path) -> None:
    run = tuned(world, tmp_path, "vqa")
    expected = {each["question_id"]: each["answer"] for each in json.loads(of_sets(run, tmp_path))}
    asked = read(world, "vqa/v2_OpenEnded_world_val_questions.json")["questions"]
    for image, photograph in zip(read(world, "annotations/captions_val.json")["images"], world.pictures, strict=True):
        about = [each for each in asked if each["image_id"] == image["id"]]
        said = answer_questions(photograph, [each["question"] for each in about], run, tmp_path / "drawn")
        for question, prediction in zip(about, said.found, strict=True):
            assert prediction.asked == question["question"]
            assert prediction.answers[0][0] == expected[question["question_id"]]
            probabilities = [number for _, number in prediction.answers]
            assert len(probabilities) == 5 and probabilities == sorted(probabilities, reverse=True)
    assert len(set(expected.values())) > 1, "a model that always says the same would hide a mistake"


def test_sentences_are_judged_as_in_a_set(world: SmallWorld, tmp_path: Path) -> None:
    run = tuned(world, tmp_path, "entailment")
    expected = {each["pairID"]: each["prediction"] for each in map(json.loads, of_sets(run, tmp_path).splitlines())}
    rows = [json.loads(line) for line in (world.folder / "world/snli_ve/snli_ve_dev.jsonl").read_text().splitlines()]
    for photograph in world.pictures:
        about = [row for row in rows if row["Flickr30K_ID"] == photograph.stem]
        said = judge_sentences(photograph, [row["sentence2"] for row in about], run, tmp_path / "drawn")
        assert [each.answers[0][0] for each in said.found] == [expected[row["pairID"]] for row in about] and about
        for each in said.found:
            assert len(each.answers) == 3 and sum(number or 0 for _, number in each.answers) == pytest.approx(1)
    assert len(set(expected.values())) > 1


@pytest.mark.parametrize("task", [{}, {"object_tags": {"threshold": 0.35}}], ids=["regions", "object tags"])
def test_captions_are_written_as_for_a_set(world: SmallWorld, tmp_path: Path, task: dict[str, Any]) -> None:
    run = tuned(world, tmp_path, "captioning", **task)
    expected = [each["caption"] for each in json.loads(of_sets(run, tmp_path))]
    said = caption_photographs(world.pictures, run, tmp_path / "drawn")
    assert [each.answers for each in said.found] == [[(caption, None)] for caption in expected]
    assert len(set(expected)) > 1


def test_photographs_are_found_as_in_a_set(world: SmallWorld, tmp_path: Path) -> None:
    run = tuned(world, tmp_path, "retrieval")
    expected = [json.loads(line) for line in of_sets(run, tmp_path).splitlines()]
    said = match_photographs(world.pictures, [row["caption"] for row in expected], run, tmp_path / "drawn")
    texts, photographs = said.found[: len(expected)], said.found[len(expected) :]
    assert [[f"val/{Path(name).name}" for name, _ in each.answers] for each in texts] == [row["found"] for row in expected]
    assert len({tuple(row["found"]) for row in expected}) > 1
    both_ways = [
        {(each.asked, name): score for each in texts for name, score in each.answers},
        {(text, each.asked): score for each in photographs for text, score in each.answers},
    ]
    assert both_ways[0] == both_ways[1]
    assert all(each.answers == sorted(each.answers, key=lambda answer: -(answer[1] or 0)) for each in photographs)


def test_a_pretrained_model_captions_and_finds(world: SmallWorld, tmp_path: Path) -> None:
    run = write_pretrained(tmp_path / "run", world.tokenizer, world.store.detector, 256)
    regions = world.regions
    model = Unimo.from_pretrained(run)
    said = caption_photographs(world.pictures, run, tmp_path / "drawn")
    assert [each.answers[0][0] for each in said.found] == model.generate(regions)
    said = match_photographs(world.pictures, ["a bell", "a red chair"], run, tmp_path / "drawn")
    scores = dict(said.found[1].answers)
    expected = model.score(regions, "a red chair")[:, 0].tolist()
    assert [scores[str(path)] for path in world.pictures] == pytest.approx(expected, abs=1e-4)


def test_a_photograph_is_drawn_with_boxes_and_what_was_said(world: SmallWorld, tmp_path: Path) -> None:
    run = write_pretrained(tmp_path / "run", world.tokenizer, world.store.detector, 256)
    twin = tmp_path / world.pictures[0].name  # of the same name, in another folder
    twin.write_bytes(world.pictures[0].read_bytes())
    said = match_photographs([world.pictures[0], twin], ["a bell"] * 9, run, tmp_path / "drawn")
    stem = twin.stem
    assert said.drawings == [tmp_path / f"drawn/{stem}.png", tmp_path / f"drawn/{stem}-2.png"]
    with Image.open(said.drawings[0]) as drawn, Image.open(twin) as photograph:
        height = photograph.height * 640 // photograph.width
        assert drawn.width == 640 and drawn.height > height
        plain = np.array(photograph.convert("RGB").resize((640, height), Image.Resampling.LANCZOS)).astype(int)
        found = np.array(drawn).astype(int)
        assert (abs(found[:height] - plain).max(2) > 100).sum() > 100, "boxes"
        beneath = found[height:]
        assert (beneath == 255).mean() > 0.5 and (beneath < 100).any(), "black on white"


def test_a_drawing_takes_nobody_s_place(world: SmallWorld, tmp_path: Path) -> None:
    run = write_pretrained(tmp_path / "run", world.tokenizer, world.store.detector, 256)
    with Image.open(world.pictures[0]) as picture:
        for name in ("a.png", "a.webp", "a-2.png"):
            picture.save(tmp_path / name)
    before = {path: path.read_bytes() for path in tmp_path.glob("a*")}
    said = match_photographs(sorted(before), ["a bell"], run, tmp_path)
    assert {path: path.read_bytes() for path in before} == before
    assert len(set(said.drawings)) == 3 and not set(said.drawings) & set(before)


def test_what_cannot_be_read_is_named_and_stepped_over(world: SmallWorld, tmp_path: Path) -> None:
    run = write_pretrained(tmp_path / "run", world.tokenizer, world.store.detector, 256)
    (tmp_path / "torn.jpg").write_bytes(world.pictures[0].read_bytes()[:200])
    words = ["predict", "caption", str(tmp_path / "torn.jpg"), "--model", str(run), "--out", str(tmp_path / "drawn")]
    shown = CliRunner().invoke(app, [*words, str(world.pictures[1])])
    assert shown.exit_code == 0 and f"{tmp_path / 'torn.jpg'}: left out: " in shown.output
    assert (
        str(world.pictures[1]) in shown.output and f"drawn: {tmp_path / 'drawn' / world.pictures[1].stem}.png" in shown.output
    )
    shown = CliRunner().invoke(app, words)
    assert isinstance(shown.exception, DataError) and "not one of 1 photographs can be read" in str(shown.exception)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("caption", ["a.jpg", "b.jpg"]),
        ("vqa", ["a.jpg", "What?", "Where?"]),
        ("entail", ["a.jpg", "A cup."]),
        ("retrieve", ["a.jpg", "--text", "a cup", "--text", "a bell"]),
    ],
)
def test_every_command_says_which_family_it_wants(world: SmallWorld, tmp_path: Path, command: str, words: list[str]) -> None:
    files = {"path": "none"}
    task = {"family": "dialogue", "train": files, "dev": {"dev": files}}
    run = write_tuned(tmp_path / "run", world.tokenizer, world.store.detector, 256, task)
    shown = CliRunner().invoke(app, ["predict", command, *words, "--model", str(run)])
    assert isinstance(shown.exception, ConfigError)
    assert f"is a model of dialogue; `unimo-ds predict {command}` wants one of " in str(shown.exception)


def test_a_model_of_another_family_or_detector_is_refused(world: SmallWorld, tmp_path: Path) -> None:
    run = write_pretrained(tmp_path / "run", world.tokenizer, world.store.detector, 256)
    with pytest.raises(ConfigError, match=r"run: is a model of pre-training; `unimo-ds predict vqa` wants one of vqa"):
        answer_questions(world.pictures[0], ["What?"], run, tmp_path)
    with pytest.raises(
        ConfigError, match=r"is a model of vqa; `unimo-ds predict caption` wants one of captioning or pre-train"
    ):
        caption_photographs(world.pictures, tuned(world, tmp_path, "vqa"), tmp_path)
    other = {**world.store.detector, "weights_sha256": "0" * 64}
    strange = write_pretrained(tmp_path / "strange", world.tokenizer, other, 256)
    with pytest.raises(ConfigError, match=r"a detector that is not packaged \(faster-rcnn.*give it: --detector FILE"):
        caption_photographs(world.pictures, strange, tmp_path)
    with pytest.raises(StoreError, match=r"detector world: made by another detector than those of .*weights_sha256: 'adf"):
        caption_photographs(world.pictures, strange, tmp_path, "world")
