"""NVIDIA's apex, where a run asks for it: fused LayerNorm (`model.layer_norm: apex`), LAMB (`training.optimizer: apex_lamb`).

apex is compiled by hand against one version of torch and CUDA, so nothing here needs it. The package called `apex` on PyPI is
another one, a web toolkit; it is recognised and named.
"""

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import torch

from unimo_ds.errors import ConfigError

_LAYER_NORM, _LAMB = ("apex.normalization", "FusedLayerNorm"), ("apex.optimizers", "FusedLAMB")
_BUILD = (
    "build it from a clone of https://github.com/NVIDIA/apex: `pip install -v --no-build-isolation --config-settings "
    '"--build-option=--cpp_ext" --config-settings "--build-option=--cuda_ext" ./apex`'
)


def check(layer_norm: str, optimizer: str) -> None:
    """Finds what a run asks for, before any of its work is done.

    Args:
        layer_norm, optimizer: the values of `model.layer_norm` and `training.optimizer`.

    Raises:
        ConfigError: it is not there, or nothing is there to run it on.
    """
    if layer_norm == "apex":
        fused_layer_norm()
    if optimizer == "apex_lamb":
        fused_lamb()
        if not torch.cuda.is_available():
            raise ConfigError("training.optimizer = apex_lamb needs a GPU, and there is none; set training.optimizer=adamw")


def fused_layer_norm() -> Any:
    """The class `apex.normalization.FusedLayerNorm`; on CPU tensors it computes torch's.

    Raises:
        ConfigError: apex is missing, is the other package, or lacks its CUDA extension.
    """
    return _find(
        *_LAYER_NORM, extension="fused_layer_norm_cuda", key="model.layer_norm = apex", instead="model.layer_norm=torch"
    )


def fused_lamb() -> Any:
    """The class `apex.optimizers.FusedLAMB`; its steps need a GPU.

    Raises:
        ConfigError: as `fused_layer_norm`.
    """
    return _find(*_LAMB, extension="amp_C", key="training.optimizer = apex_lamb", instead="training.optimizer=adamw")


def _find(module: str, name: str, extension: str, key: str, instead: str) -> Any:
    """`module.name`, or an error that says which of three things is wrong and how to go on without apex."""
    package = importlib.util.find_spec("apex")
    if package is None:
        raise ConfigError(f"{key}: NVIDIA's apex is not installed; {_BUILD}, or set {instead}")
    folders = [Path(folder) for folder in package.submodule_search_locations or ()]
    # Looked at, not imported: the other package fails in its own way wherever its web framework is missing.
    if not any((folder / module.removeprefix("apex.")).is_dir() for folder in folders):
        where = folders[0] if folders else package.origin
        raise ConfigError(
            f"{key}: the package `apex` in {where} is not NVIDIA's: on PyPI that name belongs to a web toolkit; "
            f"`pip uninstall apex`, then {_BUILD}, or set {instead}"
        )
    try:
        importlib.import_module(extension)
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, RuntimeError) as error:
        raise ConfigError(
            f"{key}: apex is installed in {folders[0]}, but {name} cannot be used ({error}): it was built without its CUDA "
            f"extensions, or for another torch; {_BUILD}, or set {instead}"
        ) from error
