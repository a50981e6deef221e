"""The plain layers, with UNIMO's initial values: normal of deviation `model.initializer_range`, cut at two deviations, biases 0
(unimo-spec, 2.2).

The values are set inside the layers' own constructors: under ZeRO-3 a layer is partitioned as soon as it is made, and
whoever comes later finds it empty.
"""

from torch import Tensor, nn

from unimo_ds import nvidia_apex
from unimo_ds.config import ModelSection
from unimo_ds.kernels.dropout import dropout
from unimo_ds.kernels.linear import linear

EPSILON = 1e-5  # of every LayerNorm


def _normal_(tensor: Tensor, deviation: float) -> None:
    nn.init.trunc_normal_(tensor, std=deviation, a=-2 * deviation, b=2 * deviation)


class Linear(nn.Linear):
    """A linear layer with bias."""

    def __init__(self, inputs: int, outputs: int, model: ModelSection) -> None:
        self._deviation = model.initializer_range
        super().__init__(inputs, outputs)

    def reset_parameters(self) -> None:
        _normal_(self.weight, self._deviation)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class Embedding(nn.Embedding):
    """A table of vectors."""

    def __init__(self, entries: int, model: ModelSection) -> None:
        self._deviation = model.initializer_range
        super().__init__(entries, model.hidden_size)

    def reset_parameters(self) -> None:
        _normal_(self.weight, self._deviation)


class Dropout(nn.Module):
    """Dropout in training, nothing in evaluation."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self._rate = rate

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self._rate if self.training else 0.0)


def layer_norm(model: ModelSection) -> nn.Module:
    """A LayerNorm over the hidden width: torch's, or apex's by `model.layer_norm`."""
    kind = nvidia_apex.fused_layer_norm() if model.layer_norm == "apex" else nn.LayerNorm
    norm: nn.Module = kind(model.hidden_size, eps=EPSILON)
    return norm
