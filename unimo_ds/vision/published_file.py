"""Files and folders of published detectors: read without running what a pickle may contain."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from unimo_ds.errors import CheckpointError, ConfigError
from unimo_ds.names import read_names
from unimo_ds.plain_pickle import load_plain
from unimo_ds.vision.detector import Detector
from unimo_ds.vision.published import detector_from_state
from unimo_ds.vision.torchvision_detector import ARCHITECTURES, TorchvisionDetector

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # of a Hugging Face folder
_CLASSES, _ATTRIBUTES = "objects_vocab.txt", "attributes_vocab.txt"


def load_published(
    path: Path,
    conventions: str | None = None,
    class_names: Sequence[str] | None = None,
    attribute_names: Sequence[str] | None = None,
) -> Detector:
    """A published detector: a Hugging Face folder, airsplay's `.pkl`, MILVLG's or torchvision's `.pth`, or `.safetensors`.

    Args:
        path: the file or folder; the layout is told by the names of its tensors.
        conventions: a key of `CONVENTIONS`, or one of torchvision's `ARCHITECTURES`.
        class_names, attribute_names: without background and "none"; None: from `objects_vocab.txt` and
            `attributes_vocab.txt` beside the weights, if they are there.

    Raises:
        CheckpointError: the file cannot be read, or its tensors are not those of a published detector.
        ConfigError: conventions or names that do not go with the weights.
    """
    folder = path if path.is_dir() else path.parent
    weights = _weights_in(path) if path.is_dir() else path
    state = _read_state(weights)
    if class_names is None:
        class_names = _names_beside(folder / _CLASSES)
    try:
        if any(name.startswith("backbone.body.") for name in state):
            return TorchvisionDetector(_architecture(weights, state, conventions), state, class_names)
        if attribute_names is None:
            attribute_names = _names_beside(folder / _ATTRIBUTES)
        own = path.is_dir() and conventions in (None, "huggingface")  # its settings are not other conventions'
        changes = _read_settings(folder / "config.yaml") if own else {}
        if conventions is None and weights.suffix == ".pkl":
            conventions = "airsplay"
        return detector_from_state(state, conventions, class_names, attribute_names, **changes)
    except CheckpointError as error:
        raise CheckpointError(f"{weights}: {error}") from error
    except (ConfigError, ValidationError, ValueError) as error:
        raise ConfigError(f"{weights}: {error}") from error


def read_safetensors(path: Path, tensors: bool = True) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors (none, if only the rest is asked for) and metadata of a safetensors file.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()} if tensors else {}, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error}); copy or train it again") from error


def _weights_in(folder: Path) -> Path:
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"{folder}: neither {' nor '.join(_WEIGHTS)} is in this folder; download the weights into it")


def _names_beside(path: Path) -> tuple[str, ...]:
    return read_names(path) if path.is_file() else ()


def _read_state(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0]
    try:
        if path.suffix == ".pkl":
            content = load_plain(path.read_bytes(), "latin1")
        else:
            content = torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # unpickling a damaged file raises almost anything
        raise CheckpointError(
            f"{path}: cannot be read ({type(error).__name__}: {error}). Only tensors and plain containers are read, "
            "never other objects; is it whole?"
        ) from error
    for key in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, expected named tensors")
    arrays = {str(name): torch.from_numpy(value) if isinstance(value, np.ndarray) else value for name, value in content.items()}
    return {name: value for name, value in arrays.items() if isinstance(value, Tensor)}


def _architecture(weights: Path, state: Mapping[str, Tensor], conventions: str | None) -> str:
    """Which of torchvision's detectors: as asked for, else by the file's name, else the only one with such tensors."""
    if conventions is not None:
        if conventions not in ARCHITECTURES:
            raise ConfigError(f"conventions {conventions!r}: torchvision's weights go with {', '.join(ARCHITECTURES)}")
        return conventions
    named = [
        name for name in ARCHITECTURES if weights.stem.startswith(f"{name}_coco") or re.match(rf"{name}[-.]", weights.name)
    ]
    if named:
        return named[0]
    if "backbone.body.layer1.0.conv1.weight" in state:
        return "fasterrcnn_resnet50_fpn_v2" if "roi_heads.box_head.0.0.weight" in state else "fasterrcnn_resnet50_fpn"
    raise ConfigError(
        "the tensors do not say whether it is fasterrcnn_mobilenet_v3_large_fpn or ..._320_fpn, which resize differently: "
        "say it with --conventions"
    )


def _read_settings(path: Path) -> dict[str, Any]:
    """What a Hugging Face folder's `config.yaml` says otherwise than our `huggingface` conventions."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    flat = _flat(content) if isinstance(content, dict) else {}
    selection: dict[str, Any] = {}
    changes: dict[str, Any] = {}
    for keys, (target, key, convert) in _SETTINGS.items():
        if keys in flat:
            (selection if target == "selection" else changes)[key] = convert(flat[keys])
    return changes | ({"selection": selection} if selection else {})


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"rpn": {"nms_thresh": 0.7}}` as `{"rpn.nms_thresh": 0.7}`; the file's case varies."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        name = f"{prefix}{key}".lower()
        flat.update(_flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value})
    return flat


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _same(value: Any) -> Any:
    return value


_SETTINGS: dict[str, tuple[str, str, Callable[[Any], Any]]] = {
    "input.min_size_test": ("config", "short_side", _same),
    "input.max_size_test": ("config", "long_side", _same),
    "model.pixel_mean": ("config", "pixel_mean", _same),
    "model.pixel_std": ("config", "pixel_std", _same),
    "rpn.nms_thresh": ("config", "proposal_nms_iou", _same),
    "rpn.pre_nms_topk_test": ("config", "proposals_before_nms", _same),
    "rpn.post_nms_topk_test": ("config", "proposals", _same),
    "roi_heads.nms_thresh_test": ("selection", "nms_iou", _as_list),
    "min_detections": ("selection", "min_boxes", _same),
    "max_detections": ("selection", "max_boxes", _same),
}
