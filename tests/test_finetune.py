"""Fine-tuning in one process: every family learns, is evaluated and predicts by the same path; its best checkpoint is kept."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from tests.tasks.small_task import ANSWERS, CLASSES, IMAGES, Inputs, write_inputs
from unimo_ds.cli import app, main
from unimo_ds.config import AdversarialSection, EntailmentFiles, TaskDataSection, load_finetune_config
from unimo_ds.engine.checkpoint_folder import best_checkpoint, read_state
from unimo_ds.errors import CheckpointError, ConfigError, DataError, StoreError
from unimo_ds.finetune import evaluate_finetuned, finetune, predict_sets
from unimo_ds.opening import is_finetuned
from unimo_ds.tasks import examples
from unimo_ds.tasks.entailment import Entailment
from unimo_ds.tasks.examples import ExampleSet, TaskSteps
from unimo_ds.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return write_inputs(tmp_path_factory.mktemp("tasks"))


def run(inputs: Inputs, name: str, task: dict[str, Any], *overrides: str, **training: object) -> Path:
    finetune(load_finetune_config(inputs.config(name, task, **training), overrides))
    return inputs.folder / name


def numbers(folder: Path, name: str) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row[name]) for row in rows if name in row]


@pytest.mark.long
@pytest.mark.parametrize(
    ("family", "metric", "least", "epochs"),
    [
        ("sentences", "accuracy", 0.95, 30),
        ("similarity", "correlation", 0.9, 40),
        ("entailment", "accuracy", 0.9, 20),
        ("vqa", "accuracy", 0.95, 12),
        ("retrieval", "mean_r1", 0.95, 80),
        ("captioning", "cider_d", 5.0, 16),
        ("writing", "rouge_l", 0.85, 24),
        ("dialogue", "f1", 0.95, 32),
    ],
)
def test_every_family_learns_and_is_worth_the_same_when_opened_again(
    inputs: Inputs, family: str, metric: str, least: float, epochs: int
) -> None:
    folder = run(inputs, family, getattr(inputs, family)(), epochs=epochs, keep_checkpoints=1)
    found = numbers(folder, f"eval/dev_{metric}")
    best_step, best = max(found, key=lambda each: each[1])  # the first of several
    assert best >= least
    assert (folder / "DONE").exists() and is_finetuned(folder)
    assert best_checkpoint(folder / "checkpoints") == folder / f"checkpoints/step-{best_step:08}", "the best one is kept"
    assert evaluate_finetuned(folder, [])[f"dev_{metric}"] == pytest.approx(best, abs=1e-6)


@pytest.fixture(scope="module")
def tuned(inputs: Inputs) -> dict[str, Path]:
    """A short run of every family."""
    return {
        family: run(inputs, f"short_{family}", getattr(inputs, family)(), "data.workers=1", epochs=1)
        for family in ("sentences", "entailment", "vqa", "retrieval", "captioning", "writing", "dialogue")
    }


def test_predictions_have_the_form_of_the_public_evaluations(inputs: Inputs, tuned: dict[str, Path], tmp_path: Path) -> None:
    (sentences,) = predict_sets(tuned["sentences"], tmp_path / "sentences", [])
    lines = sentences.read_text().splitlines()
    assert sentences.name == "dev.tsv" and lines[0] == "index\tprediction" and len(lines) == 21
    assert {line.split("\t")[1] for line in lines[1:]} <= {"0", "1", "2", "3"}
    (entailment,) = predict_sets(tuned["entailment"], tmp_path / "entailment", [])
    rows = [json.loads(line) for line in entailment.read_text().splitlines()]
    assert [row["pairID"] for row in rows] == [str(number) for number in range(20)]
    assert {row["prediction"] for row in rows} <= set(CLASSES)
    (vqa,) = predict_sets(tuned["vqa"], tmp_path / "vqa", [])
    answers = json.loads(vqa.read_text())
    assert [answer["question_id"] for answer in answers] == list(range(20))
    assert {answer["answer"] for answer in answers} <= set(ANSWERS)
    (retrieval,) = predict_sets(tuned["retrieval"], tmp_path / "retrieval", [])
    rows = [json.loads(line) for line in retrieval.read_text().splitlines()]
    assert all(len(row["found"]) == 4 and row["image"] in row["found"] for row in rows) and len(rows) == 4
    (retrieval,) = predict_sets(tuned["retrieval"], tmp_path / "two_stages", ["task.candidates=1"])
    rows = [json.loads(line) for line in retrieval.read_text().splitlines()]
    assert all(1 <= len(row["found"]) <= 4 for row in rows) and any(len(row["found"]) < 4 for row in rows), "what was scored"
    (captioning,) = predict_sets(tuned["captioning"], tmp_path / "captioning", [])
    assert all(type(each["image_id"]) is int and type(each["caption"]) is str for each in json.loads(captioning.read_text()))
    (writing,) = predict_sets(tuned["writing"], tmp_path / "writing", [])
    assert writing.name == "dev.txt" and len(writing.read_text().splitlines()) == 20
    (dialogue,) = predict_sets(tuned["dialogue"], tmp_path / "dialogue", [])
    rows = json.loads(dialogue.read_text())
    assert [(row["id"], row["turn_id"]) for row in rows] == [(f"story {n}", turn) for n in range(10) for turn in (1, 2)]
    assert all(type(row["answer"]) is str for row in rows)


def test_the_commands_tell_a_task_from_a_pretrained_model(tuned: dict[str, Path], tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["evaluate", str(tuned["vqa"])])
    assert shown.exit_code == 0 and "dev_accuracy" in shown.output
    shown = CliRunner().invoke(app, ["predict", "sets", str(tuned["vqa"]), "--out", str(tmp_path)])
    assert shown.exit_code == 0 and shown.output.strip() == str(tmp_path / "dev.json")


def test_a_report_shows_the_best_and_the_worst_answers(
    inputs: Inputs, tuned: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(IMAGES):
        Image.new("RGB", (200, 160), "red").save(tmp_path / f"{number}.jpg")
    for family, folder in tuned.items():
        found = evaluate_finetuned(folder, [], tmp_path)
        checkpoint = best_checkpoint(folder / "checkpoints")
        assert checkpoint is not None and json.loads((checkpoint / "evaluation.json").read_text()) == found
        page = (checkpoint / "report.html").read_text()
        listed = {"captioning": "dev_captions.json", "retrieval": "dev_flickr.json"}.get(family)
        shown = len(json.loads((inputs.folder / listed).read_text())["images"]) if listed is not None else 20
        assert page.count("<article") == shown and "Best" in page and "Worst" in page, "of a small set each example once"
        assert page.count("data:image/jpeg") == (0 if family in ("sentences", "writing", "dialogue") else shown)
        assert "regions drawn" in page or family in ("sentences", "writing", "dialogue")
        assert "http" not in page and "no --images folder" not in page
    assert capsys.readouterr().out.count("report.html: the best and worst answers") == len(tuned)
    evaluate_finetuned(tuned["vqa"], [])
    page = (tuned["vqa"] / "checkpoints/step-00000004/report.html").read_text()
    assert page.count("data:image/jpeg") == 20 and "no --images folder was given" in page


def test_batches_made_by_a_worker_are_the_same(tuned: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    small = ["data.positions_per_micro_batch=128"]
    alone = evaluate_finetuned(tuned["retrieval"], small)
    monkeypatch.setattr(examples, "_WORTH_A_WORKER", 2)
    assert evaluate_finetuned(tuned["retrieval"], small) == alone


def test_a_set_without_labels_is_not_scored_and_that_is_said(
    inputs: Inputs, tuned: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "unlabelled.tsv").write_text("index\tsentence\n7\tThe cup is red.\n")
    found = evaluate_finetuned(tuned["sentences"], [f"task.dev.other.path={tmp_path / 'unlabelled.tsv'}"])
    assert list(found) == ["dev_accuracy"]
    assert "dev other: not all examples have labels: it is not scored" in capsys.readouterr().out
    assert "nothing to judge" in (tuned["sentences"] / "checkpoints/step-00000004/report.html").read_text()


def test_a_wrong_folder_of_pictures_is_named(tuned: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--images .*nowhere: is no folder"):
        evaluate_finetuned(tuned["vqa"], [], tmp_path / "nowhere")
    shown = CliRunner().invoke(app, ["evaluate", str(tmp_path), "--images", str(tmp_path)])
    assert isinstance(shown.exception, ConfigError) and "is for the report of a fine-tuned run" in str(shown.exception)


def test_a_perturbed_run_is_evaluated_without_perturbations(inputs: Inputs) -> None:
    task = {**inputs.captioning(), "adversarial": {"rounds": 2, "learning_rate": 0.1}}
    folder = run(inputs, "perturbed", task, epochs=2)
    ((_, first), (_, last)) = numbers(folder, "eval/dev_cider_d")
    assert evaluate_finetuned(folder, ["task.adversarial=null"])["dev_cider_d"] == pytest.approx(max(first, last), abs=1e-6)


def test_all_views_of_perturbed_examples_count_in_the_budget_of_a_micro_batch(inputs: Inputs) -> None:
    files = EntailmentFiles.model_validate(inputs.entailment()["train"])
    tokenizer = Tokenizer(inputs.checkpoint / "tokenizer")
    task = Entailment(tokenizer, AdversarialSection(learning_rate=0.1))
    examples = ExampleSet.read("train", task, [files], tokenizer, TaskDataSection(), teach=True, show=False)
    batches = TaskSteps(examples, batch_size=32, budget=300, seed=1, feature_width=24)[0].batches
    assert sum(batch.count for batch in batches) == 32 and max(3 * batch.batch.positions for batch in batches) <= 300


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_command_takes_deepspeed_s_own_word_and_says_an_error_once(
    rank: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["unimo-ds", f"--local_rank={rank}", "evaluate", "nowhere", "--images", "x"])
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match="1"):
        main()
    assert ("error: --images x" in capsys.readouterr().err) == (rank == "0")


def test_a_finished_run_says_so_and_more_epochs_go_on(inputs: Inputs, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run(inputs, "longer", inputs.sentences(), epochs=1)
    run(inputs, "longer", inputs.sentences(), epochs=1)
    assert "already at step 4 of 4; raise training.epochs" in capsys.readouterr().out
    run(inputs, "longer", inputs.sentences(), epochs=2)
    assert [step for step, _ in numbers(folder, "loss")] == list(range(1, 9))
    assert "resumed at step 4" in capsys.readouterr().out


def test_a_run_that_was_killed_in_its_last_evaluation_makes_up_for_it(inputs: Inputs) -> None:
    folder = run(inputs, "unjudged", inputs.sentences(), epochs=1)
    metrics, evaluations = (folder / "metrics.jsonl").read_text(), numbers(folder, "eval/dev_accuracy")
    (folder / "metrics.jsonl").write_text("".join(line for line in metrics.splitlines(True) if "eval/" not in line))
    for name in ("DONE", "checkpoints/best"):
        (folder / name).unlink()
    run(inputs, "unjudged", inputs.sentences(), epochs=1)
    assert numbers(folder, "eval/dev_accuracy") == evaluations[-1:]
    assert (folder / "DONE").exists() and best_checkpoint(folder / "checkpoints") is not None
    assert (folder / "metrics.jsonl").read_text().count('"loss"') == metrics.count('"loss"')


def test_a_start_gives_its_weights_and_a_head_only_for_the_same_answers(inputs: Inputs, tuned: dict[str, Path]) -> None:
    start = tuned["vqa"] / "checkpoints/step-00000004"
    assert best_checkpoint(tuned["vqa"] / "checkpoints") == start, "what the run folder stands for"
    still = ("training.learning_rate=1e-12", "training.weight_decay=0")
    again = run(inputs, "again", inputs.vqa(), f"init={tuned['vqa']}", *still, epochs=1)
    before, after = (load_file(folder / "model.safetensors") for folder in (start, again / "checkpoints/step-00000004"))
    assert all(after[name].allclose(value, atol=1e-7) for name, value in before.items()) and "head.answers.weight" in before
    other = run(inputs, "other", {**inputs.vqa(), "answer_count": 12}, f"init={start}", *still, epochs=1)
    after = load_file(other / "checkpoints/step-00000004/model.safetensors")
    assert after["embedding.text.word.weight"].allclose(before["embedding.text.word.weight"], atol=1e-7)
    assert not after["head.expand.weight"].allclose(before["head.expand.weight"], atol=1e-3)
    assert read_state(other / "checkpoints/step-00000004")["task"]["answers"] != read_state(start)["task"]["answers"]
    fresh = run(inputs, "fresh", inputs.vqa(), f"init={start}", "random_weights=true", *still, epochs=1)
    after = load_file(fresh / "checkpoints/step-00000004/model.safetensors")
    assert not after["embedding.text.word.weight"].allclose(before["embedding.text.word.weight"], atol=1e-3)


def test_roles_and_turns_are_new_once_and_go_on_in_dialogues_alone(inputs: Inputs, tuned: dict[str, Path]) -> None:
    still = ("training.learning_rate=1e-12", "training.weight_decay=0")
    end = "checkpoints/step-00000004/model.safetensors"
    before, pretrained = load_file(tuned["dialogue"] / end), load_file(inputs.checkpoint / "model.safetensors")
    voices = {name: value for name, value in before.items() if "embedding.text.voice" in name}
    assert [tuple(value.shape) for value in voices.values()] == [(3, 32), (16, 32)]
    assert not any("voice" in name for name in pretrained)
    again, other = (
        load_file(
            run(inputs, f"{family}_after", getattr(inputs, family)(), f"init={tuned['dialogue']}", *still, epochs=1) / end
        )
        for family in ("dialogue", "writing")
    )
    assert all(again[name].allclose(value, atol=1e-7) for name, value in before.items())
    assert set(before) - set(other) == set(voices)


def test_a_run_is_not_resumed_with_other_answers(inputs: Inputs) -> None:
    run(inputs, "answers", inputs.vqa(), epochs=1)
    with pytest.raises(CheckpointError, match=r"other answers.*choose another folder"):
        run(inputs, "answers", {**inputs.vqa(), "answer_count": 12}, epochs=2)


def test_a_run_folder_is_of_one_task(inputs: Inputs, tuned: dict[str, Path]) -> None:
    folder = f"folder={tuned['sentences']}"
    with pytest.raises(CheckpointError, match=r"another task.*choose another folder"):
        run(inputs, "another", inputs.writing(), folder, epochs=2)
    with pytest.raises(CheckpointError, match=r"chosen by rouge_l, not bleu_4; choose another folder"):
        run(inputs, "other_metric", {**inputs.writing(), "metric": "bleu"}, f"folder={tuned['writing']}", epochs=2)
    with pytest.raises(ConfigError, match=r"other labels; task\.family and task\.labels are its own"):
        evaluate_finetuned(tuned["sentences"], ["task.labels=['3', '2', '1', '0']"])


def test_what_has_no_label_is_neither_taught_nor_scored(inputs: Inputs, tmp_path: Path) -> None:
    lines = (inputs.folder / "entailment_train.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    without = [{key: value for key, value in row.items() if key != "gold_label"} for row in rows]
    for name, content in {"none": without, "some": rows[:3] + without[3:5]}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    path = f"path={tmp_path}"
    with pytest.raises(DataError, match=r"train: not one example can be used; example '0' has no label"):
        run(inputs, "untaught", inputs.entailment(), f"task.train.{path}/none.jsonl", epochs=1)
    with pytest.raises(
        DataError, match=r"task\.dev\.dev: 2 of 5 examples have no label, first '3'.*move the set to task\.test"
    ):
        run(inputs, "unscored", inputs.entailment(), f"task.dev.dev.{path}/some.jsonl", epochs=1)


def test_texts_longer_than_the_model_are_refused_at_once(inputs: Inputs) -> None:
    with pytest.raises(ConfigError, match=r"data\.max_text_tokens = 2000: .* has positions for 512; lower it"):
        run(inputs, "long", inputs.sentences(), "data.max_text_tokens=2000")
    with pytest.raises(ConfigError, match=r"task\.decoding\.longest = 600: "):
        run(inputs, "long", inputs.captioning(), "task.decoding.longest=600")


def test_a_step_larger_than_the_set_is_an_epoch(inputs: Inputs) -> None:
    folder = run(inputs, "large_steps", inputs.sentences(), epochs=3, batch_size=500)
    assert [step for step, _ in numbers(folder, "loss")] == [1, 2, 3]


def test_a_text_model_cannot_start_a_task_with_images(inputs: Inputs, tuned: dict[str, Path]) -> None:
    start = tuned["sentences"] / "checkpoints/step-00000004"
    with pytest.raises(CheckpointError, match=r"lacks unimo\.image_pooler.*start from a pre-trained checkpoint"):
        run(inputs, "from_text", inputs.vqa(), f"init={start}")


def test_wrong_inputs_are_named(inputs: Inputs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere: neither a checkpoint .* nor a run folder.*set init"):
        run(inputs, "no_start", inputs.sentences(), f"init={tmp_path / 'nowhere'}")
    with pytest.raises(DataError, match=r"no answer of task\.train is given so often; lower it"):
        run(inputs, "rare", {**inputs.vqa(), "answer_count": 1000})
    with pytest.raises(DataError, match=r"train: not one example can be used.*label '2' is none of 'yes', 'no'"):
        run(inputs, "labels", {**inputs.sentences(), "labels": ["yes", "no"]})
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(inputs.checkpoint, elsewhere)
    state = read_state(elsewhere)
    (elsewhere / "state.json").write_text(json.dumps({**state, "detector": {**state["detector"], "weights_sha256": "1" * 64}}))
    with pytest.raises(StoreError, match="detector"):
        run(inputs, "detector", inputs.vqa(), f"init={elsewhere}")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.famly=vqa", r"unknown key task\.famly = 'vqa'; did you mean 'family'"),
        ("task.answers=3", r"unknown key task\.answers = 3; did you mean 'answer_count'|unknown key task\.answers"),
        ("task.adversarial.rounds=2", r"unknown key task\.adversarial = "),
        ("task.family=video", r"task.*'video'.*'sentences', 'entailment', 'vqa'"),
        ("task.dev={}", r"task\.dev = \{\}"),
        ("training.epochs=0", r"training\.epochs = 0"),
        ("training.steps=3", r"unknown key training\.steps"),
    ],
)
def test_wrong_keys_are_named_as_the_user_wrote_them(inputs: Inputs, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_finetune_config(inputs.config("keys", inputs.vqa()), [override])
