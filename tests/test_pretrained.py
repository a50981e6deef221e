"""`Unimo` says what the model run by hand says, whatever else is in the list; and of a photograph, what of its regions."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.helpers import WIDTH, random_regions
from tests.life.small_run import DETECTOR, ROOT
from tests.small_models import SmallWorld, write_pretrained, write_small_world, write_tuned
from unimo_ds import Unimo
from unimo_ds.batch import FIRST_POSITION, Batch, Kind
from unimo_ds.config import CmclSection, MaskingSection, ObjectivesSection
from unimo_ds.data.packing import Packer, pack_alone
from unimo_ds.data.sequences import Member, PackedText, ViewMaker
from unimo_ds.data.sequences import Sequence as View
from unimo_ds.errors import CheckpointError, ConfigError, DataError, StoreError
from unimo_ds.model.beams import Decoding
from unimo_ds.model.generation import generate
from unimo_ds.model.unimo import UnimoModel
from unimo_ds.opening import open_finetuned, open_unimo, read_start
from unimo_ds.regions import Regions
from unimo_ds.tokenizer import CLS, SEP, Tokenizer, train_tokenizer
from unimo_ds.vision.detector_file import PACKAGED, load_detector
from unimo_ds.vision.extract import as_tensor

TEXTS = ["A red cup is beside a ball.", "Two dogs.", "The tree near the house is green, and a cup is here."]
SHOWN = 8  # regions of an image


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TEXTS * 3, 330, folder)
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> SmallWorld:
    return write_small_world(tmp_path_factory.mktemp("world"))


def images(count: int = 3) -> list[Regions]:
    rng = np.random.default_rng(0)
    return [random_regions(rng, 4 + 3 * number) for number in range(count)]


def pretrained(folder: Path, tokenizer: Path, **objectives: Any) -> Path:
    data = {"max_text_tokens": 20, "max_regions": SHOWN, "positions_per_micro_batch": 50}
    return write_pretrained(folder / "run", tokenizer, DETECTOR, WIDTH, data=data, objectives=objectives)


def tuned(folder: Path, tokenizer: Path, family: str, **task: Any) -> Path:
    """A model of a task whose files are not there."""
    files = {"path": "none", "regions": "none"}
    if family in ("writing", "dialogue"):
        files = {"path": "none"}
    section = {"family": family, "train": files, "dev": {"dev": files}, **task}
    data = {"max_text_tokens": 20, "max_regions": SHOWN, "positions_per_micro_batch": 60}
    return write_tuned(folder / family, tokenizer, DETECTOR, WIDTH, section, **data)


def by_hand(run: Path) -> tuple[UnimoModel, Tokenizer]:
    start = read_start(run)
    return open_unimo(start.checkpoint, start.model), start.tokenizer


def packed(tokenizer: Tokenizer, text: str) -> PackedText:
    return ViewMaker(tokenizer, MaskingSection()).whole_text(np.array(tokenizer.encode([text])[0][:18], np.int64))


def pair(regions: Regions, text: PackedText) -> Batch:
    packer = Packer(WIDTH, SHOWN)
    image, shown = packer.add_image(regions)
    packer.add(View(image=image, regions=shown, text=text, member=Member(0, Kind.PAIR)))
    return packer.build()


def close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_vectors_are_those_of_the_model_alone(tokenizer: Path, tmp_path: Path) -> None:
    """A micro-batch of 50 positions holds few inputs: the batches of the list are others than those by hand."""
    run = pretrained(tmp_path, tokenizer)
    model, (unimo, words) = Unimo.from_pretrained(run), by_hand(run)
    of_texts, of_images = model.encode_text(TEXTS), model.encode_image(images())
    assert of_texts.vectors_ND.dtype == torch.float32 and not of_texts.vectors_ND.is_inference()
    for number, (text, regions) in enumerate(zip(TEXTS, images(), strict=True)):
        batch = pack_alone([regions], [packed(words, text)], WIDTH, SHOWN)
        expected, (image_1D, text_1D) = unimo(batch), unimo.pooled(batch)
        (hidden_TD,) = unimo.encode(batch, [torch.arange(batch.positions)])
        rows = 1 + min(len(regions), SHOWN)
        assert close(of_images.vectors_ND[number], expected.image_vectors_ID[0])
        assert close(of_texts.vectors_ND[number], expected.text_vectors_XD[0])
        assert close(of_images.pooled_ND[number], image_1D[0]) and close(of_texts.pooled_ND[number], text_1D[0])
        assert close(of_images.hidden[number], hidden_TD[:rows]) and close(of_texts.hidden[number], hidden_TD[rows:])
    (first,) = model.encode_text(TEXTS[0]).vectors_ND
    assert close(first, of_texts.vectors_ND[0]), "one is a list of one"
    assert not close(of_texts.vectors_ND[0], of_texts.vectors_ND[1])
    assert model.encode_text([]).vectors_ND.shape == (0, 32) and model.encode_image([]).hidden == []


@torch.no_grad()
def test_two_texts_have_one_separator_between_them(tokenizer: Path, tmp_path: Path) -> None:
    run = pretrained(tmp_path, tokenizer)
    unimo, words = by_hand(run)
    one, other = (np.array(ids, np.int64) for ids in words.encode(["A cup.", "Two dogs."]))
    ids = np.concatenate([[CLS], one, [SEP], other, [SEP]])
    text = PackedText(ids, np.arange(len(ids)) + FIRST_POSITION, np.full(len(ids), -1), len(ids))
    expected = unimo(pack_alone([], [text], WIDTH, SHOWN)).text_vectors_XD
    assert close(Unimo.from_pretrained(run).encode_text(("A cup.", "Two dogs.")).vectors_ND, expected)


def test_a_long_text_loses_its_end_as_in_training(tokenizer: Path, tmp_path: Path) -> None:
    run = pretrained(tmp_path, tokenizer)
    model, words = Unimo.from_pretrained(run), read_start(run).tokenizer
    long = " ".join(TEXTS)
    kept = words.exact_text(words.encode([long])[0][:18])  # max_text_tokens 20, with [CLS] and [SEP]
    assert len(model.encode_text(long).hidden[0]) == 20
    assert close(model.encode_text(long).vectors_ND, model.encode_text(kept).vectors_ND)
    untold = write_pretrained(tmp_path / "untold", tokenizer, DETECTOR, WIDTH)
    assert len(Unimo.from_pretrained(untold).encode_text(long * 9).hidden[0]) == 64, "the model's positions"


@pytest.mark.parametrize("cmcl", [1.0, 0.0])
@torch.no_grad()
def test_scores_are_of_image_and_text_encoded_together(tokenizer: Path, tmp_path: Path, cmcl: float) -> None:
    run = pretrained(tmp_path, tokenizer, **ObjectivesSection(cmcl=CmclSection(weight=cmcl), matching=1 - cmcl).model_dump())
    unimo, words = by_hand(run)
    scores_IX = Unimo.from_pretrained(run).score(images(), TEXTS[:2])
    assert scores_IX.shape == (3, 2)
    for number, regions in enumerate(images()):
        for place, text in enumerate(TEXTS[:2]):
            found = unimo(pair(regions, packed(words, text)))
            expected = (found.image_vectors_ID * found.text_vectors_XD).sum() if cmcl else found.matching_logits_J[0]
            assert float(scores_IX[number, place]) == pytest.approx(float(expected), abs=1e-5)
    assert scores_IX.std() > 1e-3


@torch.no_grad()
def test_a_model_of_retrieval_scores_by_its_own_head(tokenizer: Path, tmp_path: Path) -> None:
    run = tuned(tmp_path, tokenizer, "retrieval", negatives=1)
    opened = open_finetuned(run, [])
    scores_IX = Unimo.from_pretrained(run).score(images(), TEXTS)
    for number, regions in enumerate(images()):
        for place, text in enumerate(TEXTS):
            image_1D, text_1D = opened.model.eval().unimo.pooled(pair(regions, packed(opened.start.tokenizer, text)))
            expected = opened.model.head(text_1D * image_1D)
            assert float(scores_IX[number, place]) == pytest.approx(float(expected), abs=1e-5)
    assert close(
        Unimo.from_pretrained(run).encode_text(TEXTS[0]).hidden[0][0],
        Unimo.from_pretrained(run).encode_text(TEXTS).hidden[0][0],
    )


def prefix(regions: Regions | None, text: PackedText | None) -> Batch:
    packer = Packer(WIDTH, SHOWN)
    image, shown = (None, 0) if regions is None else packer.add_image(regions)
    packer.add(View(image=image, regions=shown, text=text))
    return packer.build()


@pytest.mark.parametrize(("shows", "says"), [(True, False), (False, True), (True, True)])
def test_texts_are_those_of_the_search_by_hand(tokenizer: Path, tmp_path: Path, shows: bool, says: bool) -> None:
    run = pretrained(tmp_path, tokenizer)
    unimo, words = by_hand(run)
    rules = Decoding(beams=2, longest=6, shortest=2)
    found = Unimo.from_pretrained(run).generate(images() if shows else None, TEXTS if says else None, rules)
    expected = []
    for regions, text in zip(images(), TEXTS, strict=True):
        batch = prefix(regions if shows else None, packed(words, text) if says else None)
        (written,) = generate(unimo, batch, rules, CLS, SEP, [0, 1, 3, words.mask])
        expected.append(words.decode(written.ids))
    assert found == expected and len(set(found)) > 1


def test_texts_are_searched_for_as_the_task_does_or_else_as_coco_captions(tokenizer: Path, tmp_path: Path) -> None:
    run = pretrained(tmp_path, tokenizer)
    model = Unimo.from_pretrained(run)
    coco = Decoding(beams=5, longest=50, shortest=5, length_penalty=0.6)
    assert model.generate(images()) == model.generate(images(), decoding=coco)
    assert model.generate(images()) != model.generate(images(), decoding=Decoding(beams=1, longest=3))
    short = tuned(tmp_path, tokenizer, "captioning", decoding={"beams": 2, "longest": 4, "shortest": 4})
    model = Unimo.from_pretrained(short)
    rules = Decoding(beams=2, longest=4, shortest=4, length_penalty=0.6)
    assert model.generate(images()) == model.generate(images(), decoding=rules)
    assert model.generate(images()) != model.generate(images(), decoding=coco)


def test_what_a_model_lacks_is_said(tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"run: is a model of pre-training: nothing in it says how well images and texts"):
        Unimo.from_pretrained(pretrained(tmp_path, tokenizer, cmcl={"weight": 0})).score(images(), TEXTS)
    captioning = Unimo.from_pretrained(tuned(tmp_path, tokenizer, "captioning"))
    with pytest.raises(CheckpointError, match=r"is a model of captioning: nothing in it says"):
        captioning.score(images(), TEXTS)
    with pytest.raises(CheckpointError, match=r"is a model of captioning: its text pooler was left out"):
        captioning.encode_text(TEXTS)
    with pytest.raises(CheckpointError, match=r"is a model of retrieval: its language head was left out"):
        Unimo.from_pretrained(tuned(tmp_path, tokenizer, "retrieval")).generate(images())
    with pytest.raises(CheckpointError, match=r"is a model of dialogue: it answers .* use `unimo-ds predict sets`"):
        Unimo.from_pretrained(tuned(tmp_path, tokenizer, "dialogue")).generate(texts=TEXTS)
    with pytest.raises(CheckpointError, match=r"nowhere: neither a checkpoint .* nor a run folder"):
        Unimo.from_pretrained(tmp_path / "nowhere")


def test_wrong_inputs_are_named(tokenizer: Path, tmp_path: Path) -> None:
    model = Unimo.from_pretrained(pretrained(tmp_path, tokenizer))
    with pytest.raises(ConfigError, match="generate: wants images, texts, or both"):
        model.generate()
    with pytest.raises(ConfigError, match="3 images and 2 texts; wants as many of both"):
        model.generate(images(), TEXTS[:2])
    with pytest.raises(DataError, match=r"image 1: features of width 16; .*run reads 24"):
        model.encode_image([images()[0], random_regions(np.random.default_rng(0), 3, width=16)])
    with pytest.raises(ConfigError, match=r"image 0 is a photograph, .* is not packaged: give it to from_pretrained"):
        model.encode_image("photo.jpg")
    with pytest.raises(StoreError, match=r"regions of detector world: made by another .* those of .*run; anchor_ratios: \[0.5"):
        Unimo.from_pretrained(tmp_path / "run", detector="world")
    with pytest.raises(CheckpointError, match="no detector 'moon'"):
        Unimo.from_pretrained(tmp_path / "run", detector="moon")
    unknown = write_pretrained(tmp_path / "unknown", tokenizer, {}, WIDTH)
    assert Unimo.from_pretrained(unknown).detector is None
    with pytest.raises(DataError, match=r"image 0: features of width 256; .*unknown reads 24"):
        Unimo.from_pretrained(unknown, detector="world").encode_image(np.zeros((60, 80, 3), np.uint8))


def test_tags_stand_beside_an_image_or_are_asked_for(tokenizer: Path, tmp_path: Path) -> None:
    run = tuned(tmp_path, tokenizer, "captioning", object_tags={"threshold": 0.1})
    with pytest.raises(ConfigError, match="only a detector has their names: give it"):
        Unimo.from_pretrained(run).generate(images())
    with pytest.raises(ConfigError, match="object tags beside each image: give images alone"):
        Unimo.from_pretrained(run).generate(texts=TEXTS)


def test_a_photograph_in_any_form_is_its_regions_in_a_store(world: SmallWorld, tmp_path: Path) -> None:
    run = write_pretrained(tmp_path / "run", world.tokenizer, world.store.detector, 256)
    model = Unimo.from_pretrained(run)
    expected = model.encode_image(world.regions).vectors_ND
    with Image.open(world.pictures[0]) as file:
        picture = file.convert("RGB")
    forms = [world.pictures[0], str(world.pictures[0]), picture, np.array(picture)]
    for form in forms:
        assert torch.allclose(model.encode_image(form).vectors_ND[0], expected[0], atol=1e-3)
    assert torch.allclose(model.encode_image(list(world.pictures)).vectors_ND, expected, atol=1e-3)
    assert model.generate(list(world.pictures)) == model.generate(world.regions)
    assert (expected[0] - expected[1]).abs().max() > 0.02


def test_a_photograph_that_is_none_is_named(world: SmallWorld, tmp_path: Path) -> None:
    model = Unimo.from_pretrained(write_pretrained(tmp_path / "run", world.tokenizer, world.store.detector, 256))
    (tmp_path / "torn.jpg").write_bytes(world.pictures[0].read_bytes()[:300])
    with pytest.raises(DataError, match=r"torn\.jpg: "):
        model.encode_image([world.pictures[0], tmp_path / "torn.jpg"])
    with pytest.raises(DataError, match=r"image 1: float64 \[4, 4\]; wants uint8 \[H, W, 3\], RGB"):
        model.encode_image([world.pictures[0], np.zeros((4, 4))])
    with pytest.raises(DataError, match=r"image 0: uint8 \[0, 8, 3\]; wants"):
        model.encode_image(np.zeros((0, 8, 3), np.uint8))
    with pytest.raises(DataError, match="image 0: unknown range"):
        model.encode_image(Image.new("F", (60, 40)))


def test_a_detector_keeps_what_it_kept_for_the_model(world: SmallWorld, tmp_path: Path) -> None:
    few = load_detector("world").with_selection(min_boxes=1, max_boxes=3)
    run = write_pretrained(tmp_path / "run", world.tokenizer, few.identity(), 256)
    file = tmp_path / "own.safetensors"
    file.write_bytes((PACKAGED / "world.safetensors").read_bytes())
    for detector in (None, "world", file, load_detector("world")):
        model = Unimo.from_pretrained(run, detector=detector)
        assert model.detector is not None and model.detector.identity() == few.identity()
        assert len(model.encode_image(world.pictures[0]).hidden[0]) <= 4
    pixels = np.array(Image.open(world.pictures[0]).convert("RGB"))
    (regions,) = few.detect([as_tensor(pixels)])
    assert close(model.encode_image(pixels).vectors_ND, model.encode_image(regions).vectors_ND)


def test_it_needs_no_deepspeed_and_no_process_group(tokenizer: Path, tmp_path: Path) -> None:
    run = tuned(tmp_path, tokenizer, "captioning", decoding={"longest": 3})
    program = f"""
import sys
import unimo_ds
assert "torch" not in sys.modules
import torch
model = unimo_ds.Unimo.from_pretrained({str(run)!r})
print(model.generate(texts="A cup."))
assert not torch.distributed.is_initialized()
print("deepspeed" in sys.modules)
"""
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.splitlines()[-1] == "False"
    with pytest.raises(ImportError, match="cannot import name 'Uni'"):
        exec("from unimo_ds import Uni")


def test_the_snippets_of_the_documentation_run(world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.DOTALL)
    write_pretrained(tmp_path / "runs/demo/world", world.tokenizer, world.store.detector, 256)
    (tmp_path / "data/demo/regions").mkdir(parents=True)
    (tmp_path / "data/demo/world").symlink_to(world.folder / "world")
    (tmp_path / "data/demo/regions/val").symlink_to(world.folder / "regions")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for snippet in snippets:
        exec(snippet, names)
    assert len(snippets) == 4 and names["images"].vectors_ND.shape == (2, 32)
