"""How fast ranks talk to each other, by the two collectives that ZeRO lives on."""

import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch.distributed import Store  # type: ignore[attr-defined]

from unimo_ds import distributed
from unimo_ds.distributed import Environment
from unimo_ds.planning.gpus import GPUS
from unimo_ds.planning.plan import LINK_SHARE, Cluster

_BYTES = {"cuda": 256 << 20, "cpu": 16 << 20}  # of a message: long enough that latency does not count, and done in a second
_ROUNDS = 5


def measure(store: Store, seconds: float) -> dict[str, float]:
    """Bytes a second that each rank sends and receives in an all-reduce and in an all-gather; every rank must call it.

    A rank must send 2 (W-1)/W of the message in an all-reduce over W ranks, and (W-1)/W in an all-gather, which makes the rates
    comparable with each other and with the link's.

    Args:
        store: through which the ranks have met.
        seconds: that a collective may take.
    """
    here = distributed.initialise(seconds, store)
    device = distributed.device()
    elements = _BYTES[device.type] // 4 // here.world_size * here.world_size
    message = torch.zeros(elements, device=device)
    part = torch.zeros(elements // here.world_size, device=device)
    share = (here.world_size - 1) / here.world_size
    return {
        "all-reduce": 2 * share * 4 * elements / _seconds(lambda: dist.all_reduce(message)),
        "all-gather": share * 4 * elements / _seconds(lambda: dist.all_gather_into_tensor(message, part)),
    }


def _seconds(collective: Callable[[], object]) -> float:
    """Of a round, after one that makes the connections."""
    collective()
    _wait_for_device()
    started = time.perf_counter()
    for _ in range(_ROUNDS):
        collective()
    _wait_for_device()
    return (time.perf_counter() - started) / _ROUNDS


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize(distributed.device())


def expected_rate(device: str, here: Environment) -> float | None:
    """Bytes a second that `unimo-ds plan` would expect between GPUs of this name; None where it does not know them."""
    for name, gpu in GPUS.items():
        if name.split("-")[0].upper() in device.upper():
            nodes = here.world_size // here.local_world_size
            return LINK_SHARE * Cluster(gpu, nodes, here.local_world_size).link
    return None
