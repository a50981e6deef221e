"""How ranks meet for an examination: through a store at rank 0, where none can make another wait for longer than agreed.

A process group would hang, all ranks alike, where one is missing. Here each rank puts down what it knows under its number, and
rank 0 takes what has come when the time is up.
"""

import json
import os
import platform
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from unimo_ds.distributed import Environment
from unimo_ds.errors import ConfigError, UnimoError

T = TypeVar("T")

_LOOK_EVERY = 0.05  # seconds; to wait for one key after the other would be said aloud by torch, for each rank that is missing


class Meeting:
    """One rank's place in the meeting, which it has joined when this is made.

    Args:
        here: which rank this is.
        seconds: to wait for rank 0, which holds the store.

    Raises:
        ConfigError: it is not said where the ranks meet.
        UnimoError: rank 0 did not answer there, or cannot listen.
    """

    def __init__(self, here: Environment, seconds: float) -> None:
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
        if missing:
            raise ConfigError(
                f"{' and '.join(missing)} not set, so {here.world_size} ranks cannot meet; torchrun and deepspeed set "
                "them, and for srun slurm/common.sh does"
            )
        self._here = here
        self._address, self._port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self._store = self.connect("doctor", seconds)
        self.post("joined", platform.node())

    def connect(self, name: str, seconds: float) -> Store:
        """A connection to the store, with keys of its own; one can be used by one thread only.

        Raises:
            UnimoError: as the class.
        """
        # torchrun's agent holds a store already.
        holds = self._here.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        try:
            store = TCPStore(
                self._address,
                self._port,
                is_master=holds,
                timeout=timedelta(seconds=seconds),
                wait_for_workers=False,
                multi_tenant=True,
            )
        except dist.DistError as error:
            if holds:
                raise UnimoError(
                    f"rank 0 cannot listen at {self._address}:{self._port} ({_last_line(error)}): another job may have the "
                    "port; set MASTER_PORT to a free one"
                ) from error
            raise self._lost(seconds) from error
        return PrefixStore(name, store)

    def _lost(self, seconds: float) -> UnimoError:
        return UnimoError(
            f"rank {self._here.rank} ({platform.node()}): rank 0 gave no answer at {self._address}:{self._port} within "
            f"{seconds:.0f} s: look whether it was started there, whether it has ended, and whether a firewall is between"
        )

    def post(self, topic: str, value: Any) -> None:
        """Puts down what this rank knows.

        Raises:
            UnimoError: rank 0 has gone.
        """
        try:
            self._store.set(f"{topic}/{self._here.rank}", json.dumps(value))
        except dist.DistError as error:
            raise UnimoError(
                f"rank {self._here.rank} ({platform.node()}): rank 0 at {self._address}:{self._port} has left the meeting; its "
                "page says why"
            ) from error

    def gather(self, topic: str, ranks: Collection[int], deadline: float) -> dict[int, Any]:
        """What has been put down by `ranks` until `deadline` (of `time.monotonic`), in the order of ranks."""
        found: dict[int, Any] = {}
        while True:
            for rank in ranks:
                if rank not in found and self._store.check([f"{topic}/{rank}"]):
                    found[rank] = json.loads(self._store.get(f"{topic}/{rank}"))
            if len(found) == len(ranks) or time.monotonic() >= deadline:
                return dict(sorted(found.items()))
            time.sleep(_LOOK_EVERY)

    def announce(self, topic: str, value: Any) -> None:
        """Tells all ranks; rank 0 does."""
        self._store.set(topic, json.dumps(value))

    def hear(self, topic: str, seconds: float) -> Any:
        """What rank 0 announces.

        Raises:
            UnimoError: nothing within so many seconds.
        """
        try:
            self._store.wait([topic], timedelta(seconds=seconds))
            return json.loads(self._store.get(topic))
        except dist.DistError as error:
            raise self._lost(seconds) from error

    def leave(self, ranks: Collection[int], seconds: float) -> None:
        """Ends the meeting; rank 0, whose process holds the store, waits until `ranks` have left."""
        with suppress(dist.DistError):  # rank 0 may have gone already
            self._store.set(f"left/{self._here.rank}", json.dumps(True))
            # Whoever ends right after a word to the store may take it along; an answer to a question says that it is there.
            self._store.check(["code"])
        if self._here.rank == 0:
            self.gather("left", ranks, time.monotonic() + seconds)


def within(seconds: float, work: Callable[[], T]) -> T:
    """What `work` gives; it runs in a thread, which nobody waits for any longer.

    Raises:
        concurrent.futures.TimeoutError: it takes longer.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future.result(seconds)


def _last_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[-1]
