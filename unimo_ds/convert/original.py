"""The original UNIMO's folder of parameters, under our names (unimo-spec, 9.1).

Linear layers are [in, out] there and [out, in] here; its queries, keys and values are three layers, which are one here.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from unimo_ds.config import SIZES, ModelSection
from unimo_ds.convert.converted import Converted, listed, model_section
from unimo_ds.convert.paddle import open_parameter
from unimo_ds.errors import CheckpointError
from unimo_ds.progress import track

Floats = npt.NDArray[np.float32]

_PUBLISHED = {int(SIZES[size]["hidden_size"]): int(SIZES[size]["layers"]) for size in ("base", "large")}  # layers by width
_HEAD_WIDTH = 64  # of attention, in both sizes (unimo-spec, 2.2)
_LAYER = re.compile(r"encoder_layer_(\d+)_")
_OPTIMISER = re.compile(r"_moment[12]_\d+$|_beta[12]_pow_acc_\d+$|learning_rate|^@|loss_scaling|_steps?_\d+$")
_OWN_LANGUAGE_HEAD = "mask_lm_out_fc.w_0"  # only where weight_sharing was False

_TABLES = {
    "embedding.text.word.weight": "word_embedding",
    "embedding.text.position.weight": "pos_embedding",
    "embedding.text.voice.role.weight": "role_embedding",
    "embedding.text.voice.turn.weight": "turn_embedding",
    "language_head.bias": "mask_lm_out_fc.b_0",
}
_NORMS = {
    "embedding.text.norm": "pre_encoder_layer_norm",
    "embedding.region.norm": "v_pre_encoder_layer_norm",
    "language_head.norm": "mask_lm_trans_layer_norm",
    "attention_norm": "post_att_layer_norm",  # of a layer, like those below
    "feed_forward_norm": "post_ffn_layer_norm",
}
_LINEARS = {
    "embedding.region.feature": ("image_emb",),
    "embedding.region.location": ("image_loc",),
    "text_pooler.dense": ("pooled_fc_text",),
    "image_pooler.dense": ("pooled_fc_image",),
    "language_head.transform": ("mask_lm_trans_fc",),
    "matching_head.score": ("match_fc",),
    "query_key_value": tuple(f"multi_head_att_{part}_fc" for part in ("query", "key", "value")),
    "output": ("multi_head_att_output_fc",),
    "expand": ("ffn_fc_0",),
    "contract": ("ffn_fc_1",),
}
# What a task adds, by its family: the layer, and its name there with {} for w or b and {classes} for their number.
_HEADS = {
    ("sentences", "head.classes"): "cls_out_{classes}_{}",
    ("entailment", "head.expand"): "cls_out_{}_0",
    ("entailment", "head.classes"): "cls_out_{}_1",
    ("retrieval", "head.score"): "match_fc.{}_0",
}
_OF_A_TASK = re.compile(r"cls_out_.*|match_fc\.[wb]_0|role_embedding|turn_embedding")
# Parts that the folder of a fine-tuned model may lack: a program saved what it used.
_PARTS = ("embedding.region", "language_head", "text_pooler", "image_pooler", "matching_head")


class OriginalFolder(Mapping[str, Floats]):
    """The parameters of a folder by name; each is read when it is asked for.

    Args:
        path: holds one file a parameter.

    Raises:
        CheckpointError: it is no such folder; the message says what it is, where that can be told.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._names = sorted(file.name for file in path.iterdir()) if path.is_dir() else []
        if "word_embedding" not in self._names or not any(map(_LAYER.match, self._names)):
            raise CheckpointError(f"{path}: {_what_it_is(path, self._names)}")

    def __getitem__(self, name: str) -> Floats:
        return open_parameter(self.path / name).read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    @property
    def of_tasks(self) -> list[str]:
        """Names of what fine-tuning added."""
        return [name for name in self._names if _OF_A_TASK.fullmatch(name)]

    @property
    def optional(self) -> tuple[str, ...]:
        """Parts of a `UnimoModel` that it may lack, each as a whole."""
        return _PARTS if self.of_tasks else ("matching_head",)

    def model_section(self) -> ModelSection:
        """The shape that its files tell.

        Raises:
            CheckpointError: a file is damaged, or the shape is not one of UNIMO's.
        """
        vocabulary, width = self._matrix("word_embedding")
        positions, _ = self._matrix("pos_embedding")
        features = self._matrix("image_emb.w_0")[0] if "image_emb.w_0" in self else ModelSection().feature_width
        if width % _HEAD_WIDTH:
            raise CheckpointError(
                f"{self.path}/word_embedding: is {width} wide, which is no multiple of {_HEAD_WIDTH}, the width of each of "
                "UNIMO's attention heads; this is another model"
            )
        layers = max(int(found[1]) for name in self if (found := _LAYER.match(name))) + 1
        if width in _PUBLISHED and layers != _PUBLISHED[width]:
            raise CheckpointError(
                f"{self.path}: has {layers} layers of width {width}, and the published model of that width has "
                f"{_PUBLISHED[width]}: files of whole layers are missing; unpack the archive again"
            )
        return model_section(
            hidden_size=width,
            layers=layers,
            heads=width // _HEAD_WIDTH,
            vocabulary_size=vocabulary,
            max_positions=positions,
            feature_width=features,
        )

    def _matrix(self, name: str) -> tuple[int, int]:
        shape = open_parameter(self.path / name).shape
        if len(shape) != 2:
            raise CheckpointError(f"{self.path / name}: has shape {list(shape)}, expected a matrix; this is another model")
        return shape[0], shape[1]


def _what_it_is(path: Path, names: Collection[str]) -> str:
    if path.is_file():
        archive = path.name.endswith((".tar.gz", ".tgz", ".tar"))
        hint = f"an archive: unpack it (tar xf {path.name}) and give the folder" if archive else "a file; give the folder"
        return f"is {hint} with one file a parameter"
    if not path.exists():
        return "there is no such folder"
    if "state.json" in names:
        return "is a checkpoint of unimo_ds already; start from it with init"
    if {"config.json", "pytorch_model.bin"} & set(names) or any(name.endswith(".safetensors") for name in names):
        return "is a folder of Hugging Face; RoBERTa's is converted by `convert_weights.py roberta`"
    below = [name for name in names if (path / name / "word_embedding").exists()]
    hint = f"; {below[0]} in it is one, give that" if below else ""
    return f"has no word_embedding and no encoder_layer_*: no folder of the original UNIMO, with one file a parameter{hint}"


@dataclass(frozen=True)
class _Origin:
    """The original's parameters that make one of ours: stacked by their outputs."""

    names: tuple[str, ...]
    transposed: bool = False


def _origin(name: str, family: str | None, shape: torch.Size) -> _Origin | None:
    """Where a parameter of ours comes from, by its name in the model or, of a task's head, in `TaskModel`; None: it is new."""
    if name in _TABLES:
        return _Origin((_TABLES[name],))
    module, _, kind = name.rpartition(".")
    is_weight = kind == "weight"
    if (family, module) in _HEADS:
        there = _HEADS[str(family), module].format("w" if is_weight else "b", classes=shape[0])
        return _Origin((there,), is_weight)
    of_layer = re.fullmatch(r"transformer\.layers\.(\d+)\.(\w+)", module)
    prefix, module = (f"encoder_layer_{of_layer[1]}_", of_layer[2]) if of_layer else ("", module)
    if module in _NORMS:
        return _Origin((f"{prefix}{_NORMS[module]}_{'scale' if is_weight else 'bias'}",))
    if module in _LINEARS:
        return _Origin(tuple(f"{prefix}{part}.{'w_0' if is_weight else 'b_0'}" for part in _LINEARS[module]), is_weight)
    return None


def convert_original(
    folder: OriginalFolder, wanted: Mapping[str, torch.Size], optional: Collection[str], family: str | None = None
) -> Converted:
    """Reads what a model wants, one parameter at a time.

    Args:
        folder: the original's.
        wanted: shapes by name in `UnimoModel`; a task's head as `head.*`.
        optional: names of modules that the folder may lack, each as a whole.
        family: of the task whose head is wanted.

    Raises:
        CheckpointError: parameters are missing, damaged, or of another shape; all that are missing are named.
    """
    if _OWN_LANGUAGE_HEAD in folder:
        raise CheckpointError(
            f"{folder.path}/{_OWN_LANGUAGE_HEAD}: the model has an output layer of its own (weight_sharing=False); here, as in "
            "the published models, words are scored with the word embedding"
        )
    origins = {name: origin for name, shape in wanted.items() if (origin := _origin(name, family, shape)) is not None}
    absent = {name for name, origin in origins.items() if not set(origin.names) <= set(folder)}
    for part in optional:
        own = {name for name in origins if name.startswith(f"{part}.")}
        if not any(there in folder for name in own for there in origins[name].names):
            absent -= own
            origins = {name: origin for name, origin in origins.items() if name not in own}
    if absent:
        missing = [there for name in sorted(absent) for there in origins[name].names if there not in folder]
        raise CheckpointError(
            f"{folder.path}: lacks {listed(missing)}: unpack the archive again; or, "
            + (
                "if it is a fine-tuned model, which lacks what its task does not read, give the task's --recipe"
                if family is None
                else f"if it was fine-tuned for something else than {family}, give the recipe of that"
            )
        )
    reading = track(origins.items(), f"reading {folder.path}", len(origins), "parameters")
    weights = {name: _read(folder, origin, wanted[name]) for name, origin in reading}
    used = {there for origin in origins.values() for there in origin.names}
    return Converted(weights, tuple(sorted(used)), tuple(name for name in folder if name not in used))


def _read(folder: OriginalFolder, origin: _Origin, shape: torch.Size) -> torch.Tensor:
    """One parameter of ours.

    Raises:
        CheckpointError: the original's have other shapes.
    """
    expected = (shape[0] // len(origin.names), *shape[1:])
    expected = expected[::-1] if origin.transposed else expected
    parts = []
    for name in origin.names:
        numbers = folder[name]
        if numbers.shape != expected:
            raise CheckpointError(
                f"{folder.path / name}: has shape {list(numbers.shape)}, expected {list(expected)} by the other parameters; it "
                "is of another model"
            )
        parts.append(numbers.T if origin.transposed else numbers)
    return torch.from_numpy(np.ascontiguousarray(np.concatenate(parts)))


def is_of_optimiser(name: str) -> bool:
    """Whether a file that was not used holds the state of the original's optimiser."""
    return _OPTIMISER.search(name) is not None
