"""The attention benchmark: both ways do the same work, and every case has a row."""

import numpy as np
import torch

from unimo_ds.bench import attention
from unimo_ds.bench.kernel_peers import padded_sdpa, sequences_of
from unimo_ds.kernels.attention import packed_attention
from unimo_ds.kernels.counts import Lengths

CPU = torch.device("cpu")


def test_the_other_way_gives_what_ours_gives() -> None:
    lengths = Lengths(np.array([5, 17, 9, 3]), np.array([5, 8, 0, 3]))
    qkv = torch.randn(34, 3, 2, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found, expected = padded_sdpa(lengths, 0.0, CPU)(qkv), packed_attention(qkv, sequences_of(lengths, CPU), 0.0)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    weights = torch.randn(34, 2, 8, generator=torch.Generator().manual_seed(1))
    gradients = [torch.autograd.grad(way, qkv, weights)[0] for way in (found, expected)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


def test_the_batches_are_what_their_names_say() -> None:
    batches = attention.batches()
    assert {name: len(lengths.lengths_S) for name, lengths in batches.items()} == {
        "256 x 37..100": 256,
        "the same, mixed": 256,
        "4 x 512": 4,
    }
    standard = batches["256 x 37..100"].lengths_S
    assert (standard.min(), standard.max()) == (37, 100)


def test_every_case_is_measured_and_shown() -> None:
    threads = torch.get_num_threads()
    rows = attention.measure_attention({"two short ones": Lengths(np.array([9, 14]), np.array([9, 0]))}, rounds=1)
    assert torch.get_num_threads() == threads
    cases = [(row["precision"], row["dropout"]) for row in rows]
    assert cases == [("fp32", 0.0), ("fp32", 0.1), ("bf16", 0.0), ("bf16", 0.1)]
    shown = attention.table(rows)
    assert shown.count("\n") == 1 + len(rows) and "| two short ones | bf16 | 0.1 |" in shown
