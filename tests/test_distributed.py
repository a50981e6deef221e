"""Rank and world from every launcher, and what ranks say to each other."""

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
    assert distributed.largest_over_ranks(3, torch.device("cpu")) == 3
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    total = distributed.sum_over_ranks(rows)
    assert torch.equal(total, rows) and total is not rows and not total.requires_grad
    assert distributed.from_rank_0({"a": 1}) == {"a": 1} and distributed.gather_objects(5) == [5]


def speak_on_a_rank(rank: int, port: int, folder: str) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE="3", LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    distributed.initialise(timeout_seconds=60)
    own = torch.arange(8.0).view(2, 4) + 10 * rank
    passing = distributed.Passing([own.T, torch.tensor([rank])])  # also what is not laid out by rows
    again = distributed.Passing([own + 1])  # on its way at the same time
    found = {
        "gathered": distributed.gather_parts(own),
        "summed": distributed.sum_own_part(torch.arange(6.0).view(6, 1) * (rank + 1)),
        "largest": distributed.largest_over_ranks([3, 0, 5][rank], torch.device("cpu")),
        "passed": [*passing.arrived(), *again.arrived()],
        "agreed": (list(distributed.shares(3, 2)), distributed.from_rank_0(f"by {rank}"), distributed.gather_objects(rank)),
    }
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    os._exit(0)


@pytest.mark.life
def test_three_ranks_gather_sum_and_pass_on(tmp_path: Path) -> None:
    mp.spawn(speak_on_a_rank, (free_port(), str(tmp_path)), nprocs=3)
    own = [torch.arange(8.0).view(2, 4) + 10 * rank for rank in range(3)]
    for rank in range(3):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert torch.equal(found["gathered"], torch.cat(own)) and found["largest"] == 5
        assert torch.equal(found["summed"], 6 * torch.arange(6.0).view(6, 1)[2 * rank : 2 * rank + 2])  # 1 + 2 + 3 times
        before = (rank - 1) % 3
        for part, expected in zip(found["passed"], (own[before].T, torch.tensor([before]), own[before] + 1), strict=True):
            assert torch.equal(part, expected)
        shared = [[[0, 1]], [[2]], [[]]][rank]  # as many batches on every rank, the last one empty
        assert found["agreed"] == (shared, "by 0", [0, 1, 2])


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
        for way in ("gather", "ring"):
            images, texts, groups = (whole[shares[rank]].clone() for whole in cmcl_pairs())
            images.requires_grad_(), texts.requires_grad_()
            scale = torch.tensor([5.0], requires_grad=True)
            loss = matrix_loss(images, texts, groups, scale, way)
            loss.backward()
            total = [distributed.sum_over_ranks(value) for value in (loss, scale.grad)]
            found[name, way] = [*total, images.grad, texts.grad]
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
    loss = matrix_loss(images, texts, groups, scale, "auto")
    loss.backward()
    for rank, result in enumerate(results):
        assert len(result) == 2 * len(SHARES)
        for (name, _), (total, scale_gradient, image_gradient, text_gradient) in result.items():
            share = SHARES[name][rank]
            torch.testing.assert_close(total, loss.detach())
            torch.testing.assert_close(scale_gradient, scale.grad)
            torch.testing.assert_close(image_gradient, images.grad[share])
            torch.testing.assert_close(text_gradient, texts.grad[share])
