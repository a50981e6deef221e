"""One thread, so that processor time is the time of the work."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def processor_seconds(work: Callable[[], object]) -> float:
    """What a piece of work takes."""
    started = time.process_time()
    work()
    return time.process_time() - started


@contextmanager
def one_thread() -> Iterator[None]:
    """torch works on one thread inside."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
