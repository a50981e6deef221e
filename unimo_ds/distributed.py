"""Rank and world from whatever started us, and what ranks say to each other.

One start for every launcher: `deepspeed` and `torchrun` set RANK, WORLD_SIZE, LOCAL_RANK; plain `srun` sets SLURM_*;
with none of them the world has one rank. Collectives work without an initialised process group too (world of one).
"""

import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import HashStore, Store  # type: ignore[attr-defined]

from unimo_ds.errors import ConfigError

T = TypeVar("T")


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


def initialise(timeout_seconds: float, store: Store | None = None) -> Environment:
    """Joins the process group (NCCL with a GPU, gloo without) and exports the variables that DeepSpeed reads.

    A world of one gets a group too, on a free port, so that one code path serves every size.

    Args:
        timeout_seconds: how long a collective may wait for a missing rank; torch's own default is half an hour.
        store: through which the ranks have met already.
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
    # Of newer names of collectives: DeepSpeed and we use those that all versions have.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    if store is None and here.world_size == 1 and "MASTER_PORT" not in os.environ:
        store = HashStore()
    if store is not None:
        init_method: dict[str, Any] = {"store": store}
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


def place_of(rank: int) -> str:
    """Where a rank that has left no word should be: launchers fill one node after the other."""
    nodes = os.environ.get("SLURM_JOB_NODELIST")
    return f"rank {rank} on node {rank // environment().local_world_size}{f' of {nodes}' if nodes else ''}"


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
        # NCCL would take the current device, which is of the thread that set it.
        dist.barrier(device_ids=[environment().local_rank] if torch.cuda.is_available() else None)


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
    batches = [list(range(start, min(start + at_once, items))) for start in range(0, items, at_once)]
    return dealt(batches, [])


def dealt(batches: Sequence[T], nothing: T) -> Iterator[T]:
    """This rank's batches, as many on every rank: in place of the last ones there may be `nothing`."""
    mine = batches[rank() :: world_size()]
    for number in range(-(-len(batches) // world_size())):
        yield mine[number] if number < len(mine) else nothing


def in_order(parts: Sequence[tuple[Iterable[int], Iterable[Any]]]) -> list[Any]:
    """What was found for each item, by item number, on every rank; `parts` are the batches of `shares` with their numbers."""
    gathered = [part for rank in gather_objects(list(parts)) for part in rank]
    numbers = np.concatenate([np.zeros(0, np.int64), *(np.asarray(part, np.int64) for part, _ in gathered)])
    found = [each for _, part in gathered for each in part]
    return [found[place] for place in np.argsort(numbers)]


def over_ranks(items: int, at_once: int, work: Callable[[list[int]], Iterable[Any]]) -> list[Any]:
    """What `work` finds of each of `items` numbers, in order and on every rank; it is given this rank's batches (`shares`)."""
    return in_order([(numbers, work(numbers)) for numbers in shares(items, at_once)])


def leave(code: int) -> NoReturn:
    """Ends this process of a job with exit code `code`, without the teardown of the process group.

    gloo's threads sometimes abort it ("terminate called without an active exception") after all work is done, and the
    launcher then reports a finished run as failed. Files must be closed before; ranks that succeed leave together.
    """
    if code == 0:
        barrier()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # a log on a full disk does not make a failure of what is done
            stream.flush()
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


def largest_over_ranks(count: int, where: torch.device) -> int:
    """The largest `count` of all ranks."""
    if world_size() == 1:
        return count
    largest = torch.tensor(count, device=where)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


def gather_parts(part: Tensor) -> Tensor:
    """Concatenates the `part` [n, ...] of all ranks along the first axis, in rank order, without gradient.

    n must be the same on every rank: pad before.
    """
    joined = part.new_empty((world_size() * len(part), *part.shape[1:]))
    dist.all_gather_into_tensor(joined, part.contiguous())
    return joined


def sum_own_part(parts: Tensor) -> Tensor:
    """This rank's part of the sum of `parts` [ranks x n, ...] over ranks, [n, ...], without gradient."""
    own = parts.new_empty((len(parts) // world_size(), *parts.shape[1:]))
    dist.reduce_scatter_tensor(own, parts.contiguous())
    return own


class Passing:
    """Tensors on their way to the next rank, while those of the rank before are on their way here.

    Work may go on meanwhile; the tensors must not be changed before `arrived`. Every rank must pass tensors of the same shapes
    in the same order.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._leaving = [tensor.contiguous() for tensor in tensors]
        self._coming = [torch.empty_like(tensor) for tensor in self._leaving]
        following, before = (rank() + 1) % world_size(), (rank() - 1) % world_size()
        operations = [dist.P2POp(dist.isend, tensor, following) for tensor in self._leaving]
        operations += [dist.P2POp(dist.irecv, tensor, before) for tensor in self._coming]
        self._works = dist.batch_isend_irecv(operations)

    def arrived(self) -> list[Tensor]:
        """Waits, and gives what the rank before passed on."""
        for work in self._works:
            work.wait()
        return self._coming
