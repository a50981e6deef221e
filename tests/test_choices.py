"""Tests by choice: a model that knows the answer gets all, one that knows nothing gets its chance, ties count half."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers import random_regions
from tests.life.small_run import flip_a_byte, write_candidates, write_config, write_inputs
from unimo_ds.choices import ChoiceTest, run_choices
from unimo_ds.config import ModelSection, RunConfig, load_config
from unimo_ds.errors import ConfigError, DataError
from unimo_ds.evaluate import open_held_out
from unimo_ds.model.unimo import UnimoModel
from unimo_ds.rewrites import Rewrite, RewrittenCaption, dump_caption
from unimo_ds.tokenizer import Tokenizer

CAPTIONS = [
    RewrittenCaption(
        f"{number:04}.jpg",
        f"A {colour} cup is beside a ball.",
        (),
        (
            Rewrite(f"A {other} cup is beside a ball.", "word", f"attribute: {colour} -> {other}", (2, 2 + len(other))),
            Rewrite(f"A {colour} tree is beside a ball.", "word", "object: cup -> tree"),
            Rewrite(f"A {other} fish.", "phrase", "phrase"),
        ),
    )
    for number, (colour, other) in enumerate([("red", "blue"), ("green", "white"), ("black", "brown")])
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("choices")
    write_inputs(folder)
    write_candidates(folder)
    (folder / "choices.jsonl").write_text("".join(map(dump_caption, CAPTIONS)))
    return folder


def config_of(inputs: Path, path: Path | None = None, *overrides: str, **section: int) -> RunConfig:
    choices = [{"name": "hard", "path": str(path or inputs / "choices.jsonl"), "regions": str(inputs / "regions"), **section}]
    pairs = {"name": "held_out", "kind": "pairs", "format": "coco_captions", "path": str(inputs / "captions.json")}
    evaluation = {"pairs": {**pairs, "regions": str(inputs / "regions")}, "choices": choices}
    tokenizer = Tokenizer(inputs / "tokenizer")
    model = {"size": "tiny", "hidden_size": 32, "layers": 2, "heads": 2, "feature_width": 24, "region_classes": 20}
    words = [f"evaluation={json.dumps(evaluation)}", f"model={json.dumps({**model, 'vocabulary_size': tokenizer.size})}"]
    return load_config(write_config(inputs, "choices"), [*words, *overrides])


def test_of(inputs: Path, path: Path | None = None, *overrides: str, **section: int) -> ChoiceTest:
    config = config_of(inputs, path, *overrides, **section)
    assert config.evaluation is not None
    return ChoiceTest(config.evaluation.choices[0], config, Tokenizer(config.data.tokenizer), show=True)


test_of.__test__ = False  # type: ignore[attr-defined]


class Oracle:
    """Scores whole texts by a function of their words, in place of a model."""

    def __init__(self, test: ChoiceTest, score: Any, word_loss: Any = lambda word: 1.0) -> None:
        self.test, self.score, self.word_loss = test, score, word_loss

    def __call__(self, batch: Any) -> Any:
        starts = batch.cu_seqlens_S1.tolist()
        vectors = []
        for row in batch.text_rows_X.tolist():
            end = next(start for start in starts if start > row)
            inside = (batch.token_rows_W >= row) & (batch.token_rows_W < end)
            vectors.append([self.score(self.test.tokenizer.decode(batch.token_ids_W[inside].tolist())), 0.0])
        ones = torch.tensor([[1.0, 0.0]] * len(vectors))
        losses = [self.word_loss(self.test.tokenizer.decode([label])) for label in batch.language_labels_M.tolist()]
        return SimpleNamespace(
            image_vectors_ID=ones, text_vectors_XD=torch.tensor(vectors), language_losses_M=torch.tensor(losses)
        )


def test_who_knows_the_truth_gets_all_and_who_prefers_the_false_nothing(inputs: Path) -> None:
    test = test_of(inputs)
    true = {caption.text for caption in CAPTIONS}
    best, examples = run_choices(Oracle(test, lambda text: float(text in true)), test)  # type: ignore[arg-type]
    worst, _ = run_choices(Oracle(test, lambda text: float(text not in true)), test)  # type: ignore[arg-type]
    for name in ("right", "beaten", "word", "phrase", "attribute", "object"):
        assert (best[f"eval/hard_{name}"], worst[f"eval/hard_{name}"]) == (1.0, 0.0)
    assert best["eval/hard_chance"] == 0.25
    assert {example.true for example in examples} == true and all(example.true_score == 1 for example in examples)


def test_ties_are_half_and_never_right(inputs: Path) -> None:
    test = test_of(inputs)
    numbers, _ = run_choices(Oracle(test, lambda text: 0.5), test)  # type: ignore[arg-type]
    assert numbers["eval/hard_right"] == 0.0 and numbers["eval/hard_beaten"] == numbers["eval/hard_words"] == 0.5


def test_each_level_and_kind_of_change_is_counted_by_itself(inputs: Path) -> None:
    test = test_of(inputs)
    numbers, _ = run_choices(Oracle(test, lambda text: float("cup" in text)), test)  # type: ignore[arg-type]
    assert numbers["eval/hard_object"] == 1.0 and numbers["eval/hard_attribute"] == 0.5 and numbers["eval/hard_phrase"] == 1.0
    assert numbers["eval/hard_word"] == 0.75 and numbers["eval/hard_beaten"] == pytest.approx(2.5 / 3)


def test_words_alone_compare_only_what_differs(inputs: Path) -> None:
    """The true colour is likelier than every other, the tree likelier than the cup; common words do not count."""
    test = test_of(inputs)
    likely = {" tree": 0.1, " cup": 0.9, " red": 0.2, " green": 0.2, " black": 0.1, " blue": 0.5, " white": 0.5}
    oracle = Oracle(test, lambda text: 0.0, lambda word: likely.get(word if word[0] == " " else f" {word}", 0.5))
    numbers, _ = run_choices(oracle, test)  # type: ignore[arg-type]
    assert 0.2 < numbers["eval/hard_words"] < 1.0
    colours = test_of(inputs, write(inputs, "colours", keep=lambda rewrite: rewrite.reason.startswith("attribute")))
    assert run_choices(Oracle(colours, lambda text: 0.0, oracle.word_loss), colours)[0]["eval/hard_words"] == 1.0  # type: ignore[arg-type]
    things = test_of(inputs, write(inputs, "things", keep=lambda rewrite: rewrite.reason.startswith("object")))
    assert run_choices(Oracle(things, lambda text: 0.0, oracle.word_loss), things)[0]["eval/hard_words"] == 0.0  # type: ignore[arg-type]


def write(inputs: Path, name: str, keep: Any) -> Path:
    path = inputs / f"{name}.jsonl"
    kept = [RewrittenCaption(c.image, c.text, (), tuple(filter(keep, c.negatives))) for c in CAPTIONS]
    path.write_text("".join(map(dump_caption, kept)))
    return path


@pytest.mark.parametrize("objective", ["objectives.cmcl.weight=1", "objectives.cmcl.weight=0"])
def test_a_real_model_is_scored_by_what_it_was_trained_on(inputs: Path, objective: str) -> None:
    test = test_of(inputs, None, objective, "objectives.matching=1")
    torch.manual_seed(0)
    unimo = UnimoModel(ModelSection.model_validate(test.config.model.model_dump())).eval()
    numbers, examples = run_choices(unimo, test)
    assert all(0 <= value <= 1 for value in numbers.values()) and len(examples) == 3
    again, _ = run_choices(unimo, test)
    assert numbers == again
    with torch.no_grad():
        unimo.matching_head.score.bias.add_(5.0)  # moves every logit alike, and no cosine
    moved = run_choices(unimo, test)[1]
    assert (moved[0].true_score == examples[0].true_score) == (objective == "objectives.cmcl.weight=1")


def test_only_so_many_captions_and_negatives_spread_over_file_and_levels(inputs: Path) -> None:
    test = test_of(inputs, None, captions=2, negatives=2)
    assert [caption.image for caption in test.captions] == ["0000.jpg", "0002.jpg"]
    assert [[rewrite.level for rewrite in chosen] for chosen in test.negatives] == [["phrase", "word"]] * 2


def test_what_cannot_be_used_is_told(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "choices.jsonl"
    lost = dump_caption(RewrittenCaption("gone.jpg", "A cup.", (), (Rewrite("A tree.", "word", ""),)))
    path.write_text("{\n" + lost + dump_caption(RewrittenCaption("0001.jpg", "A cup.")) + dump_caption(CAPTIONS[0]))
    assert len(test_of(inputs, path).captions) == 1
    told = capsys.readouterr().err
    assert "choices hard: 2 records left out, 1 used" in told and f"{path}:1:" in told and "'gone.jpg' has no regions" in told
    path.write_text(lost)
    with pytest.raises(DataError, match="not one caption with negatives that has an image"):
        test_of(inputs, path)


def test_a_damaged_image_costs_its_captions_and_not_the_evaluation(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = tmp_path / "inputs"
    shutil.copytree(inputs, copied)
    whole = open_held_out(config_of(copied), Tokenizer(copied / "tokenizer"), show=True)
    assert whole is not None and "0000.jpg" in whole.images
    capsys.readouterr()
    rng = np.random.default_rng(0)
    victim = random_regions(rng, int(rng.integers(5, 12))).features_RF.tobytes()[:64]  # of the first image written
    flip_a_byte(copied / "regions/shard-00000/data.mdb", victim)
    damaged = open_held_out(config_of(copied), Tokenizer(copied / "tokenizer"), show=True)
    assert damaged is not None
    assert damaged.images == [key for key in whole.images if key != "0000.jpg"]
    assert [caption.image for caption in damaged.choices[0].captions] == ["0001.jpg", "0002.jpg"]
    told = capsys.readouterr().err
    assert "evaluation.pairs: 1 records left out" in told and "evaluation.choices hard: 1 records left out" in told
    assert told.count("image '0000.jpg': the checksum does not match") == 2


def test_choices_without_an_objective_that_scores_are_refused(inputs: Path) -> None:
    with pytest.raises(ConfigError, match="nothing scores an image with a caption"):
        config_of(inputs, None, "objectives.cmcl.weight=0")
