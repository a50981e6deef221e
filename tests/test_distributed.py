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
from unimo_ds.objectives.contrastive import matrix_loss

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
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_SIZE": "4"}, Environment(5, 8, 1, 4)),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "5"}, Environment(5, 8, 5, 8)),
        ({"SLURM_NTASKS": "8", "SLURM_NNODES": "2"}, Environment(0, 1, 0, 1)),
        ({"RANK": "3"}, Environment(0, 1, 0, 1)),
    ],
    ids=[
        "alone",
        "torchrun",
        "srun",
        "one task",
        "a launcher inside a job",
        "deepspeed",
        "one node",
        "a batch script before srun",
        "a rank of no world",
    ],
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
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    total = distributed.sum_over_ranks(rows)
    assert torch.equal(total, rows) and total is not rows and not total.requires_grad
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
    agreed = list(distributed.shares(3, 2)), distributed.from_rank_0(f"said by {rank}"), distributed.gather_objects(rank)
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
        shared = [[[0, 1]], [[2]], [[]]][rank]  # as many batches on every rank, the last one empty
        assert result["agreed"] == (shared, "said by 0", [0, 1, 2])
        start += ROWS[rank]


def cmcl_pairs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images, captions and groups of 7 pairs, among them pairs of one image on different ranks."""
    torch.manual_seed(9)
    images, texts = torch.nn.functional.normalize(torch.randn(2, 7, 4), dim=-1)
    return images, texts, torch.tensor([0, 1, 1, 2, 0, 3, 2])


SHARES = {"unequal": [slice(0, 4), slice(4, 7)], "one rank without pairs": [slice(0, 7), slice(7, 7)]}


def matrix_on_a_rank(rank: int, port: int, folder: str) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    distributed.initialise(timeout_seconds=60)
    torch.set_num_threads(1)
    found = {}
    for name, shares in SHARES.items():
        images, texts, groups = (whole[shares[rank]].clone() for whole in cmcl_pairs())
        images.requires_grad_(), texts.requires_grad_()
        scale = torch.tensor([5.0], requires_grad=True)
        loss = matrix_loss(images, texts, groups, scale)
        loss.backward()
        total = [distributed.sum_over_ranks(value) for value in (loss, scale.grad)]
        found[name] = [*total, images.grad, texts.grad]
    empty = torch.zeros(0, 3, requires_grad=True)
    joined, counts = distributed.gather_rows(empty)
    joined.sum().backward()
    found["empty"] = [joined.detach(), torch.tensor(counts), empty.grad]
    # A gradient may be shared with other users of the graph: the sum over ranks must not be written into it.
    rows, other = torch.ones(2, 3, requires_grad=True), torch.ones(4, 3, requires_grad=True)
    user = other * 2  # made before the gather, so its backward runs after
    ((distributed.gather_rows(rows)[0] + user) * (rank + 1.0)).sum().backward()
    found["shared"] = [rows.grad, other.grad]
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    os._exit(0)


@pytest.mark.life
def test_the_similarity_matrix_of_two_ranks_is_that_of_one(tmp_path: Path) -> None:
    mp.spawn(matrix_on_a_rank, (free_port(), str(tmp_path)), nprocs=2)
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    images, texts, groups = cmcl_pairs()
    images.requires_grad_(), texts.requires_grad_()
    scale = torch.tensor([5.0], requires_grad=True)
    loss = matrix_loss(images, texts, groups, scale)
    loss.backward()
    for name, shares in SHARES.items():
        for rank, share in enumerate(shares):
            total, scale_gradient, image_gradient, text_gradient = results[rank][name]
            torch.testing.assert_close(total, loss.detach())
            torch.testing.assert_close(scale_gradient, scale.grad)
            torch.testing.assert_close(image_gradient, images.grad[share])
            torch.testing.assert_close(text_gradient, texts.grad[share])
    for rank, result in enumerate(results):
        joined, counts, gradient = result["empty"]
        assert joined.shape == gradient.shape == (0, 3) and counts.tolist() == [0, 0]
        of_rows, of_other = result["shared"]
        assert torch.equal(of_rows, torch.full((2, 3), 3.0)), "the sum of what both ranks say"
        assert torch.equal(of_other, torch.full((4, 3), 2.0 * (rank + 1))), "what this rank says, not the sum"
