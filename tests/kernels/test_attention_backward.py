"""The hand-written backward pass of packed attention against numerical derivatives, with dropout and over several blocks."""

import pytest
import torch
from torch import Tensor

from tests.kernels.test_attention import HEADS, WIDTH, cut
from unimo_ds.kernels import attention


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("block", [1, 60, 1 << 20])
def test_gradient_is_the_numerical_derivative(monkeypatch: pytest.MonkeyPatch, rate: float, block: int) -> None:
    monkeypatch.setattr(attention, "_BLOCK_ELEMENTS", block)
    lengths, prefixes = [5, 3, 1, 3, 4, 2], [5, 0, 1, 2, 0, 2]
    sequences = cut(lengths, prefixes)
    qkv = torch.randn(
        sum(lengths), 3, HEADS, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True
    )

    def attended(qkv_T3HE: Tensor) -> Tensor:
        torch.manual_seed(1)  # the same weights are dropped at every call
        return attention.packed_attention(qkv_T3HE, sequences, rate)

    assert torch.autograd.gradcheck(attended, (qkv,), fast_mode=True)
