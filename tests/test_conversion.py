"""Published weights become checkpoints that runs start from and that are evaluated; what is not whole says why."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from tests.convert.original_files import (
    FEATURES,
    HIDDEN,
    LAYERS,
    entailment_head,
    matching_head,
    original_parameters,
    parameter_bytes,
    sentence_head,
    voices,
    write_folder,
)
from tests.convert.roberta_files import edit_config, write_roberta
from tests.life.small_run import ROOT, write_config
from tests.life.small_run import write_inputs as write_pretraining
from tests.tasks.small_task import Inputs, write_inputs
from unimo_ds.config import load_config, load_finetune_config
from unimo_ds.conversion import Conversion, convert_roberta, convert_unimo
from unimo_ds.engine.checkpoint_folder import damage_of, read_state
from unimo_ds.errors import CheckpointError, ConfigError, UnimoError
from unimo_ds.evaluate import evaluate_checkpoint
from unimo_ds.export import export_huggingface
from unimo_ds.finetune import evaluate_finetuned, finetune
from unimo_ds.opening import open_finetuned, read_start
from unimo_ds.pretrain import pretrain
from unimo_ds.tokenizer import Tokenizer

SHAPE = {"hidden_size": HIDDEN, "layers": LAYERS, "heads": HIDDEN // 64, "max_positions": 64}
TEXT_ONLY = ("image_", "v_pre_encoder", "pooled_fc_image", "mask_lm")  # what a program of sentences does not save


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return write_inputs(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def parameters(inputs: Inputs) -> dict[str, Any]:
    return original_parameters(Tokenizer(inputs.folder / "tokenizer").size)


@pytest.fixture(scope="module")
def pretrained(inputs: Inputs, parameters: dict[str, Any]) -> Conversion:
    """The released model, converted."""
    write_folder(inputs.folder / "unimo", parameters)
    return convert_unimo(inputs.folder / "unimo", inputs.folder / "tokenizer", inputs.folder / "converted")


def recipe(inputs: Inputs, name: str, task: dict[str, Any], **overrides: Any) -> Path:
    """Of a fine-tuning run with as few positions as the model has."""
    path = inputs.config(name, task, epochs=1)
    content = {**yaml.safe_load(path.read_text()), "data": {"workers": 0, "max_text_tokens": 32}, **overrides}
    path.write_text(yaml.safe_dump(content))
    return path


def test_every_file_is_accounted_for(pretrained: Conversion, parameters: dict[str, Any]) -> None:
    of_optimiser = {"word_embedding_moment1_0", "word_embedding_beta1_pow_acc_0"}
    assert set(pretrained.unused) == of_optimiser
    assert pretrained.used == len(parameters) - len(of_optimiser)
    assert pretrained.mapped == pretrained.used - 4 * LAYERS, "queries, keys and values are one here"
    heads = ("matching_head.score", "region_head.classes", "region_head.feature")
    expected = {f"{module}.{kind}" for module in heads for kind in ("weight", "bias")} | {"temperature.value"}
    assert set(pretrained.new) == expected
    assert "  missing  0" in pretrained.text and "unused   2: 2 of the optimiser" in pretrained.text


def test_the_checkpoint_is_whole_and_says_what_it_is_of(pretrained: Conversion, parameters: dict[str, Any]) -> None:
    assert damage_of(pretrained.checkpoint) is None
    state, start = read_state(pretrained.checkpoint), read_start(pretrained.checkpoint)
    assert state["step"] == 0 and state["detector"] == {} and "task" not in state
    assert state["source"]["folder"] == "unimo" and len(state["source"]["sha256"]) == 64
    assert start.model.hidden_size == HIDDEN and start.model.feature_width == FEATURES
    weights = load_file(pretrained.checkpoint / "model.safetensors")
    assert all(weight.dtype == torch.float32 for weight in weights.values())
    there = parameters["encoder_layer_1_multi_head_att_value_fc.w_0"]
    mine = weights["transformer.layers.1.query_key_value.weight"][2 * HIDDEN :]
    np.testing.assert_array_equal(mine.numpy(), there.T)


def test_a_second_conversion_gives_the_same_bytes(pretrained: Conversion, inputs: Inputs, tmp_path: Path) -> None:
    torch.manual_seed(7)
    again = convert_unimo(inputs.folder / "unimo", inputs.folder / "tokenizer", tmp_path / "again").checkpoint
    for name in ("model.safetensors", "state.json", "config.yaml"):
        assert (again / name).read_bytes() == (pretrained.checkpoint / name).read_bytes()


def test_fine_tuning_starts_from_it(pretrained: Conversion, inputs: Inputs) -> None:
    path = recipe(inputs, "from_original", inputs.entailment(), init=str(pretrained.checkpoint))
    checkpoint = finetune(load_finetune_config(path, ["training.learning_rate=1e-9"]))
    assert checkpoint is not None
    trained, started = (load_file(each / "model.safetensors") for each in (checkpoint, pretrained.checkpoint))
    for name, weight in trained.items():
        if not name.startswith("head."):
            torch.testing.assert_close(weight, started[name], atol=1e-6, rtol=0)


def small_pretraining(folder: Path, *overrides: str) -> tuple[Path, list[str]]:
    write_pretraining(folder)
    settings = ["data.max_text_tokens=32", "training.steps=1", "training.checkpoint_every=1"]
    return write_config(folder, "run"), [*settings, *(f"model.{key}={value}" for key, value in SHAPE.items()), *overrides]


def test_pre_training_starts_from_it_and_it_can_be_evaluated(tmp_path: Path) -> None:
    path, overrides = small_pretraining(tmp_path, "training.learning_rate=1e-9", "training.warmup_steps=0")
    tokenizer = Tokenizer(tmp_path / "tokenizer")
    write_folder(tmp_path / "unimo", {**original_parameters(tokenizer.size), **matching_head()})
    config = load_config(path, overrides)
    content = config.model_dump(mode="json")
    content["model"] = {**SHAPE, "size": "tiny", "dropout": 0.0, "region_classes": 20}
    content["evaluation"] = {"pairs": content["data"]["corpora"][0], "candidates": 4, "captions": 0, "caption_tokens": 8}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    found = convert_unimo(tmp_path / "unimo", tmp_path / "tokenizer", tmp_path / "start", tmp_path / "recipe.yaml")
    assert found.model.dropout == 0.0 and found.model.region_classes == 20 and "matching_head.score.weight" not in found.new
    assert load_config(found.checkpoint / "config.yaml").model == found.model
    checkpoint = pretrain(load_config(tmp_path / "recipe.yaml", [f"init={found.checkpoint}"]))
    assert checkpoint is not None
    trained, started = (load_file(each / "model.safetensors") for each in (checkpoint, found.checkpoint))
    assert set(trained) == set(started)
    for name, weight in trained.items():
        torch.testing.assert_close(weight, started[name], atol=1e-6, rtol=0)
    assert evaluate_checkpoint(found.checkpoint, []) is not None


def test_a_pre_training_recipe_of_another_size_is_refused(tmp_path: Path) -> None:
    path, _ = small_pretraining(tmp_path)
    tokenizer = Tokenizer(tmp_path / "tokenizer")
    write_folder(tmp_path / "unimo", original_parameters(tokenizer.size))
    with pytest.raises(ConfigError, match=r"another model than .*: model.hidden_size = 32, 128 there"):
        convert_unimo(tmp_path / "unimo", tmp_path / "tokenizer", tmp_path / "start", path)


def fine_tuned(
    inputs: Inputs,
    folder: Path,
    parameters: dict[str, Any],
    own: dict[str, Any],
    task: dict[str, Any],
    without: tuple[str, ...],
) -> Conversion:
    kept = {name: numbers for name, numbers in parameters.items() if not name.startswith(without or ("-",))}
    write_folder(folder / "tuned", {**kept, **own})
    path = recipe(inputs, folder.name, task)
    return convert_unimo(folder / "tuned", inputs.folder / "tokenizer", folder / "converted", path)


@pytest.mark.parametrize(
    ("family", "own", "without"),
    [
        ("sentences", sentence_head(4), TEXT_ONLY),
        ("similarity", sentence_head(1), TEXT_ONLY),
        ("entailment", entailment_head(), ("mask_lm",)),
        ("retrieval", matching_head(), ("mask_lm",)),
        ("captioning", {}, ("pooled_fc",)),
        ("dialogue", voices(), ("image_", "v_pre_encoder", "pooled_fc")),
    ],
    ids=["sentences", "similarity", "entailment", "retrieval", "captioning", "dialogue"],
)
def test_a_fine_tuned_model_keeps_its_head_and_is_evaluated(
    inputs: Inputs, parameters: dict[str, Any], tmp_path: Path, family: str, own: dict[str, Any], without: tuple[str, ...]
) -> None:
    task = {**getattr(inputs, family)()}
    if "decoding" in task:
        task["max_target_tokens"] = 16
    found = fine_tuned(inputs, tmp_path, parameters, own, task, without)
    assert not any(name.startswith(("head.", "text_pooler", "image_pooler", "embedding.text")) for name in found.new)
    assert not set(own) & set(found.unused)
    opened = open_finetuned(found.checkpoint, [])
    assert opened.start.facts["family"] == task["family"]
    numbers = evaluate_finetuned(found.checkpoint, [])
    assert all(np.isfinite(value) for value in numbers.values()) and numbers
    labels = {"sentences": ["0", "1", "2", "3"], "entailment": ["entailment", "neutral", "contradiction"]}.get(family, [])
    numbered = ", ".join(f"{number} {label}" for number, label in enumerate(labels))
    assert (f"labels: {numbered}, in the recipe's order" in found.text) == bool(labels)


def test_the_labels_of_an_entailment_head_can_be_put_in_order(
    inputs: Inputs, parameters: dict[str, Any], tmp_path: Path
) -> None:
    labels = ["contradiction", "neutral", "entailment"]
    own = entailment_head()
    usual = fine_tuned(inputs, tmp_path / "usual", parameters, own, inputs.entailment(), ("mask_lm",))
    other = fine_tuned(inputs, tmp_path / "other", parameters, own, {**inputs.entailment(), "labels": labels}, ("mask_lm",))
    assert open_finetuned(other.checkpoint, []).task.score_names == tuple(labels)
    right = [evaluate_finetuned(found.checkpoint, [])["dev_accuracy"] for found in (usual, other)]
    assert right[0] != right[1]


def test_a_fine_tuned_model_is_a_start_too_as_mnli_is_of_sts_b(
    inputs: Inputs, parameters: dict[str, Any], tmp_path: Path
) -> None:
    found = fine_tuned(inputs, tmp_path, parameters, sentence_head(4), inputs.sentences(), TEXT_ONLY)
    path = recipe(inputs, "similarity_of_sentences", inputs.similarity(), init=str(found.checkpoint))
    assert finetune(load_finetune_config(path)) is not None


def test_without_a_recipe_a_head_is_left_out_and_that_is_said(
    inputs: Inputs, parameters: dict[str, Any], tmp_path: Path
) -> None:
    kept = {name: numbers for name, numbers in parameters.items() if not name.startswith(TEXT_ONLY)}
    write_folder(tmp_path / "tuned", {**kept, **sentence_head(3)})
    found = convert_unimo(tmp_path / "tuned", inputs.folder / "tokenizer", tmp_path / "converted")
    assert "left out: cls_out_3_b, cls_out_3_w: of fine-tuning; --recipe" in found.text
    assert {"image_pooler.dense.weight", "language_head.bias", "embedding.region.norm.weight"} <= set(found.new)
    config = yaml.safe_load((found.checkpoint / "config.yaml").read_text())
    assert set(config) == {"model", "source"}
    path = recipe(inputs, "from_headless", inputs.sentences(), init=str(found.checkpoint))
    assert finetune(load_finetune_config(path)) is not None


@pytest.mark.parametrize(
    ("family", "own", "error", "message"),
    [
        ("sentences", sentence_head(3), CheckpointError, "lacks cls_out_4_b, cls_out_4_w"),
        ("entailment", sentence_head(3), CheckpointError, "lacks cls_out_b_1, cls_out_w_1, cls_out_b_0, cls_out_w_0"),
        ("vqa", {}, ConfigError, "task.family = vqa: the original has no model of VQA"),
    ],
    ids=["other labels", "another family", "vqa"],
)
def test_a_recipe_of_another_task_is_refused(
    inputs: Inputs,
    parameters: dict[str, Any],
    tmp_path: Path,
    family: str,
    own: dict[str, Any],
    error: type[UnimoError],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        fine_tuned(inputs, tmp_path, parameters, own, getattr(inputs, family)(), ())


def convert(folder: Path, inputs: Inputs, tmp_path: Path) -> Conversion:
    return convert_unimo(folder, inputs.folder / "tokenizer", tmp_path / "out")


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        (["pooled_fc_image.b_0"], "lacks pooled_fc_image.b_0: unpack the archive again"),
        (["encoder_layer_0_multi_head_att_key_fc.w_0"], "lacks encoder_layer_0_multi_head_att_key_fc.w_0"),
        (["mask_lm_out_fc.b_0", "image_emb.b_0"], "lacks image_emb.b_0, mask_lm_out_fc.b_0"),
        (["word_embedding"], "has no word_embedding and no encoder_layer_"),
        (["pos_embedding"], "pos_embedding: cannot be read: No such file"),
    ],
    ids=str,
)
def test_what_is_missing_is_named(
    inputs: Inputs, parameters: dict[str, Any], tmp_path: Path, lost: list[str], message: str
) -> None:
    folder = write_folder(tmp_path / "unimo", {name: value for name, value in parameters.items() if name not in lost})
    with pytest.raises(CheckpointError, match=message):
        convert(folder, inputs, tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_layer_that_is_missing_is_an_error(inputs: Inputs, parameters: dict[str, Any], tmp_path: Path) -> None:
    kept = {name: value for name, value in parameters.items() if not name.startswith("encoder_layer_0_")}
    with pytest.raises(CheckpointError, match=r"lacks encoder_layer_0_.* and 8 more"):
        convert(write_folder(tmp_path / "unimo", kept), inputs, tmp_path)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "pooled_fc_text.w_0",
            lambda x: x[:, :5],
            r"pooled_fc_text.w_0: has shape \[128, 5\], expected \[128, 128\] by the other",
        ),
        ("image_loc.w_0", lambda x: x.T, r"image_loc.w_0: has shape \[128, 5\], expected \[5, 128\]"),
        ("word_embedding", lambda x: x[:, :100], "is 100 wide, which is no multiple of 64"),
        ("word_embedding", lambda x: x.ravel(), r"word_embedding: has shape \[\d+\], expected a matrix"),
        (
            "word_embedding",
            lambda x: x[:-1],
            "mask_lm_out_fc.b_0: has shape",
        ),
        ("pos_embedding", lambda x: x.astype(np.int64), "pos_embedding: holds int64"),
        ("image_emb.b_0", lambda x: x * np.nan, "image_emb.b_0: 128 of its 128 numbers are not finite"),
    ],
)
def test_what_does_not_fit_is_named(
    inputs: Inputs, parameters: dict[str, Any], tmp_path: Path, name: str, change: Any, message: str
) -> None:
    changed = {**parameters, name: np.ascontiguousarray(change(parameters[name]))}
    with pytest.raises(CheckpointError, match=message):
        convert(write_folder(tmp_path / "unimo", changed), inputs, tmp_path)


def test_a_file_that_was_cut_is_named(inputs: Inputs, parameters: dict[str, Any], tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "unimo", parameters)
    path = folder / "encoder_layer_1_ffn_fc_0.w_0"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=r"encoder_layer_1_ffn_fc_0.w_0: .*it was cut"):
        convert(folder, inputs, tmp_path)


def test_a_published_width_with_fewer_layers_is_an_error(inputs: Inputs, tmp_path: Path) -> None:
    wide = {"word_embedding": np.zeros((9, 768), np.float32), "pos_embedding": np.zeros((9, 768), np.float32)}
    folder = write_folder(tmp_path / "unimo", {**wide, "encoder_layer_0_ffn_fc_0.b_0": np.zeros(3, np.float32)})
    with pytest.raises(CheckpointError, match="has 1 layers of width 768, and the published model of that width has 12"):
        convert(folder, inputs, tmp_path)


@pytest.mark.parametrize("out", ["file/below", "/proc/nothing"])
def test_what_cannot_be_written_says_why(inputs: Inputs, tmp_path: Path, out: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot be written"):
        convert_unimo(inputs.folder / "unimo", inputs.folder / "tokenizer", tmp_path / out)


def test_a_run_that_starts_from_converted_weights_remembers_the_detector(pretrained: Conversion, inputs: Inputs) -> None:
    assert read_state(pretrained.checkpoint)["detector"] == {}
    path = recipe(inputs, "remembering", inputs.entailment(), init=str(pretrained.checkpoint))
    saved = finetune(load_finetune_config(path))
    assert saved is not None and read_state(saved)["detector"]["architecture"]


def test_an_export_of_converted_weights_says_what_was_never_trained(pretrained: Conversion, tmp_path: Path) -> None:
    export_huggingface(pretrained.checkpoint, tmp_path / "exported")
    auto = json.loads((tmp_path / "exported/config.json").read_text())["auto_map"]
    assert "AutoModelForSeq2SeqLM" in auto and "AutoModelForPreTraining" not in auto
    assert (
        "never trained, random: `matching_head.score`, `region_head.classes`" in (tmp_path / "exported/README.md").read_text()
    )


def test_what_is_surplus_is_listed_and_harmless(inputs: Inputs, parameters: dict[str, Any], tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "unimo", {**parameters, "image_class_fc.w_0": np.ones((2, 2), np.float32)})
    (folder / "README").write_text("what this is")
    found = convert(folder, inputs, tmp_path)
    assert {"image_class_fc.w_0", "README"} < set(found.unused) and "README, image_class_fc.w_0" in found.text


def test_an_output_layer_of_its_own_is_refused(inputs: Inputs, parameters: dict[str, Any], tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "unimo", {**parameters, "mask_lm_out_fc.w_0": np.ones((2, 2), np.float32)})
    with pytest.raises(CheckpointError, match="an output layer of its own"):
        convert(folder, inputs, tmp_path)


def test_folders_that_are_something_else_are_told(
    inputs: Inputs, pretrained: Conversion, parameters: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "unimo_base_en.tar.gz").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    write_roberta(tmp_path / "roberta", Tokenizer(inputs.folder / "tokenizer"))
    write_folder(tmp_path / "outer/unimo_base_en", parameters)
    for name, message in {
        "unimo_base_en.tar.gz": r"is an archive: unpack it .tar xf unimo_base_en.tar.gz. and give the folder",
        "nowhere": "there is no such folder",
        "empty": "has no word_embedding and no encoder_layer_.*: no folder of the original UNIMO",
        "roberta": "is a folder of Hugging Face; RoBERTa's is converted by `convert_weights.py roberta`",
        "outer": "; unimo_base_en in it is one, give that",
        str(pretrained.checkpoint): "is a checkpoint of unimo_ds already",
    }.items():
        with pytest.raises(CheckpointError, match=message):
            convert(tmp_path / name, inputs, tmp_path)


def test_what_exists_is_never_written_over(inputs: Inputs, pretrained: Conversion) -> None:
    with pytest.raises(CheckpointError, match="exists already; give another folder"):
        convert_unimo(inputs.folder / "unimo", inputs.folder / "tokenizer", pretrained.checkpoint)


def test_another_tokenizer_is_refused(inputs: Inputs, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "unimo", original_parameters(50))
    with pytest.raises(CheckpointError, match="and the model vectors for 50; give the tokenizer that it was trained with"):
        convert(folder, inputs, tmp_path)


@pytest.mark.parametrize("form", ["safetensors", "bin", "sharded"])
def test_roberta_becomes_a_start_with_its_tokenizer(inputs: Inputs, tmp_path: Path, form: str) -> None:
    tokenizer = Tokenizer(inputs.folder / "tokenizer")
    network = write_roberta(tmp_path / "roberta", tokenizer, form)
    found = convert_roberta(tmp_path / "roberta", tmp_path / "start", FEATURES, 20)
    start = read_start(found.checkpoint)
    assert start.tokenizer.fingerprint == tokenizer.fingerprint
    assert (start.model.feature_width, start.model.region_classes, start.model.heads) == (FEATURES, 20, 4)
    weights, theirs = load_file(found.checkpoint / "model.safetensors"), network.state_dict()
    one_type = theirs["roberta.embeddings.token_type_embeddings.weight"][0]
    positions = theirs["roberta.embeddings.position_embeddings.weight"] + one_type
    torch.testing.assert_close(weights["embedding.text.position.weight"], positions, rtol=0, atol=0)
    for part in ("text", "region"):
        torch.testing.assert_close(weights[f"embedding.{part}.norm.weight"], theirs["roberta.embeddings.LayerNorm.weight"])
    expected = {"embedding.region.feature", "embedding.region.location", "region_head.feature", "region_head.classes"}
    expected |= {"text_pooler.dense", "image_pooler.dense", "matching_head.score"}
    assert set(found.new) == {f"{name}.{kind}" for name in expected for kind in ("weight", "bias")} | {"temperature.value"}
    assert ("roberta.pooler.dense.weight" in found.unused) == (form == "bin")
    path = recipe(inputs, f"from_roberta_{form}", inputs.entailment(), init=str(found.checkpoint))
    assert finetune(load_finetune_config(path)) is not None


def damaged_roberta(folder: Path, kind: str) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    if kind == "headless":
        weights = {name: weight for name, weight in weights.items() if not name.startswith("lm_head.dense")}
    elif kind == "resized":
        weights["roberta.encoder.layer.1.output.dense.bias"] = torch.zeros(3)
    elif kind == "infinite":
        weights["lm_head.bias"] = torch.full_like(weights["lm_head.bias"], torch.inf)
    save_file(weights, path, metadata={"format": "pt"})
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "bert":
        edit_config(folder, model_type="bert")
    elif kind == "types":
        edit_config(folder, type_vocab_size=2)
    elif kind == "narrow":
        edit_config(folder, intermediate_size=128)
    elif kind == "relu":
        edit_config(folder, hidden_act="relu", layer_norm_eps=1e-12)
    elif kind == "no JSON":
        (folder / "config.json").write_text("{")
    elif kind == "no weights":
        path.unlink()
    elif kind == "no config":
        shutil.move(folder / "config.json", folder / "word_embedding")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("headless", "lacks lm_head.dense.bias, lm_head.dense.weight: needed is the whole model with its language head"),
        ("resized", "roberta.encoder.layer.1.output.dense.bias: of another shape than config.json says"),
        ("infinite", "lm_head.bias.*some numbers are not finite"),
        ("cut", "cannot be read as RoBERTa"),
        ("bert", "model_type is 'bert', expected 'roberta'"),
        ("types", "type_vocab_size is 2, expected 1"),
        ("narrow", "intermediate_size is 128, expected 4 x 64"),
        ("relu", "hidden_act is 'relu', expected 'gelu'; layer_norm_eps is 1e-12, expected 1e-05"),
        ("no JSON", "cannot be read as RoBERTa"),
        ("no weights", "cannot be read as RoBERTa"),
        ("no config", "has no config.json: .*the original UNIMO is converted by `convert_weights.py unimo`"),
    ],
)
def test_what_is_no_whole_roberta_is_refused(inputs: Inputs, tmp_path: Path, kind: str, message: str) -> None:
    write_roberta(tmp_path / "roberta", Tokenizer(inputs.folder / "tokenizer"))
    damaged_roberta(tmp_path / "roberta", kind)
    with pytest.raises(CheckpointError, match=message):
        convert_roberta(tmp_path / "roberta", tmp_path / "start", FEATURES, 20)
    assert not (tmp_path / "start").exists()


@pytest.mark.long
def test_the_command(inputs: Inputs, parameters: dict[str, Any], tmp_path: Path) -> None:
    write_folder(tmp_path / "unimo", {**parameters, "pos_embedding_moment2_0": parameters["pos_embedding"]})

    def run(out: str) -> subprocess.CompletedProcess[str]:
        arguments = ["unimo", tmp_path / "unimo", "--tokenizer", inputs.folder / "tokenizer", "--out", tmp_path / out]
        command = [sys.executable, "tools/convert_weights.py", *map(str, arguments)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    done = run("start")
    assert done.returncode == 0 and "unused   3: 3 of the optimiser" in done.stdout
    assert json.loads((tmp_path / "start/state.json").read_text())["step"] == 0
    (tmp_path / "unimo/pos_embedding").write_bytes(parameter_bytes(parameters["pos_embedding"]) + b"\0")
    failed = run("again")
    assert failed.returncode == 1 and failed.stderr.startswith("convert_weights: ") and "it is too long" in failed.stderr
