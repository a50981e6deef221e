"""The attention benchmark: both ways do the same work, and every case has a row."""

import torch

from unimo_ds.bench import attention
from unimo_ds.kernels.attention import packed_attention


def test_the_other_way_gives_what_ours_gives() -> None:
    sequences = attention.sequences_of((5, 17, 9, 3))
    qkv = torch.randn(34, 3, 2, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found, expected = attention.padded_sdpa(sequences, 0.0)(qkv), packed_attention(qkv, sequences, 0.0)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    weights = torch.randn(34, 2, 8, generator=torch.Generator().manual_seed(1))
    gradients = [torch.autograd.grad(way, qkv, weights)[0] for way in (found, expected)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


def test_the_standard_batch_is_what_the_documents_say() -> None:
    lengths = attention.STANDARD
    assert len(lengths) == 32 and min(lengths) >= 37 and max(lengths) <= 100
    sequences = attention.sequences_of(lengths)
    kinds = (sequences.prefix_lengths_S == sequences.cu_seqlens_S1.diff()).sum(), (sequences.prefix_lengths_S == 0).sum()
    assert [int(kind) for kind in kinds] == [11, 10], "a third each is bidirectional and causal"


def test_every_case_is_measured_and_shown() -> None:
    threads = torch.get_num_threads()
    rows = attention.measure_attention(rounds=1, batches={"two short ones": (9, 14)})
    assert torch.get_num_threads() == threads
    cases = [(row["precision"], row["dropout"]) for row in rows]
    assert cases == [("fp32", 0.0), ("fp32", 0.1), ("bf16", 0.0), ("bf16", 0.1)]
    shown = attention.table(rows)
    assert shown.count("\n") == 1 + len(rows) and "| two short ones | bf16 | 0.1 |" in shown
