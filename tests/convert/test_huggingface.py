"""Exported models, opened by transformers where unimo_ds is not installed: the same numbers, and the way back."""

import inspect
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from tests.helpers import TINY, random_regions
from unimo_ds import Unimo
from unimo_ds.batch import Kind
from unimo_ds.cli import app
from unimo_ds.config import FinetuneConfig, ModelSection, dump_config
from unimo_ds.conversion import import_huggingface
from unimo_ds.convert.exported import modeling_unimo
from unimo_ds.convert.exported.modeling_unimo import UnimoForConditionalGeneration
from unimo_ds.data.packing import Packer
from unimo_ds.data.sequences import Member, Sequence, with_targets
from unimo_ds.engine.checkpoint_folder import Extras, damage_of, write_checkpoint
from unimo_ds.errors import CheckpointError, UnimoError
from unimo_ds.export import export_huggingface
from unimo_ds.model.beams import Decoding
from unimo_ds.model.generation import generate
from unimo_ds.model.unimo import UnimoModel
from unimo_ds.opening import build_model, head_facts, read_start
from unimo_ds.tasks.classification import joined
from unimo_ds.tasks.families import make_task
from unimo_ds.tasks.task import Tokens
from unimo_ds.tokenizer import CLS, SEP, Tokenizer, train_tokenizer

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("exported")]  # one process makes what all of them look at
TEXTS = ["two dogs run on a wide beach", "a red cup", "the <odd> naïve café, 12 of them!"]
PAIRED = ["they are fast", "is it full?", "no"]
COUNTS = (5, 9, 3)  # regions of each image
WORKER = Path(__file__).with_name("bare_worker.py")
FORBIDDEN = [0, 1, 3]


@dataclass(frozen=True)
class Made:
    """A checkpoint with the model in it, and the folder that it was exported to."""

    checkpoint: Path
    exported: Path
    unimo: UnimoModel
    head: torch.nn.Module | None
    task: Any


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("exported")
    train_tokenizer(TEXTS * 5 + PAIRED * 5, 400, made / "tokenizer")
    rng = np.random.default_rng(0)
    for number, count in enumerate(COUNTS):
        regions = random_regions(rng, count)
        np.savez(
            made / f"regions-{number}.npz",
            boxes=regions.boxes_R4,
            features=regions.features_RF,
            width=regions.width,
            height=regions.height,
        )
    return made


def stirred(module: torch.nn.Module, seed: int) -> None:
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    module.eval()


def shape(folder: Path) -> ModelSection:
    return TINY.model_copy(update={"vocabulary_size": Tokenizer(folder / "tokenizer").size})


def pretrained(folder: Path) -> Made:
    model = shape(folder)
    unimo = UnimoModel(model)
    stirred(unimo, 1)
    state = {"step": 7, "samples": 70, "model": model.model_dump(mode="json"), "detector": {}}
    config = "folder: runs/x\ndata:\n  max_regions: 6\n  max_text_tokens: 40\n  corpora: []\n"
    write_checkpoint(folder / "pretrained", dict(unimo.state_dict()), Extras(config, state, folder / "tokenizer"))
    export_huggingface(folder / "pretrained", folder / "pretrained_hf")
    return Made(folder / "pretrained", folder / "pretrained_hf", unimo, None, None)


SEARCH = {"beams": 2, "longest": 6, "shortest": 6, "length_penalty": 0.0}
SECTIONS: dict[str, dict[str, Any]] = {
    "sentences": {"labels": ["no", "yes", "perhaps"], "metric": "accuracy"},
    "entailment": {},
    "vqa": {},
    "retrieval": {"negatives": 1},
    "captioning": {"decoding": SEARCH, "object_tags": {"threshold": 0.1}},
    "writing": {"decoding": SEARCH, "metric": "rouge"},
    "dialogue": {"decoding": SEARCH},
}
FILES: dict[str, Any] = {
    "sentences": {"path": "x"},
    "entailment": {"path": "x", "regions": "x"},
    "vqa": {"questions": "x", "regions": "x"},
    "retrieval": {"path": "x", "regions": "x"},
    "captioning": {"path": "x", "regions": "x"},
    "writing": {"path": "x"},
    "dialogue": {"path": "x"},
}


def finetuned(folder: Path, family: str) -> Made:
    model, tokenizer, files = shape(folder), Tokenizer(folder / "tokenizer"), FILES[family]
    config = FinetuneConfig.model_validate(
        {
            "folder": "runs/x",
            "init": "runs/y",
            "task": {
                "family": family,
                "train": [files] if family == "vqa" else files,
                "dev": {"dev": files},
                **SECTIONS[family],
            },
            "data": {"max_regions": 6, "max_text_tokens": 40},
            "training": {"epochs": 1, "batch_size": 2},
        }
    )
    task = make_task(config.task, tokenizer, {"answers": ["yes", "no", "two"]})
    module = build_model(task, model)
    stirred(module, 2)
    weights = {name.removeprefix("unimo."): value for name, value in module.state_dict().items()}
    state = {"step": 3, "model": model.model_dump(mode="json"), "detector": {}, "task": head_facts(config, task)}
    write_checkpoint(folder / family, weights, Extras(dump_config(config), state, tokenizer.folder))
    export_huggingface(folder / family, folder / f"{family}_hf")
    return Made(folder / family, folder / f"{family}_hf", module.unimo, module.head, task)


@pytest.fixture(scope="module")
def made(folder: Path) -> dict[str, Made]:
    return {"pretrained": pretrained(folder), **{family: finetuned(folder, family) for family in SECTIONS}}


IMAGES, WORDS = {"regions": [0, 1, 2]}, {"text": TEXTS}
BOTH = {**IMAGES, **WORDS}
FIXED = {"max_new_tokens": 6, "min_new_tokens": 6, "length_penalty": 0.0}
JOBS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any] | None]] = {
    "text": ("pretrained", "AutoModel", WORDS, None),
    "texts": ("pretrained", "AutoModel", {**WORDS, "text_pair": PAIRED}, None),
    "image": ("pretrained", "AutoModel", IMAGES, None),
    "pair": ("pretrained", "AutoModel", BOTH, None),
    "words of text": ("pretrained", "AutoModelForMaskedLM", WORDS, None),
    "words of pair": ("pretrained", "AutoModelForMaskedLM", BOTH, None),
    "heads": ("pretrained", "AutoModelForPreTraining", BOTH, None),
    "taught": ("pretrained", "AutoModelForSeq2SeqLM", BOTH, {"decoder_input_ids": [[0, 5, 6, 7]] * 3}),
    **{
        f"{how} of {what}": ("pretrained", auto, inputs, rules)
        for what, inputs in (("images", IMAGES), ("texts", WORDS), ("both", BOTH))
        for how, auto, rules in (
            ("greedy", "AutoModelForSeq2SeqLM", {"num_beams": 1, "max_new_tokens": 8, "min_new_tokens": 3}),
            ("beams", "AutoModelForImageTextToText", {"num_beams": 3, **FIXED}),
        )
    },
    "sentences": ("sentences", "AutoModelForSequenceClassification", {**WORDS, "text_pair": PAIRED}, None),
    **{name: (name, "AutoModelForSequenceClassification", BOTH, None) for name in ("entailment", "vqa", "retrieval")},
    "tagged": ("captioning", "AutoModelForSeq2SeqLM", {**IMAGES, "tags": ["dogs beach", "cup", "run"]}, {}),
    "written": ("writing", "AutoModelForSeq2SeqLM", WORDS, {}),
    "said": ("dialogue", "AutoModelForSeq2SeqLM", {"story": TEXTS[0], "utterances": PAIRED}, {}),
}


@pytest.fixture(scope="module")
def theirs(folder: Path, made: dict[str, Made]) -> dict[str, np.ndarray]:
    """What the exported folders give in a process that has no unimo_ds."""
    jobs = {
        name: {"folder": str(made[model].exported), "auto": auto, "inputs": inputs, **({} if call is None else {"call": call})}
        for name, (model, auto, inputs, call) in JOBS.items()
    }
    (folder / "jobs.json").write_text(json.dumps(jobs))
    # -S: without the .pth files by which a package under development is found; all others are found by their folder.
    packages = {"PYTHONPATH": sysconfig.get_path("purelib")}
    environment = {**os.environ, **packages, "HF_MODULES_CACHE": str(folder / "modules"), "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, "-S", str(WORKER), str(folder / "jobs.json"), str(folder / "results.npz")]
    ran = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return dict(np.load(folder / "results.npz"))


def packed(folder: Path, images: bool, texts: bool, pairs: bool = False, member: bool = True) -> Any:
    """The same inputs in one stream, by training's own packing."""
    tokenizer, packer = Tokenizer(folder / "tokenizer"), Packer(TINY.feature_width, 6)
    rng = np.random.default_rng(0)
    for number, count in enumerate(COUNTS):
        regions = random_regions(rng, count)
        image, shown = packer.add_image(regions) if images else (None, 0)
        ids = [np.array(words) for words in tokenizer.encode([TEXTS[number], *([PAIRED[number]] if pairs else [])])]
        kind = Kind.PAIR if images and texts else Kind.ALONE
        packer.add(
            Sequence(
                image=image,
                regions=shown,
                text=joined(ids, 40) if texts else None,
                member=Member(number, kind) if member else None,
            )
        )
    return packer.build()


def rows_of(batch: Any, shown: list[int]) -> Iterator[tuple[int, int, int]]:
    """Where each sequence begins, its text begins, and it ends, in the stream."""
    for number, (start, end) in enumerate(
        zip(batch.cu_seqlens_S1[:-1].tolist(), batch.cu_seqlens_S1[1:].tolist(), strict=True)
    ):
        yield start, start + shown[number], end


def near(found: np.ndarray, wanted: Tensor) -> None:
    np.testing.assert_allclose(found, wanted.detach().numpy(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "images", "texts", "pairs"),
    [("text", False, True, False), ("texts", False, True, True), ("image", True, False, False), ("pair", True, True, False)],
)
def test_hidden_states_and_vectors(
    name: str, images: bool, texts: bool, pairs: bool, folder: Path, made: dict[str, Made], theirs: dict[str, np.ndarray]
) -> None:
    batch, unimo = packed(folder, images, texts, pairs), made["pretrained"].unimo
    (hidden_TD,) = unimo.encode(batch, [torch.arange(batch.positions)])
    padded = theirs[f"{name}/last_hidden_state"]
    shown = [1 + min(count, 6) if images else 0 for count in COUNTS]
    for number, (start, text, end) in enumerate(rows_of(batch, shown)):
        near(padded[number, : text - start], hidden_TD[start:text])
        longest = max(shown)
        near(padded[number, longest : longest + end - text], hidden_TD[text:end])
    outputs = unimo(batch)
    if images:
        near(theirs[f"{name}/image_embeds"], outputs.image_vectors_ID)
    if texts:
        near(theirs[f"{name}/text_embeds"], outputs.text_vectors_XD)


@pytest.mark.parametrize(("name", "images"), [("words of text", False), ("words of pair", True)])
def test_words(name: str, images: bool, folder: Path, made: dict[str, Made], theirs: dict[str, np.ndarray]) -> None:
    batch, unimo = packed(folder, images, True), made["pretrained"].unimo
    words_TD = unimo.encode(batch, [torch.arange(batch.positions)])[0]
    assert unimo.language_head is not None
    word_VD = unimo.embedding.text.word.weight
    logits_TV = unimo.language_head(words_TD, word_VD, torch.zeros(0, dtype=torch.int64), want_logits=True)[1]
    assert logits_TV is not None
    shown = [1 + min(count, 6) if images else 0 for count in COUNTS]
    for number, (_, text, end) in enumerate(rows_of(batch, shown)):
        near(theirs[f"{name}/logits"][number, : end - text], logits_TV[text:end])


def test_heads_of_pretraining(folder: Path, made: dict[str, Made], theirs: dict[str, np.ndarray]) -> None:
    batch, unimo = packed(folder, True, True), made["pretrained"].unimo
    outputs = unimo(batch)
    near(theirs["heads/matching_logits"], outputs.matching_logits_J)
    near(theirs["heads/temperature"], outputs.temperature)
    assert unimo.region_head is not None
    features, classes = unimo.region_head(unimo.encode(batch, [batch.image_rows_I])[0])
    near(theirs["heads/region_features"][:, 0], features)
    near(theirs["heads/region_logits"][:, 0], classes)


@pytest.mark.parametrize("family", ["sentences", "entailment", "vqa", "retrieval"])
def test_heads_of_fine_tuned_models(family: str, folder: Path, made: dict[str, Made], theirs: dict[str, np.ndarray]) -> None:
    one, images = made[family], family != "sentences"
    wanted = one.task.output(one.unimo, one.head, packed(folder, images, True, pairs=not images))
    near(theirs[f"{family}/logits"], wanted.view(len(TEXTS), -1))
    labels = json.loads((one.exported / "config.json").read_text())["id2label"]
    assert list(labels.values()) == list(one.task.score_names)


def test_taught_words(folder: Path, made: dict[str, Made], theirs: dict[str, np.ndarray]) -> None:
    """The scores of given words, all in one pass, are those of our sequence-to-sequence view."""
    from tests.helpers import view_maker

    tokenizer, packer, rng = Tokenizer(folder / "tokenizer"), Packer(TINY.feature_width, 6), np.random.default_rng(0)
    for number, count in enumerate(COUNTS):
        image, shown = packer.add_image(random_regions(rng, count))
        source = joined([np.array(tokenizer.encode([TEXTS[number]])[0])], 40)
        text = with_targets(source, view_maker().generated_text(np.array([5, 6, 7])))
        packer.add(Sequence(image=image, regions=shown, text=text, causal=True))
    logits = made["pretrained"].unimo(packer.build(), want_logits=True).language_logits_MV
    near(theirs["taught/logits"].reshape(len(TEXTS) * 4, -1), logits)


@pytest.mark.parametrize("what", ["images", "texts", "both"])
def test_generation_is_ours_token_by_token(
    what: str, folder: Path, made: dict[str, Made], theirs: dict[str, np.ndarray]
) -> None:
    """Greedy search with ends; and beams where no text ends, for there alone the two have the same rules."""
    batch, unimo = packed(folder, what != "texts", what != "images", member=False), made["pretrained"].unimo
    forbidden = [*FORBIDDEN, Tokenizer(folder / "tokenizer").mask]
    for how, decoding, end in (("greedy", Decoding(1, 8, 3), SEP), ("beams", Decoding(3, 6, 6), SEP)):
        ours = generate(unimo, batch, decoding, CLS, end, forbidden)
        sequences = theirs[f"{how} of {what}/sequences"][:, 1:].tolist()
        found = [words[: words.index(end)] if end in words else words for words in sequences]
        assert [text.ids for text in ours] == found
        if how == "beams":
            scores = theirs[f"{how} of {what}/scores"]
            np.testing.assert_allclose(scores, [text.log_probability for text in ours], atol=1e-4)


@pytest.mark.parametrize(
    ("name", "family", "texts"),
    [
        ("tagged", "captioning", [("dogs beach",), ("cup",), ("run",)]),
        ("written", "writing", [(text,) for text in TEXTS]),
        ("said", "dialogue", [(TEXTS[0], *PAIRED)]),
    ],
)
def test_generation_by_default_is_the_task_s(
    name: str, family: str, texts: list[tuple[str, ...]], folder: Path, made: dict[str, Made], theirs: dict[str, np.ndarray]
) -> None:
    """With object tags, of texts, and of a dialogue with its roles and turns: by the task's own layout and settings."""
    one, tokenizer = made[family], Tokenizer(folder / "tokenizer")
    packer, rng = Packer(TINY.feature_width, 6), np.random.default_rng(0)
    for count, each in zip(COUNTS, texts, strict=False):
        image, shown = packer.add_image(random_regions(rng, count)) if family == "captioning" else (None, 0)
        source = one.task.source(Tokens([np.array(ids) for ids in tokenizer.encode(list(each))], None, 40))
        packer.add(Sequence(image=image, regions=shown, text=source))
    ours = one.task.answers(one.unimo, one.head, packer.build())
    assert ours == [tokenizer.decode(words) for words in theirs[f"{name}/sequences"].tolist()]


@pytest.mark.parametrize("name", ["pretrained", *SECTIONS])
def test_the_way_back_is_exact(name: str, made: dict[str, Made], tmp_path: Path) -> None:
    one, back = made[name], tmp_path / "back"
    import_huggingface(one.exported, back)
    assert damage_of(back) is None
    for file in ("config.yaml", "state.json", "tokenizer/vocab.json", "tokenizer/merges.txt"):
        assert (back / file).read_bytes() == (one.checkpoint / file).read_bytes()
    before, after = (load_file(path / "model.safetensors") for path in (one.checkpoint, back))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _without_a_layer(folder: Path) -> None:
    file = folder / "model.safetensors"
    weights = {name: value for name, value in load_file(file).items() if ".layers.1.expand." not in name}
    save_file({**weights, "unimo.strange": torch.zeros(2)}, file)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: _cut(folder / "model.safetensors"), "no exported model"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "roberta"}'), "model_type 'roberta'"),
        (lambda folder: (folder / "config.json").write_text("[]"), "no exported model"),
        (lambda folder: (folder / "unimo_ds_state.json").unlink(), "no unimo_ds_state.json"),
        (lambda folder: (folder / "unimo_ds_state.json").write_text("{"), "unimo_ds_state.json: cannot be read"),
        (lambda folder: (folder / "unimo_ds_state.json").write_text("{}"), "has no detector, model, step"),
        (lambda folder: (folder / "vocab.json").write_text("{"), "is not valid JSON"),
        (_without_a_layer, "lacks transformer.layers.1.expand.weight, transformer.layers.1.expand.bias; cannot place strange"),
    ],
)
def test_a_damaged_folder_is_not_imported(
    damage: Callable[[Path], None], said: str, made: dict[str, Made], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(made["pretrained"].exported, copy)
    damage(copy)
    with pytest.raises(UnimoError, match=said):
        import_huggingface(copy, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_what_transformers_saved_in_half_precision_comes_back_whole(made: dict[str, Made], tmp_path: Path) -> None:
    """A class saves what it has: the other parts are new, and that is said."""
    one, saved = made["pretrained"], tmp_path / "saved"
    shutil.copytree(one.exported, saved)
    UnimoForConditionalGeneration.from_pretrained(one.exported, dtype=torch.bfloat16).save_pretrained(saved)
    found = import_huggingface(saved, tmp_path / "back")
    assert {name.split(".")[0] for name in found.new} == {"region_head", "matching_head", "temperature"}
    weights = load_file(tmp_path / "back/model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32}
    name = "transformer.layers.0.expand.weight"
    assert torch.equal(weights[name], one.unimo.get_parameter(name).detach().bfloat16().float())
    assert Unimo.from_pretrained(tmp_path / "back").generate(texts="a red cup")


def test_a_trainer_finds_every_input_and_divides_by_itself() -> None:
    """transformers' Trainer drops columns that a signature does not name, and asks whether a loss is a mean."""
    wanted = {*inspect.signature(modeling_unimo.UnimoModel.forward).parameters, "labels"}
    for kind in ("UnimoForMaskedLM", "UnimoForSequenceClassification", "UnimoForConditionalGeneration"):
        found = inspect.signature(getattr(modeling_unimo, kind).forward).parameters
        assert wanted <= set(found) and not getattr(modeling_unimo, kind).accepts_loss_kwargs


def test_the_card_has_the_numbers_of_its_own_checkpoint(made: dict[str, Made], tmp_path: Path) -> None:
    for step in (1, 2):
        shutil.copytree(made["pretrained"].checkpoint, tmp_path / f"run/checkpoints/step-0000000{step}")
    (tmp_path / "run/checkpoints/latest").write_text("step-00000002")
    (tmp_path / "run/evaluation.json").write_text(json.dumps({"numbers": {"eval/i2t_r1": 0.5}}))
    cards = []
    for step, ended in ((1, False), (2, False), (1, True), (2, True)):
        (tmp_path / "run/DONE").unlink(missing_ok=True)
        if ended:
            (tmp_path / "run/DONE").write_text("2")
        out = tmp_path / f"out-{step}-{ended}"
        export_huggingface(tmp_path / f"run/checkpoints/step-0000000{step}", out)
        cards.append("| i2t_r1 | 0.5 |" in (out / "README.md").read_text())
    assert cards == [False, False, False, True]


def test_the_command_says_what_it_took_and_refuses_what_is_there(made: dict[str, Made], tmp_path: Path) -> None:
    words = ["export", str(made["vqa"].checkpoint), "--format", "huggingface", "--out", str(tmp_path / "out")]
    first = CliRunner().invoke(app, words)
    assert first.exit_code == 0 and f"written, from {made['vqa'].checkpoint}" in first.output
    card = (tmp_path / "out" / "README.md").read_text()
    assert "fine-tuned for: vqa" in card and "AutoModelForSequenceClassification" in card and "Nothing yet" in card
    assert "exists already" in str(CliRunner().invoke(app, words).exception)
    wrong = CliRunner().invoke(app, [*words[:2], "--format", "onnx", "--out", str(tmp_path / "other")])
    assert "only `huggingface` is allowed" in str(wrong.exception)


def test_an_exported_folder_is_no_checkpoint_and_the_error_says_what_to_do(made: dict[str, Made]) -> None:
    with pytest.raises(CheckpointError, match=r"convert_weights\.py huggingface"):
        read_start(made["vqa"].exported)


def test_a_damaged_checkpoint_is_not_exported(made: dict[str, Made], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(made["pretrained"].checkpoint, copy)
    (copy / "tokenizer" / "merges.txt").write_text("")
    with pytest.raises(CheckpointError, match=r"merges\.txt has 0 bytes"):
        export_huggingface(copy, tmp_path / "out")
