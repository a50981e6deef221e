"""A detector in one safetensors file: weights in fp16, and configuration, names and measured quality in its metadata.

Published files (`published_file.py`) are opened here too: one call for whatever a user has.
"""

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from unimo_ds.errors import CheckpointError, ConfigError
from unimo_ds.names import read_names
from unimo_ds.vision.detector import Detector, weights_sha256
from unimo_ds.vision.detector_config import DetectorConfig
from unimo_ds.vision.faster_rcnn import BottomUpDetector
from unimo_ds.vision.published_file import load_published, read_safetensors

PACKAGED = Path(__file__).parent / "weights"
_KEY = "unimo_ds detector"
_FORMAT = 2


def save_detector(detector: BottomUpDetector, path: Path) -> None:
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


def load_detector(
    name_or_path: str | Path,
    conventions: str | None = None,
    class_names: Path | None = None,
    attribute_names: Path | None = None,
) -> Detector:
    """Opens a packaged detector by name (`world`), a detector file, or published weights; on the CPU, in evaluation mode.

    Args:
        name_or_path: packaged name, our file, or a published file or folder as `load_published` takes it.
        conventions: with published weights, whose settings to use; None: what the file suggests.
        class_names, attribute_names: with published weights, text files with a name a line; None: files that lie beside them.

    Raises:
        CheckpointError: no such detector, or the file is damaged, of another format, or of a newer version.
        ConfigError: conventions or names that do not go with the file.
    """
    path = _find(name_or_path)
    if path.suffix == ".safetensors":
        _, metadata = read_safetensors(path, tensors=False)
        if _KEY in metadata:
            if conventions or class_names or attribute_names:
                raise ConfigError(f"{path}: has conventions and names of its own; they are given for published weights only")
            return _build(path, metadata[_KEY], read_safetensors(path)[0])
    return load_published(path, conventions, *(read_names(file) if file else None for file in (class_names, attribute_names)))


def _build(path: Path, description: str, state: dict[str, torch.Tensor]) -> BottomUpDetector:
    try:
        content: dict[str, Any] = json.loads(description)
        if content["format"] != _FORMAT:
            raise ValueError(f"format {content['format']!r}, this program reads {_FORMAT}")
        config = DetectorConfig.model_validate(content["config"])
        detector = BottomUpDetector(config, content["class_names"], content["attribute_names"], content["facts"])
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
    path, packaged = Path(name_or_path), PACKAGED / f"{name_or_path}.safetensors"
    for found in (path, packaged):
        if found.is_file() or (found == path and found.is_dir()):
            return found
    names = sorted(path.stem for path in PACKAGED.glob("*.safetensors"))
    raise CheckpointError(f"no detector {str(name_or_path)!r}: neither a file or folder nor one of the packaged {names}")


@torch.no_grad()
def _round_to_half(detector: BottomUpDetector) -> None:
    for value in detector.state_dict().values():
        if value.is_floating_point():
            value.copy_(value.half())
