"""The contrastive sums of two and three ranks equal those of one, values and gradients, by gather and by ring."""

from pathlib import Path

import pytest
import torch

from tests.distributed.contrastive_worker import CASES, loss_of, part_of, whole
from tests.life.small_run import run_ranks
from unimo_ds import distributed
from unimo_ds.kernels import contrastive_over_ranks
from unimo_ds.kernels.contrastive import contrastive_statistics
from unimo_ds.kernels.contrastive_over_ranks import choose_way, statistics_over_ranks


@pytest.mark.life
@pytest.mark.parametrize("ranks", [2, 3])
def test_both_ways_equal_the_joined_matrix(tmp_path: Path, ranks: int) -> None:
    run_ranks("tests.distributed.contrastive_worker", ranks, str(tmp_path))
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(ranks)]
    cases = [case for case, parts in CASES.items() if len(parts) == ranks]
    assert len(found[0]) == len(cases) * 3 * 2
    for case, way, dtype in found[0]:
        x, y, x_groups, y_groups, scale = whole(case, dtype)
        leaves = [leaf.requires_grad_() for leaf in (x, y, scale)]
        sums = contrastive_statistics(x, y, x_groups, y_groups, scale)
        gradients = torch.autograd.grad(loss_of(sums, slice(0, len(x)), slice(0, len(y))), leaves)
        tolerance = 1e-6 if dtype == torch.float32 else 2e-2
        dscale = torch.zeros(1)
        for rank in range(ranks):
            rows, columns = part_of(case, rank)
            expected = [
                sums[0][rows],
                sums[1][rows],
                sums[2][columns],
                sums[3][columns],
                gradients[0][rows],
                gradients[1][columns],
            ]
            *parts, share = found[rank][case, way, dtype]
            dscale += share
            for number, (part, joined) in enumerate(zip(parts, expected, strict=True)):
                torch.testing.assert_close(
                    part,
                    joined.detach(),
                    atol=tolerance * (5 if number > 3 else 1),  # gradients are a scale of 5 larger
                    rtol=tolerance,
                    msg=lambda text, where=(case, way, dtype, rank, number): f"{where}: {text}",
                )
        torch.testing.assert_close(dscale, gradients[2], atol=20 * tolerance, rtol=tolerance)


def test_one_rank_has_the_plain_op() -> None:
    x, y, x_groups, y_groups, scale = whole("uneven", torch.float32)
    for part, plain in zip(
        statistics_over_ranks(x, y, x_groups, y_groups, scale, "ring"),
        contrastive_statistics(x, y, x_groups, y_groups, scale),
        strict=True,
    ):
        assert torch.equal(part, plain)


def test_auto_gathers_until_a_gibibyte(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bf16 with 1024 numbers a vector and its gradients have 8 KiB: 256 columns of 512 ranks are a gibibyte."""
    monkeypatch.setattr(distributed, "world_size", lambda: 512)
    y = torch.empty(0, 1024, dtype=torch.bfloat16)
    assert [choose_way(length, y) for length in (1, 256, 257)] == ["gather", "gather", "ring"]
    assert choose_way(256, y.float()) == "ring", "float32 vectors are larger"
    monkeypatch.setattr(contrastive_over_ranks, "MOST_GATHERED_BYTES", 1)
    assert choose_way(1, y) == "ring"
