"""Rank and world from every launcher, and a gather through which gradients flow."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.life.small_run import free_port
from unimo_ds import distributed
from unimo_ds.distributed import Environment, environment

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "SLURM_NTASKS", "SLURM_PROCID")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, Environment(0, 1, 0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, Environment(3, 8, 1, 2)),
        (
            {"SLURM_NTASKS": "16", "SLURM_PROCID": "9", "SLURM_LOCALID": "1", "SLURM_NNODES": "2"},
            Environment(9, 16, 1, 8),
        ),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, Environment(0, 1, 0, 1)),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
            Environment(0, 2, 0, 2),
        ),
    ],
    ids=["alone", "torchrun", "srun", "one task", "a launcher inside a job"],
)
def test_environment(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: Environment) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert environment() == expected


def test_a_world_of_one_needs_no_group() -> None:
    rows = torch.randn(3, 2, requires_grad=True)
    joined, counts = distributed.gather_rows(rows)
    assert joined is rows and counts == [3]
    assert distributed.any_rank(True) and not distributed.any_rank(False)
    assert distributed.from_rank_0({"a": 1}) == {"a": 1} and distributed.gather_objects(5) == [5]


ROWS = {0: 3, 1: 0, 2: 2}


def gather_on_a_rank(rank: int, port: int, folder: str) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE="3", LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    distributed.initialise(timeout_seconds=60)
    torch.manual_seed(rank)
    rows = torch.randn(ROWS[rank], 4, requires_grad=True)
    joined, counts = distributed.gather_rows(rows)
    weight = torch.arange(20.0).view(5, 4) * (rank + 1)  # every rank's loss says something else of all rows
    (joined * weight).sum().backward()
    agreed = distributed.any_rank(rank == 2), distributed.from_rank_0(f"said by {rank}"), distributed.gather_objects(rank)
    torch.save({"joined": joined.detach(), "counts": counts, "gradient": rows.grad, "agreed": agreed}, f"{folder}/{rank}.pt")
    dist.barrier()
    os._exit(0)


@pytest.mark.life
def test_rows_of_unequal_ranks_are_joined_and_gradients_are_summed(tmp_path: Path) -> None:
    mp.spawn(gather_on_a_rank, (free_port(), str(tmp_path)), nprocs=3)
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(3)]
    parts = []
    for rank, count in ROWS.items():
        torch.manual_seed(rank)
        parts.append(torch.randn(count, 4))
    start = 0
    for rank, result in enumerate(results):
        assert torch.equal(result["joined"], torch.cat(parts)) and result["counts"] == [3, 0, 2]
        expected = 6 * torch.arange(20.0).view(5, 4)[start : start + ROWS[rank]]  # 1 + 2 + 3 times
        torch.testing.assert_close(result["gradient"], expected)
        assert result["agreed"] == (True, "said by 0", [0, 1, 2])
        start += ROWS[rank]
