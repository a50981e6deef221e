"""Published weights, converted, against where they come from: the one check for whoever has the files (docs/weights.md).

Shape suffixes: see `unimo_ds.batch`; D hidden width, V vocabulary.
"""

import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unimo_ds.batch import FIRST_POSITION, Batch, Kind
from unimo_ds.config import ModelSection
from unimo_ds.convert import roberta
from unimo_ds.convert.converted import filled, listed, shape_of
from unimo_ds.convert.original import OriginalFolder, convert_original, is_of_optimiser
from unimo_ds.convert.reference import OriginalModel, SequenceInputs
from unimo_ds.convert.tokenizers import open_tokenizer
from unimo_ds.data.packing import Packer
from unimo_ds.data.sequences import Ints, Member, PackedText
from unimo_ds.data.sequences import Sequence as View
from unimo_ds.errors import CheckpointError
from unimo_ds.model.task_heads import EntailmentHead, SentenceHead
from unimo_ds.model.unimo import UnimoModel
from unimo_ds.progress import track
from unimo_ds.regions import Regions
from unimo_ds.tokenizer import CLS, SEP, Tokenizer

_TEXTS = ("Two dogs run over the grass, and a man in a red shirt watches them.", "A cup of coffee stands on the table.")
_GAPS = (
    "The capital of France is <mask>.",
    "The cat sat on the <mask> and slept.",
    "She ate an apple because she was <mask>.",
    "Water <mask> at a hundred degrees.",
)
_GAP = " <mask>"  # the space before a word is part of it
_SHOWN = 5  # words for a gap
_EXACT, _ROUNDED = 1e-9, 1e-5  # bounds in float64, and where a result is float32


@dataclass(frozen=True)
class Difference:
    """Two computations of the same numbers.

    Attributes:
        what: was computed.
        largest: difference of any number.
        magnitude: of the largest number.
        bound: for the difference over the magnitude, or over 1 where that is larger.
    """

    what: str
    largest: float
    magnitude: float
    bound: float

    @property
    def same(self) -> bool:
        """Whether the difference is within the bound; of numbers that are not finite it is not."""
        return self.largest <= self.bound * max(1.0, self.magnitude)


@dataclass(frozen=True)
class WeightsCheck:
    """What was compared, and what was found beside it.

    Attributes:
        source: the folder.
        differences: one for each thing that was computed twice.
        faults: in words; none is right.
        remarks: to be read, not judged.
    """

    source: Path
    differences: list[Difference]
    faults: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def same(self) -> bool:
        """Whether all is as it should be."""
        return not self.faults and all(each.same for each in self.differences)

    @property
    def text(self) -> str:
        """For people."""
        lines = [f"{self.source}: {'the same' if self.same else 'DIFFERENT'}"]
        lines += [
            f"  {each.what:<34} {each.largest:.1e} apart, of values up to {each.magnitude:.1f}; bound {each.bound:.0e}"
            + ("" if each.same else "  DIFFERENT")
            for each in self.differences
        ]
        return "\n".join([*lines, *(f"  FAULT: {each}" for each in self.faults), *(f"  {each}" for each in self.remarks)])


def difference(what: str, ours: Any, theirs: Any, bound: float) -> Difference:
    """Compares two arrays of one shape."""
    one, other = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    assert one.shape == other.shape, (what, one.shape, other.shape)
    return Difference(what, float(np.abs(one - other).max()), float(np.abs(other).max()), bound)


def check_unimo(source: Path, tokenizer_folder: Path) -> WeightsCheck:
    """Converts the original's folder and compares it, in float64, with the original's graph on its own files.

    Args:
        source: holds one file a parameter.
        tokenizer_folder: as `conversion.convert_unimo` takes it.

    Raises:
        CheckpointError: the folder is none, is damaged or lacks parameters.
        DataError: the tokenizer cannot be read.
    """
    folder = OriginalFolder(source)
    model = folder.model_section()
    build = partial(UnimoModel, model)
    converted = convert_original(folder, shape_of(build), folder.optional)
    unimo, new = filled(build, converted)
    with tempfile.TemporaryDirectory() as temporary:
        tokenizer = open_tokenizer(tokenizer_folder, Path(temporary))
        faults = _faults_of(tokenizer, model.vocabulary_size)
        texts = [np.array(ids) for ids in tokenizer.encode(list(_TEXTS))]
        gaps = [] if "language_head.bias" in new else _fillings(unimo, tokenizer)
        differences = compare_original(OriginalModel(folder), unimo.double(), texts, new) + compare_heads(folder, model)
    others = [name for name in converted.unused if not is_of_optimiser(name)]
    remarks = [
        f"{len(converted.used)} files mapped to {len(converted.weights)} parameters; new: {listed(new)}",
        f"unused: {len(converted.unused) - len(others)} of the optimiser, {len(others)} others {listed(others)}".rstrip(),
        *gaps,
    ]
    return WeightsCheck(source, differences, faults, remarks)


def check_roberta(source: Path) -> WeightsCheck:
    """Converts a local RoBERTa and compares it, in float64, with Hugging Face's own class.

    Raises:
        CheckpointError: the folder has no whole RoBERTa.
        DataError: its tokenizer is missing or cannot be read.
    """
    network, unused = roberta.read_roberta(source)
    model, converted = roberta.convert_roberta(network, unused, feature_width=8, region_classes=2)
    unimo, _ = filled(partial(UnimoModel, model), converted)
    with tempfile.TemporaryDirectory() as temporary:
        tokenizer = open_tokenizer(source, Path(temporary))
        faults = _faults_of(tokenizer, model.vocabulary_size)
        texts = [np.array(ids) for ids in tokenizer.encode(list(_TEXTS))]
        gaps = _fillings(unimo, tokenizer)
    return WeightsCheck(
        source,
        compare_roberta(network.double(), unimo.double(), texts),
        faults,
        [f"unused: {len(unused)} {listed(unused)}".rstrip(), *gaps],
    )


def compare_original(
    reference: OriginalModel, unimo: UnimoModel, texts: Sequence[Ints], new: Iterable[str]
) -> list[Difference]:
    """All that the two compute, on text, image, image with text, and on what generates a text from either.

    Args:
        reference: the original's graph.
        unimo: the converted model in float64.
        texts: tokens of two texts, without special ones.
        new: names of parameters that the original has not.
    """
    width = unimo.embedding.region.feature.in_features
    has_images, lacking = "embedding.region.feature.weight" not in new, {name.partition(".")[0] for name in new}
    differences = []
    cases = _cases(texts, width)
    for name, inputs in track(cases.items(), "comparing", len(cases), "sequences"):
        if inputs.features_RF is not None and not has_images:
            continue
        batch = _packed(inputs, width)
        with torch.no_grad():
            (hidden_TD,) = unimo.encode(batch, [torch.arange(batch.positions)])
            image_ID, text_XD = unimo.pooled(batch)
            outputs = unimo(batch, want_logits=True)
        theirs_SH = reference.hidden(inputs)
        regions = 0 if inputs.features_RF is None else 1 + len(inputs.features_RF)
        image_H, text_SH = theirs_SH[: min(regions, 1)], theirs_SH[regions:]
        differences.append(difference(f"{name}: hidden states", hidden_TD, theirs_SH, _EXACT))
        if inputs.ids and "language_head" not in lacking:
            logits = reference.language_logits(text_SH)
            differences.append(difference(f"{name}: scores of words", outputs.language_logits_MV, logits, _ROUNDED))
        if regions and "image_pooler" not in lacking:
            differences.append(difference(f"{name}: pooled image", image_ID, reference.pooled_image(image_H), _EXACT))
        if inputs.ids and "text_pooler" not in lacking:
            differences.append(difference(f"{name}: pooled text", text_XD, reference.pooled_text(text_SH[:1]), _EXACT))
        if regions and inputs.ids and not lacking & {"image_pooler", "text_pooler", "matching_head"}:
            score = reference.match(reference.pooled_text(text_SH[:1]), reference.pooled_image(image_H))
            differences.append(difference(f"{name}: match", outputs.matching_logits_J, score, _ROUNDED))
    return differences


def compare_heads(folder: OriginalFolder, model: ModelSection) -> list[Difference]:
    """What GLUE and SNLI-VE added, if anything, on random pooled vectors; retrieval's head is the model's own."""
    reference = OriginalModel(folder)
    text_BD, image_BD = np.random.default_rng(0).normal(size=(2, 4, model.hidden_size))
    heads: list[tuple[str, Callable[[], nn.Module], Any, Any]] = []
    for name in folder.of_tasks:
        if found := re.fullmatch(r"cls_out_(\d+)_w", name):
            classes = int(found[1])
            scores_BC = reference.sentence_scores(text_BD, classes)
            heads.append(("sentences", partial(SentenceHead, model, classes), text_BD, scores_BC))
        elif name == "cls_out_w_1":
            scores_BC = reference.entailment_scores(text_BD, image_BD)
            heads.append(("entailment", partial(EntailmentHead, model, scores_BC.shape[1]), text_BD + image_BD, scores_BC))
    differences = []
    for family, build, inputs_BD, theirs_BC in heads:
        wanted = {f"head.{name}": shape for name, shape in shape_of(build).items()}
        head = build().eval().double()
        weights = convert_original(folder, wanted, (), family).weights
        head.load_state_dict({name.removeprefix("head."): weight for name, weight in weights.items()})
        with torch.no_grad():
            ours_BC = head(torch.from_numpy(inputs_BD))
        differences.append(difference(f"head of {family}", ours_BC, theirs_BC, _ROUNDED))
    return differences


def compare_roberta(network: Any, unimo: UnimoModel, texts: Sequence[Ints]) -> list[Difference]:
    """Hidden states and scores of words of each text; the converted positions hold a sum that was rounded to float32.

    Args:
        network: Hugging Face's `RobertaForMaskedLM`, in float64.
        unimo: the converted model in float64.
        texts: tokens without special ones.
    """
    differences = []
    for number, text in enumerate(texts, 1):
        inputs = _text_inputs(text)
        batch = _packed(inputs, unimo.embedding.region.feature.in_features)
        with torch.no_grad():
            (hidden_TD,) = unimo.encode(batch, [torch.arange(batch.positions)])
            logits_MV = unimo(batch, want_logits=True).language_logits_MV
            theirs = network(torch.tensor([inputs.ids]), output_hidden_states=True)
        differences.append(difference(f"text {number}: hidden states", hidden_TD, theirs.hidden_states[-1][0], _ROUNDED))
        differences.append(difference(f"text {number}: scores of words", logits_MV, theirs.logits[0], _ROUNDED))
    return differences


def _text_inputs(text: Ints) -> SequenceInputs:
    ids = (CLS, *text.tolist(), SEP)
    return SequenceInputs(ids=ids, positions=tuple(range(FIRST_POSITION, FIRST_POSITION + len(ids))))


def _cases(texts: Sequence[Ints], width: int) -> dict[str, SequenceInputs]:
    """Every kind of sequence. Regions are such that their mean, boxes and areas are exact in the types of a store."""
    rng = np.random.default_rng(0)
    corners_R2 = rng.integers(0, 64, (8, 2))
    image: dict[str, Any] = {
        "features_RF": rng.integers(0, 128, (8, width)) / 32,
        "boxes_R4": np.concatenate([corners_R2, corners_R2 + rng.integers(1, 64, (8, 2))], axis=1),
        "size": (256, 128),
    }
    regions = 1 + len(image["features_RF"])
    source, target = map(_text_inputs, texts)
    both: dict[str, Any] = {"ids": source.ids + target.ids, "positions": source.positions + target.positions}
    text: dict[str, Any] = {"ids": source.ids, "positions": source.positions}
    return {
        "text": source,
        "image": SequenceInputs(**image),
        "image and text": SequenceInputs(**image, **text),
        "text from text": SequenceInputs(**both, source=len(source.ids)),
        "text from image": SequenceInputs(**image, **text, source=regions),
    }


def _packed(inputs: SequenceInputs, width: int) -> Batch:
    """One sequence of which every row of text is read."""
    packer = Packer(width, 100)
    image, shown = None, 0
    if inputs.features_RF is not None:
        assert inputs.boxes_R4 is not None
        none_R = np.zeros(len(inputs.features_RF))
        image, shown = packer.add_image(
            Regions(
                *inputs.size,
                inputs.boxes_R4.astype("f4"),
                inputs.features_RF.astype("f2"),
                none_R[:, None].astype("u2"),
                none_R[:, None].astype("f2"),
                none_R.astype("u2"),
                none_R.astype("f2"),
            )
        )
    text = None
    if inputs.ids:
        ids = np.array(inputs.ids)
        image_rows = 0 if image is None else 1 + shown
        source = len(ids) if inputs.source is None else inputs.source - image_rows
        text = PackedText(ids, np.array(inputs.positions), np.zeros_like(ids), source)
    kind = Kind.ALONE if image is None or text is None else Kind.PAIR
    view = View(image=image, regions=shown, text=text, causal=inputs.source is not None, member=Member(0, kind))
    packer.add(view)
    return packer.build()


def _faults_of(tokenizer: Tokenizer, words: int) -> list[str]:
    """What is wrong with the tokenizer of published weights.

    Raises:
        CheckpointError: it has not as many tokens as the model has vectors.
    """
    if tokenizer.size != words:
        raise CheckpointError(f"{tokenizer.folder}: has {tokenizer.size:,} tokens, and the model vectors for {words:,}")
    return [] if tokenizer.is_published else ["the tokenizer's pieces of text and their order are not RoBERTa's"]


def _fillings(unimo: UnimoModel, tokenizer: Tokenizer) -> list[str]:
    """The likeliest words for gaps in sentences, a line each: nonsense shows weights that stand for other words."""
    width = unimo.embedding.region.feature.in_features
    lines = []
    for sentence in _GAPS:
        before, after = tokenizer.encode(sentence.split(_GAP))
        batch = _packed(_text_inputs(np.array([*before, tokenizer.mask, *after])), width)
        with torch.no_grad():
            logits_MV = unimo(batch, want_logits=True).language_logits_MV
        probabilities_V: Tensor = logits_MV[1 + len(before)].softmax(0)
        best = probabilities_V.topk(_SHOWN)
        words = ", ".join(f"{tokenizer.token(int(index)).strip()} {p:.2f}" for p, index in zip(*best, strict=True))
        lines.append(f"{sentence}  {words}")
    return lines
