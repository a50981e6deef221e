"""What a conversion found in published files, and the whole module that becomes of it: what was not found is new."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from unimo_ds.config import SIZES, ModelSection

_SEED = 1  # of what is new

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Converted:
    """Weights under the names of the module that they are for.

    Attributes:
        weights: float32.
        unused: what was found beside them, as it is called there.
    """

    weights: dict[str, Tensor]
    unused: tuple[str, ...]


def shape_of(module: Callable[[], nn.Module]) -> dict[str, torch.Size]:
    """The shape of each parameter of a module, which is not really made."""
    with torch.device("meta"):
        return {name: parameter.shape for name, parameter in module().named_parameters()}


def filled(build: Callable[[], M], converted: Converted) -> tuple[M, list[str]]:
    """The module with the weights, and the names of its parameters that are new: as its constructor makes them, always alike."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        module = build()
    return module, module.load_state_dict(converted.weights, strict=False).missing_keys


def model_section(**numbers: int) -> ModelSection:
    """The section of a model of these numbers; whatever depends on the size is that of the size with its width and depth."""
    same = (
        size for size, known in SIZES.items() if all(known[key] == numbers[key] for key in ("hidden_size", "layers", "heads"))
    )
    return ModelSection.model_validate({"size": next(same, "base"), **numbers})
