"""What a conversion found in published files, and the whole module that becomes of it: what was not found is new."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from unimo_ds.config import SIZES, ModelSection

_SEED = 1  # of what is new
_NAMED = 8  # names of a list that a message shows

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Converted:
    """Published weights under our names.

    Attributes:
        weights: float32, by their names in `UnimoModel`; a task's head as `head.*`.
        used, unused: what was found, as it is called there.
    """

    weights: dict[str, Tensor]
    used: tuple[str, ...]
    unused: tuple[str, ...]


def shape_of(module: Callable[[], nn.Module]) -> dict[str, torch.Size]:
    """The shape of each parameter of a module, which is not really made."""
    with torch.device("meta"):
        return {name: parameter.shape for name, parameter in module().named_parameters()}


def filled(build: Callable[[], M], converted: Converted) -> tuple[M, list[str]]:
    """A module with the weights, and the names of its parameters that are new: as its constructor makes them, always alike.

    The module is a `UnimoModel`, or has one as `unimo` beside its head; it is returned ready to be used, without dropout.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        module = build()
    parameters = {name.removeprefix("unimo."): parameter for name, parameter in module.named_parameters()}
    for name, weight in converted.weights.items():
        parameters[name].data.copy_(weight)
    return module.eval(), [name for name in parameters if name not in converted.weights]


def model_section(**numbers: int) -> ModelSection:
    """The section of a model of these numbers; whatever depends on the size is that of the size with its width and depth."""
    same = (
        size for size, known in SIZES.items() if all(known[key] == numbers[key] for key in ("hidden_size", "layers", "heads"))
    )
    return ModelSection.model_validate({"size": next(same, "base"), **numbers})


def listed(names: Collection[str]) -> str:
    """Names in a message, with the count of those that are left out."""
    shown = ", ".join(list(names)[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more"
