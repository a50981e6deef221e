"""Layers with UNIMO's initial values: normal of deviation 0.02 cut at two deviations, biases 0 (unimo-spec, 2.2).

The values are set inside the layers' own constructors: under ZeRO-3 a layer is partitioned as soon as it is made, and
whoever comes later finds it empty.
"""

from torch import Tensor, nn

DEVIATION = 0.02
EPSILON = 1e-5  # of every LayerNorm


def _normal_(tensor: Tensor) -> None:
    nn.init.trunc_normal_(tensor, std=DEVIATION, a=-2 * DEVIATION, b=2 * DEVIATION)


class Linear(nn.Linear):
    """A linear layer with bias."""

    def reset_parameters(self) -> None:
        _normal_(self.weight)
        nn.init.zeros_(self.bias)


class Embedding(nn.Embedding):
    """A table of vectors."""

    def reset_parameters(self) -> None:
        _normal_(self.weight)


def layer_norm(width: int) -> nn.LayerNorm:
    """A LayerNorm over the hidden width."""
    return nn.LayerNorm(width, eps=EPSILON)
