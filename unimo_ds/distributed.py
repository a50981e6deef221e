"""Rank and world from whatever started us, and collectives through which gradients flow.

One start for every launcher: `deepspeed` and `torchrun` set RANK, WORLD_SIZE, LOCAL_RANK; plain `srun` sets SLURM_*;
with none of them the world has one rank. Collectives work without an initialised process group too (world of one).
"""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from unimo_ds.errors import ConfigError


@dataclass(frozen=True)
class Environment:
    """Where this process stands in the job."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int


def environment() -> Environment:
    """Rank and world of this process, from torchrun's, deepspeed's or srun's variables."""
    variables = os.environ
    if "RANK" in variables and "WORLD_SIZE" in variables:
        world = int(variables["WORLD_SIZE"])
        local_world = int(variables.get("LOCAL_WORLD_SIZE", variables.get("LOCAL_SIZE", world)))
        return Environment(int(variables["RANK"]), world, int(variables.get("LOCAL_RANK", 0)), local_world)
    if int(variables.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in variables:
        world = int(variables["SLURM_NTASKS"])
        nodes = int(variables.get("SLURM_NNODES", "1"))
        return Environment(int(variables["SLURM_PROCID"]), world, int(variables["SLURM_LOCALID"]), world // nodes)
    return Environment(0, 1, 0, 1)


def initialise(timeout_seconds: float) -> Environment:
    """Joins the process group (NCCL with a GPU, gloo without) and exports the variables that DeepSpeed reads.

    A world of one gets a group too, on a free port, so that one code path serves every size.

    Args:
        timeout_seconds: how long a collective may wait for a missing rank; torch's own default is half an hour.
    """
    here = environment()
    os.environ.update(
        RANK=str(here.rank),
        WORLD_SIZE=str(here.world_size),
        LOCAL_RANK=str(here.local_rank),
        LOCAL_SIZE=str(here.local_world_size),
    )
    if dist.is_initialized():
        return here
    if here.world_size == 1 and "MASTER_PORT" not in os.environ:
        init_method: dict[str, Any] = {"store": torch.distributed.HashStore()}  # type: ignore[attr-defined]
    else:
        init_method = {"init_method": "env://"}
    if torch.cuda.is_available():
        torch.cuda.set_device(here.local_rank)
    dist.init_process_group(
        "nccl" if torch.cuda.is_available() else "gloo",
        rank=here.rank,
        world_size=here.world_size,
        timeout=timedelta(seconds=timeout_seconds),
        **init_method,
    )
    return here


def device() -> torch.device:
    """The device of this rank."""
    return torch.device("cuda", environment().local_rank) if torch.cuda.is_available() else torch.device("cpu")


def world_size() -> int:
    """Number of ranks of the process group; 1 without one."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's number in the process group; 0 without one."""
    return dist.get_rank() if dist.is_initialized() else 0


def barrier() -> None:
    """Waits for all ranks."""
    if world_size() > 1:
        dist.barrier()


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of `values` of all ranks, without gradient."""
    total = values.detach().clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total


def own_shards(shards: int | None, shard: int | None, processes: int) -> tuple[int, list[int]]:
    """Of work that is cut into shards: how many there are in all, and the numbers of those that this process does.

    Args:
        shards, shard: number of calls that know nothing of each other (elements of a job array) and the number of this one;
            None: there is one. The ranks that a launcher starts divide the call's part among them.
        processes: shards of each rank, one for each of its local processes.

    Raises:
        ConfigError: the numbers do not fit each other.
    """
    if (shards is None) != (shard is None):
        raise ConfigError(f"--shards {shards} --shard {shard}: give both or neither")
    if processes < 1:
        raise ConfigError(f"--processes {processes}: wants 1 or more")
    calls, call = (1, 0) if shards is None or shard is None else (shards, shard)
    if not 0 <= call < calls:
        raise ConfigError(f"--shard {shard} of --shards {shards}: wants 0 <= shard < shards")
    here = environment()
    first = (call * here.world_size + here.rank) * processes
    return calls * here.world_size * processes, [first + number for number in range(processes)]


def shares(items: int, at_once: int) -> Iterator[list[int]]:
    """This rank's batches of the numbers below `items`, as many on every rank: the last ones may be empty.

    With rounds agreed in advance ranks can never wait for each other in vain.
    """
    starts = list(range(0, items, at_once))
    mine = starts[rank() :: world_size()]
    for number in range(-(-len(starts) // world_size())):
        yield list(range(mine[number], min(mine[number] + at_once, items))) if number < len(mine) else []


def leave(code: int) -> NoReturn:
    """Ends this process of a job with exit code `code`, without the teardown of the process group.

    gloo's threads sometimes abort it ("terminate called without an active exception") after all work is done, and the
    launcher then reports a finished run as failed. Files must be closed before; ranks that succeed leave together.
    """
    if code == 0:
        barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def from_rank_0(value: Any) -> Any:
    """Rank 0's `value` (any picklable object) on every rank."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=device())
    return box[0]


def gather_objects(value: Any) -> list[Any]:
    """Every rank's `value` (any picklable object), in rank order, on every rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def gather_rows(rows: Tensor) -> tuple[Tensor, list[int]]:
    """Concatenates the `rows` [n, ...] of all ranks along the first axis, in rank order, with gradient.

    Ranks may hold different numbers of rows, none included. The gradient of a rank's rows is the SUM of what every rank's
    loss says of them: with `Tensor.detach` in its place a loss looks right and its gradient is too small by the world size.

    Returns:
        The joined rows [sum of n, ...], and each rank's n.
    """
    if world_size() == 1:
        return rows, [rows.shape[0]]
    counts = _gather_counts(rows.shape[0], rows.device)
    joined: Tensor = _GatherRows.apply(rows, counts)
    return joined, counts


def _gather_counts(count: int, where: torch.device) -> list[int]:
    counts = torch.zeros(world_size(), dtype=torch.int64, device=where)
    counts[rank()] = count
    dist.all_reduce(counts)
    return [int(n) for n in counts.tolist()]


class _GatherRows(torch.autograd.Function):
    """All-gather of unequal row counts, padded to the largest; backward sums over ranks and keeps the own rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        padded = rows.new_zeros((max(counts), *rows.shape[1:]))
        padded[: rows.shape[0]] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].clone(memory_format=torch.contiguous_format)  # others of the graph may hold the same gradient
        # gloo has no reduce-scatter of unequal parts; the rows are few (one vector a pair), so the sum is kept simple.
        dist.all_reduce(total)
        start = sum(ctx.counts[: rank()])
        return total[start : start + ctx.counts[rank()]], None
