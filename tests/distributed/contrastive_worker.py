"""Run on each rank in `test_contrastive.py`: every case of the contrastive sums over ranks, both ways."""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from unimo_ds import distributed
from unimo_ds.kernels.contrastive_over_ranks import Way, statistics_over_ranks

WIDTH = 5
# Rows and columns of each rank; the fewest ranks that can hold a case run it.
CASES: dict[str, list[tuple[int, int]]] = {
    "uneven": [(4, 3), (2, 6)],
    "a rank without rows": [(0, 4), (5, 2)],
    "a rank without columns": [(4, 0), (3, 3)],
    "an empty rank": [(5, 5), (0, 0)],
    "nothing at all": [(0, 0), (0, 0)],
    "three, uneven": [(4, 3), (2, 6), (5, 1)],
    "three, the middle one empty": [(4, 3), (0, 0), (3, 4)],
}


def whole(case: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Vectors, groups (some ignored, some with several positives on different ranks) and scale of all ranks together."""
    generator = torch.Generator().manual_seed(5)
    rows, columns = (sum(parts) for parts in zip(*CASES[case], strict=True))
    x, y = (F.normalize(torch.randn(n, WIDTH, generator=generator), dim=1).to(dtype) for n in (rows, columns))
    x_groups, y_groups = (torch.randint(-1, 4, (n,), generator=generator) for n in (rows, columns))
    return x, y, x_groups, y_groups, torch.tensor([5.0])


def part_of(case: str, rank: int) -> tuple[slice, slice]:
    """The rows and the columns of a rank among those of all."""
    before, (rows, columns) = CASES[case][:rank], CASES[case][rank]
    first_row, first_column = sum(part[0] for part in before), sum(part[1] for part in before)
    return slice(first_row, first_row + rows), slice(first_column, first_column + columns)


def loss_of(statistics: tuple[Tensor, ...], rows: slice, columns: slice) -> Tensor:
    """A sum in which every entry has another weight, by its place among those of all ranks."""
    total = statistics[0].new_zeros(())
    for number, (part, own) in enumerate(zip(statistics, (rows, rows, columns, columns), strict=True)):
        weights = torch.linspace(-1, 2 + number, 20)[own]
        total = total + (torch.where(part.isfinite(), part, 0.0) * weights).sum()
    return total


def run(out: Path) -> None:
    here = distributed.initialise(timeout_seconds=60)
    torch.set_num_threads(1)
    found: dict[tuple[str, Way, torch.dtype], list[Tensor]] = {}
    for case in (case for case, ranks in CASES.items() if len(ranks) == here.world_size):
        rows, columns = part_of(case, here.rank)
        for dtype in (torch.float32, torch.bfloat16):
            x, y, x_groups, y_groups, scale = whole(case, dtype)
            ways: tuple[Way, ...] = ("gather", "ring", "auto")
            for way in ways:
                leaves = [leaf.clone().requires_grad_() for leaf in (x[rows], y[columns], scale)]
                sums = statistics_over_ranks(leaves[0], leaves[1], x_groups[rows], y_groups[columns], leaves[2], way)
                gradients = torch.autograd.grad(loss_of(sums, rows, columns), leaves)
                found[case, way, dtype] = [part.detach() for part in (*sums, *gradients)]
    torch.save(found, out / f"{here.rank}.pt")
    distributed.leave(0)


if __name__ == "__main__":
    run(Path(sys.argv[1]))
