"""Converted weights compute what they computed where they come from, on every kind of sequence; and the check can fail."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.convert.original_files import (
    FEATURES,
    HIDDEN,
    LAYERS,
    entailment_head,
    matching_head,
    original_parameters,
    sentence_head,
    write_folder,
)
from tests.convert.roberta_files import write_roberta
from tests.life.small_run import ROOT
from unimo_ds.convert.converted import filled, shape_of
from unimo_ds.convert.original import OriginalFolder, convert_original
from unimo_ds.convert.reference import OriginalModel
from unimo_ds.convert.roberta import convert_roberta, read_roberta
from unimo_ds.errors import CheckpointError
from unimo_ds.model.unimo import UnimoModel
from unimo_ds.tokenizer import Tokenizer, train_tokenizer
from unimo_ds.weights_check import check_roberta, check_unimo, compare_heads, compare_original, compare_roberta

VOCABULARY = 300
TEXTS = [np.arange(10, 27), np.array([7, 200, 7, 33])]


def converted(folder: Path) -> tuple[UnimoModel, list[str]]:
    original = OriginalFolder(folder)
    build = partial(UnimoModel, original.model_section())
    return filled(build, convert_original(original, shape_of(build), original.optional))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("original") / "unimo", {**original_parameters(VOCABULARY), **matching_head()})


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(["A red cup is beside a blue ball. Two dogs run; the cat sleeps."] * 4, VOCABULARY, folder)
    return Tokenizer(folder)


def test_the_shape_is_told_from_the_files(folder: Path) -> None:
    model = OriginalFolder(folder).model_section()
    assert (model.hidden_size, model.layers, model.heads) == (HIDDEN, LAYERS, HIDDEN // 64)
    assert (model.vocabulary_size, model.max_positions, model.feature_width) == (VOCABULARY, 64, FEATURES)


def test_all_that_the_original_computes_is_computed_from_its_files(folder: Path) -> None:
    unimo, new = converted(folder)
    found = compare_original(OriginalModel(OriginalFolder(folder)), unimo.double(), TEXTS, new)
    kinds = ["text", "image", "image and text", "text from text", "text from image"]
    read = ["hidden states", "scores of words", "pooled image", "pooled text", "match"]
    lacking = {f"{kind}: {each}" for kind in ("text", "text from text") for each in ("pooled image", "match")}
    lacking |= {f"image: {each}" for each in ("scores of words", "pooled text", "match")}
    assert {each.what for each in found} == {f"{kind}: {each}" for kind in kinds for each in read} - lacking
    for each in found:
        in_double = each.what.endswith(("hidden states", "pooled image", "pooled text"))
        assert each.largest <= (1e-11 if in_double else 2e-6) * max(1, each.magnitude), each
        assert each.magnitude > 0.1, "numbers that could differ"


def test_in_float32_it_is_as_close_as_float32_is(folder: Path) -> None:
    unimo, new = converted(folder)
    for each in compare_original(OriginalModel(OriginalFolder(folder)), unimo, TEXTS, new):
        assert each.largest <= 2e-5 * max(1, each.magnitude), each


def test_heads_of_tasks_compute_the_same(folder: Path, tmp_path: Path) -> None:
    heads = {**sentence_head(3), **sentence_head(1), **entailment_head()}
    original = OriginalFolder(write_folder(tmp_path / "tuned", {**original_parameters(VOCABULARY), **heads}))
    found = compare_heads(original, original.model_section())
    assert [each.what for each in found] == ["head of sentences", "head of sentences", "head of entailment"]
    for each in found:
        assert each.largest <= 1e-6 * max(1, each.magnitude) and each.magnitude > 1, each


def test_the_reference_s_heads_are_the_formulas() -> None:
    heads = {**sentence_head(3), **entailment_head()}
    reference = OriginalModel(heads)
    text, image = np.random.default_rng(1).normal(size=(2, 5, HIDDEN))
    expected = torch.from_numpy(text) @ torch.from_numpy(heads["cls_out_3_w"]).double() + torch.from_numpy(heads["cls_out_3_b"])
    np.testing.assert_allclose(reference.sentence_scores(text, 3), expected, rtol=1e-12)
    wide = np.einsum("bi,io->bo", text + image, heads["cls_out_w_0"]) + heads["cls_out_b_0"]
    narrow = np.einsum("bi,io->bo", wide, heads["cls_out_w_1"]) + heads["cls_out_b_1"]
    np.testing.assert_allclose(reference.entailment_scores(text, image), narrow, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "name",
    [
        "embedding.text.position.weight",
        "embedding.region.location.weight",
        "embedding.region.norm.bias",
        "transformer.layers.1.query_key_value.bias",
        "transformer.layers.0.contract.weight",
        "language_head.norm.weight",
        "language_head.bias",
        "image_pooler.dense.weight",
        "text_pooler.dense.bias",
        "matching_head.score.bias",
    ],
)
def test_any_weight_that_is_off_shows(folder: Path, name: str) -> None:
    unimo, new = converted(folder)
    with torch.no_grad():
        parameter = unimo.get_parameter(name)
        parameter.add_(0.01 * torch.ones_like(parameter).cumsum(0))
    found = compare_original(OriginalModel(OriginalFolder(folder)), unimo.double(), TEXTS, new)
    assert not all(each.same for each in found)


def test_numbers_that_are_not_finite_are_never_the_same(folder: Path) -> None:
    unimo, new = converted(folder)
    with torch.no_grad():
        unimo.language_head.bias[0] = torch.nan  # type: ignore[union-attr]
    found = compare_original(OriginalModel(OriginalFolder(folder)), unimo.double(), TEXTS, new)
    assert {each.what for each in found if not each.same} >= {"text: scores of words"}


def test_the_check_of_a_whole_folder(folder: Path, tokenizer: Tokenizer) -> None:
    report = check_unimo(folder, tokenizer.folder)
    assert all(each.same for each in report.differences)
    assert not report.same and "FAULT: the tokenizer's pieces of text" in report.text, "a small tokenizer is not RoBERTa's"
    assert "new: region_head.feature.weight" in report.text and "unused: 2 of the optimiser, 0 others" in report.text
    assert "The capital of France is <mask>." in report.text


def test_a_tokenizer_of_another_size_is_refused(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    write_folder(tmp_path / "unimo", original_parameters(VOCABULARY + 1))
    with pytest.raises(CheckpointError, match=r"has 300 tokens, and the model vectors for 301"):
        check_unimo(tmp_path / "unimo", tokenizer.folder)


@pytest.mark.parametrize("form", ["safetensors", "bin", "sharded"])
def test_roberta_s_hidden_states_and_scores_of_words_are_hugging_face_s(
    tokenizer: Tokenizer, tmp_path: Path, form: str
) -> None:
    network = write_roberta(tmp_path, tokenizer, form)
    read, unused = read_roberta(tmp_path)
    model, found = convert_roberta(read, unused, feature_width=8, region_classes=2)
    unimo, _ = filled(partial(UnimoModel, model), found)
    for each in compare_roberta(network, unimo, TEXTS):
        assert each.largest <= 1e-5, each
        assert each.magnitude > 0.1
    assert all(each.same for each in check_roberta(tmp_path).differences)
    network.double()
    unimo.double()
    assert all(each.same for each in compare_roberta(network, unimo, TEXTS))
    with torch.no_grad():
        unimo.embedding.text.position.weight.sub_(network.roberta.embeddings.token_type_embeddings.weight)
    assert not any(each.same for each in compare_roberta(network, unimo, TEXTS)), "the row of the one type matters"


def test_the_command_ends_with_1_where_something_differs(folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    command = ["tools/convert_weights.py", "check", "--unimo", str(folder), "--tokenizer", str(tokenizer.folder)]
    different = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    assert different.returncode == 1 and f"{folder}: DIFFERENT" in different.stdout
