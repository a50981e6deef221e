"""The GPU bench on the CPU: its checks find what is wrong, nothing wrong is timed, and every path of the dry run works."""

import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from unimo_ds.bench import gpu, gpu_checks, kernel_peers
from unimo_ds.errors import ConfigError
from unimo_ds.kernels import counts
from unimo_ds.kernels.counts import Lengths

pytestmark = pytest.mark.long

_CPU = torch.device("cpu")


def test_the_dry_run_checks_and_times_everything() -> None:
    report = gpu.measure(dry_run=True)
    assert report.good and not report.failed
    assert {check.op for check in report.checks} == set(gpu.CONTESTS)
    timed = {(row.what.split(",")[0], row.who) for row in report.rows if row.timing is not None}
    assert timed == {
        ("attention", "ours"),
        ("attention", "SDPA, padded, mask"),
        ("attention", "FlexAttention"),
        ("contrastive", "ours"),
        ("contrastive", "whole matrix"),
        ("linear cross-entropy", "ours"),
        ("linear cross-entropy", "logits stored whole"),
    }
    reasons = {(row.what, row.who): row.reason for row in report.rows if row.timing is None}
    assert reasons["attention, short, mixed", "flash-attn"].startswith("flash-attn has no prefix mask")
    assert reasons["attention, short, dropout 0.1", "FlexAttention"] == "FlexAttention has no dropout of attention weights"
    assert reasons["contrastive, N = 64", "Inf-CL"] == "inf-cl runs on CUDA only"
    shown = gpu.text(report)
    assert "the times below mean nothing" in shown
    assert len({line.count("|") for line in shown.splitlines() if line.startswith("|")}) == 1


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"torch sees no GPU.*--dry-run"):
        gpu.measure(dry_run=False)


def test_the_tool_ends_with_one_line_without_a_gpu() -> None:
    tool = Path(__file__).parents[2] / "tools" / "bench_gpu.py"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run([sys.executable, tool], capture_output=True, text=True, env=environment)
    assert ended.returncode == 1 and ended.stdout == ""
    assert ended.stderr.startswith("bench_gpu: torch sees no GPU") and ended.stderr.count("\n") == 1


def test_what_is_wrong_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = [gpu_checks.Check("attention", "a test", math.nan, 1e-3), gpu_checks.Check("contrastive", "a test", 1.0, 0.5)]
    monkeypatch.setattr(gpu, "check_all", lambda device: iter(wrong))
    report = gpu.measure(dry_run=True)
    assert report.failed == wrong and not report.good
    assert {row.what.split(",")[0] for row in report.rows} == {"linear cross-entropy"}
    assert "attention: not timed, since it is wrong" in gpu.text(report)


def test_a_wrong_mask_a_wrong_dropout_and_an_error_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = gpu_checks.packed_attention

    def failed(attention: Any) -> set[str]:
        with monkeypatch.context() as patch:
            patch.setattr(gpu_checks, "packed_attention", attention)
            patch.setattr(gpu_checks, "TOLERANCES", {torch.float32: 1e-4})
            return {check.what for check in gpu_checks.check_all(_CPU) if not check.passed}

    def all_causal(qkv: Tensor, sequences: Any, rate: float) -> Tensor:
        return right(qkv, sequences._replace(prefix_lengths_S=torch.zeros_like(sequences.prefix_lengths_S)), rate)

    def one_mask_for_all_seeds(qkv: Tensor, sequences: Any, rate: float) -> Tensor:
        torch.manual_seed(0)
        return right(qkv, sequences, rate)

    def more_dropped(qkv: Tensor, sequences: Any, rate: float) -> Tensor:
        return right(qkv, sequences, 1.5 * rate)

    def no_such_kernel(qkv: Tensor, sequences: Any, rate: float) -> Tensor:
        raise RuntimeError("out of resource: shared memory")

    assert failed(right) == set()
    assert "float32, width 64, gradient of qkv" in failed(all_causal)
    assert failed(one_mask_for_all_seeds) == {"float32, dropout, two seeds, two masks"}
    assert "float32, dropout, share kept, standard deviations from 1 - rate" in failed(more_dropped)
    assert failed(no_such_kernel) == {"float32, RuntimeError: out of resource: shared memory"}


@pytest.mark.parametrize("name", ["SDPA, padded, mask", "FlexAttention"])
def test_peers_compute_the_same_attention(name: str) -> None:
    lengths = Lengths(np.array([3, 40, 17, 1]), np.array([3, 0, 9, 0]))
    qkv_T3HE = torch.randn(61, 3, 2, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = kernel_peers.ATTENTION[name](lengths, 0.0, _CPU)(qkv_T3HE)
    torch.testing.assert_close(found.double(), gpu_checks.attention_reference(qkv_T3HE.double(), lengths), atol=1e-5, rtol=1e-5)


def test_a_peer_with_another_result_is_not_timed() -> None:
    x = torch.ones(3, requires_grad=True)
    contest = gpu.Contest("a test", (x,), lambda: 2 * x, {"other": lambda: lambda: 3 * x}, ([], []))
    *_, row = gpu.contend(contest, gpu.Clock(_CPU, rounds=1), None)
    assert row.timing is None and row.reason == "its result differs from ours by 0.5 of the greatest"


def test_when_ours_fails_the_report_goes_on_and_is_not_good() -> None:
    def out_of_memory() -> Tensor:
        raise torch.cuda.OutOfMemoryError("tried to allocate")

    contest = gpu.Contest("a test", (), out_of_memory, {"other": lambda: out_of_memory}, ([], []))
    rows = list(gpu.contend(contest, gpu.Clock(_CPU, rounds=1), None))
    assert [(row.who, row.reason) for row in rows] == [("ours", "out of memory")]
    assert not gpu.Report("CPU", [], rows).good


def test_ratios_and_shares_of_the_floor() -> None:
    x = torch.ones(3, requires_grad=True)
    times = iter([2.0, 8.0, 3.0, 10.0])
    clock: Any = SimpleNamespace(time=lambda call: (call(), gpu.Timing(next(times), 1.0))[1])
    machine = counts.Machine("a test", flops=1e6, bandwidth=1e6)
    launch = counts.Count("a test", counts.Work(1e3, 0), counts.Work(0, 0))  # a thousandth of a second
    contest = gpu.Contest("a test", (x,), lambda: 2 * x, {"other": lambda: lambda: x + x}, ([launch], [launch, launch]))
    rows = list(gpu.contend(contest, clock, machine))
    assert [(row.what, row.who, row.ratio, row.share) for row in rows] == [
        ("a test, forward", "ours", None, 0.5),
        ("a test, forward and backward", "ours", None, 0.25),
        ("a test, forward", "other", 1.5, None),
        ("a test, forward and backward", "other", 1.25, None),
    ]


def test_the_clock_asks_cuda_for_time_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its calls of torch.cuda, with stand-ins: there is no GPU in the tests."""
    asked: list[str] = []
    event = SimpleNamespace(
        record=lambda: asked.append("record"), synchronize=lambda: asked.append("wait"), elapsed_time=lambda end: 4.0
    )
    stand_ins = {
        "Event": lambda enable_timing: event,
        "synchronize": lambda: None,
        "reset_peak_memory_stats": lambda: None,
        "memory_allocated": lambda: 1_000_000,
        "max_memory_allocated": lambda: 3_500_000,
    }
    clock = gpu.Clock(_CPU, rounds=2)
    monkeypatch.setattr(clock, "_cuda", True)
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    assert clock.time(lambda: asked.append("call")) == gpu.Timing(4.0, 2.5)
    assert asked[-8:] == ["record", "call", "record", "wait"] * 2


def test_floors_are_known_for_two_gpus_only() -> None:
    assert gpu.machine_of("NVIDIA H100 80GB HBM3") is counts.H100
    assert gpu.machine_of("NVIDIA A100-SXM4-80GB") is counts.A100
    assert gpu.machine_of("NVIDIA H100 PCIe") is None and gpu.machine_of("NVIDIA A100-SXM4-40GB") is None


def test_the_full_run_is_the_work_that_is_counted() -> None:
    sizes = gpu.full_sizes()
    assert list(sizes.batches) == list(counts.BATCHES)
    assert [rates for _, rates in sizes.batches.values()] == [(0.0, 0.1), (0.0,), (0.0,)]
    assert sizes.contrastive == (4096, 16384, 65536) and sizes.width // sizes.heads == counts.WIDTH
