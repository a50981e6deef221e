"""Compiles every kernel of the shipped table with no GPU, for the report that is kept beside them.

The host functions run on meta tensors with a `Recorder`, and what they would launch goes through the compiler. So the report is
of the very code that a GPU would run, with the same specialisation on types, divisibility and constants.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
import triton
from torch import Tensor

from unimo_ds.errors import ConfigError
from unimo_ds.kernels import attention_triton, contrastive_triton, linear_cross_entropy_triton
from unimo_ds.kernels.compile_triton import compile_noted
from unimo_ds.kernels.launch_triton import Noted, Recorder
from unimo_ds.kernels.static_report import Compiled, Report
from unimo_ds.kernels.table import WIDTHS
from unimo_ds.progress import track

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def compile_shipped(architectures: list[int], processes: int) -> Report:
    """Compiles every kernel of the shipped table for each architecture; names are like
    `sm_90 attention forward bf16 64 dropout`.

    Raises:
        ConfigError: TRITON_INTERPRET is set, with which Triton compiles nothing.
    """
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        raise ConfigError("TRITON_INTERPRET is set, so Triton interprets kernels and compiles none: unset it and start again")
    jobs = [
        (architecture, number, f"sm_{architecture} {name}")
        for architecture in architectures
        for number, (name, _) in enumerate(shipped(architecture))
    ]
    # Spawned, not forked: the compiler's threads do not survive a fork.
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        found = pool.map(_compile_number, [job[0] for job in jobs], [job[1] for job in jobs])
        names = [job[2] for job in jobs]
        kernels = dict(zip(names, track(found, "compiling", len(jobs), "kernels"), strict=True))
    return Report(triton.__version__, kernels)


def compile_one() -> str:
    """Compiles one kernel, to see whether compiler and assembler work on this machine; its name."""
    architecture = 80
    name, noted = next(shipped(architecture))
    compile_noted(noted, architecture)
    return f"sm_{architecture} {name}"


def _compile_number(architecture: int, number: int) -> Compiled:
    noted = list(shipped(architecture))[number][1]
    return compile_noted(noted, architecture)


def shipped(architecture: int) -> Iterator[tuple[str, Noted]]:
    """Every launch that the table of an architecture can lead to, with its name."""
    for type_name, dtype in _TYPES.items():
        for width in WIDTHS:
            for rate in (0.0, 0.1):
                setting = f"{type_name} {width}{' dropout' if rate else ''}"
                yield from _named("attention", _attention(architecture, dtype, width, rate), setting)
    for type_name, dtype in _TYPES.items():
        yield from _named("contrastive", _contrastive(architecture, dtype), type_name)
        yield from _named("cross-entropy", _cross_entropy(architecture, dtype), type_name)


def _named(op: str, recorder: Recorder, setting: str) -> Iterator[tuple[str, Noted]]:
    for noted in recorder.noted:
        yield f"{op} {noted.kernel.__name__.strip('_')} {setting}", noted


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _attention(architecture: int, dtype: torch.dtype, width: int, rate: float) -> Recorder:
    recorder = Recorder(architecture)
    qkv, tiles = _meta(2048, 3, 12, width, dtype=dtype), _meta(32, 4, dtype=torch.int32)
    seed = _meta(2, dtype=torch.int64) if rate else None
    attended, log_sums = attention_triton.forward(qkv, tiles, rate, seed, recorder)
    attention_triton.backward(attended, qkv, attended, log_sums, tiles, rate, seed, recorder)
    return recorder


def _contrastive(architecture: int, dtype: torch.dtype) -> Recorder:
    recorder = Recorder(architecture)
    x, y = _meta(1024, 768, dtype=dtype), _meta(1024, 768, dtype=dtype)
    groups, scale = _meta(1024, dtype=torch.int64), _meta(1)
    statistics = contrastive_triton.forward(x, y, groups, groups, scale, recorder)
    contrastive_triton.backward(x, y, groups, groups, scale, *statistics, *statistics, recorder)
    return recorder


def _cross_entropy(architecture: int, dtype: torch.dtype) -> Recorder:
    recorder = Recorder(architecture)
    logits = _meta(512, 50304, dtype=dtype)[:, :50265]  # with the padding that linear_cross_entropy.py gives its rows
    labels = _meta(512, dtype=torch.int64)
    linear_cross_entropy_triton.losses_and_errors_(logits, _meta(50265, dtype=dtype), labels, recorder)
    return recorder
