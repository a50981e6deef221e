"""A detector in one safetensors file: weights in fp16, and configuration, names and measured quality in its metadata."""

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from unimo_ds.errors import CheckpointError
from unimo_ds.vision.detector_config import DetectorConfig
from unimo_ds.vision.faster_rcnn import Detector, weights_sha256

PACKAGED = Path(__file__).parent / "weights"
_KEY = "unimo_ds detector"
_FORMAT = 1


def save_detector(detector: Detector, path: Path) -> None:
    """Writes `path`; `detector` itself is rounded to the fp16 values that were written, so that the two stay equal."""
    _round_to_half(detector)
    content = {
        "format": _FORMAT,
        "config": {**detector.config.model_dump(), "selection": detector.selection.model_dump()},
        "class_names": detector.class_names,
        "attribute_names": detector.attribute_names,
        "facts": detector.facts,
        "weights_sha256": weights_sha256(detector),
    }
    state = {
        name: (value.half() if value.is_floating_point() else value).cpu().contiguous()
        for name, value in detector.state_dict().items()
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    # One key: safetensors writes several in random order, and equal training should give equal bytes.
    save_file(state, temporary, metadata={_KEY: json.dumps(content)})
    temporary.chmod(0o644)  # safetensors makes its files private, and this one is to be shared
    temporary.replace(path)


def load_detector(name_or_path: str | Path) -> Detector:
    """Opens a packaged detector by name (`world`), or any detector file by path; on the CPU, in evaluation mode.

    Raises:
        CheckpointError: no such detector, or the file is damaged, of another format, or of a newer version.
    """
    path = _find(name_or_path)
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            names = file.keys()
            state = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error}); copy or train it again") from error
    if _KEY not in metadata:
        raise CheckpointError(f"{path}: not a detector: its metadata has no key {_KEY!r}, only {sorted(metadata)}")
    return _build(path, metadata[_KEY], state)


def _build(path: Path, description: str, state: dict[str, torch.Tensor]) -> Detector:
    try:
        content: dict[str, Any] = json.loads(description)
        if content["format"] != _FORMAT:
            raise ValueError(f"format {content['format']!r}, this program reads {_FORMAT}")
        config = DetectorConfig.model_validate(content["config"])
        detector = Detector(config, content["class_names"], content["attribute_names"], content["facts"])
        detector.load_state_dict(state)
    except (ValueError, KeyError, ValidationError, RuntimeError) as error:
        raise CheckpointError(f"{path}: its description does not fit this program or its weights: {error}") from error
    found = weights_sha256(detector)
    if found != content.get("weights_sha256"):
        raise CheckpointError(
            f"{path}: the weights have sha256 {found}, the file promises {content.get('weights_sha256')}: it is damaged"
        )
    return detector.eval()


def _find(name_or_path: str | Path) -> Path:
    packaged = PACKAGED / f"{name_or_path}.safetensors"
    for path in (Path(name_or_path), packaged):
        if path.is_file():
            return path
    names = sorted(path.stem for path in PACKAGED.glob("*.safetensors"))
    raise CheckpointError(f"no detector {str(name_or_path)!r}: neither a file nor one of the packaged {names}")


@torch.no_grad()
def _round_to_half(detector: Detector) -> None:
    for value in detector.state_dict().values():
        if value.is_floating_point():
            value.copy_(value.half())
