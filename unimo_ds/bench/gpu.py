"""The kernels on a GPU: first whether they are right, then how long they take beside what users would take otherwise.

Nothing that is wrong is timed. Times are medians of single calls between CUDA events, after a warm-up, with the L2 cache
overwritten before each call; `forward` is without gradients. Memory is the most that a call had allocated beyond what was there
before. `share of floor` is the least time by counts.py, for the GPUs that it knows, over the time taken.

A dry run does all of it on the CPU at small sizes, to show that this file works; its times mean nothing.

Shape suffixes: T positions, H heads, E head width, N rows and columns, D width, M targets, V vocabulary.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unimo_ds.bench import kernel_peers as peers
from unimo_ds.bench.gpu_checks import Check, check_all
from unimo_ds.errors import ConfigError
from unimo_ds.kernels import counts
from unimo_ds.kernels.attention import packed_attention
from unimo_ds.kernels.contrastive import contrastive_statistics
from unimo_ds.kernels.linear_cross_entropy import linear_cross_entropy

_WARM_UP = 3
_FLUSH_BYTES = 1 << 30  # more than any L2 cache; half a millisecond's work, while which the host gets the next launches ready
_AGREEMENT = 0.05  # of bf16 results of peers with ours, relative to the greatest


@dataclass(frozen=True)
class Sizes:
    """What is timed. `batches` are those of attention with the dropout rates they are timed at."""

    batches: dict[str, tuple[counts.Lengths, tuple[float, ...]]]
    contrastive: tuple[int, ...] = counts.CONTRASTIVE_SIZES
    targets: tuple[int, ...] = counts.TARGETS
    vocabulary: int = counts.VOCABULARY
    heads: int = counts.HEADS
    width: int = counts.VECTOR
    rounds: int = 20


def full_sizes() -> Sizes:
    """The batches of counts.py; the standard one with and without dropout."""
    return Sizes(
        {name: (make(), (0.0, 0.1) if number == 0 else (0.0,)) for number, (name, make) in enumerate(counts.BATCHES.items())}
    )


def dry_sizes() -> Sizes:
    """The same kinds, small enough for a CPU."""
    lengths_S = np.array([5, 20, 9, 70])
    batches = {
        "short": (counts.Lengths(lengths_S, lengths_S), (0.0, 0.1)),
        "short, mixed": (counts.Lengths(lengths_S, np.array([5, 4, 0, 70])), (0.0,)),
        "long": (counts.Lengths(np.full(2, 96), np.full(2, 96)), (0.0,)),
    }
    return Sizes(batches, contrastive=(64, 100), targets=(20,), vocabulary=301, heads=2, width=128, rounds=1)


class Timing(NamedTuple):
    """Median milliseconds of a call, and its peak memory in MB (None on a CPU)."""

    milliseconds: float
    peak_mb: float | None


class Clock:
    """Times calls on one device."""

    def __init__(self, device: torch.device, rounds: int) -> None:
        self._cuda, self._rounds = device.type == "cuda", rounds
        self._flushed = torch.empty(_FLUSH_BYTES if self._cuda else 0, dtype=torch.uint8, device=device)

    def time(self, call: Callable[[], object]) -> Timing:
        """Calls it some times."""
        for _ in range(_WARM_UP):
            call()
        peak = self._peak_mb(call)
        return Timing(statistics.median(self._milliseconds(call) for _ in range(self._rounds)), peak)

    def _peak_mb(self, call: Callable[[], object]) -> float | None:
        if not self._cuda:
            call()
            return None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6

    def _milliseconds(self, call: Callable[[], object]) -> float:
        self._flushed.zero_()
        if not self._cuda:
            started = time.perf_counter()
            call()
            return (time.perf_counter() - started) * 1e3
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()  # no wait before it: the host's own time would be counted, which a training step hides
        call()
        end.record()
        end.synchronize()
        elapsed: float = begin.elapsed_time(end)
        return elapsed


class Row(NamedTuple):
    """A line of the table: who did what in which time, or why not.

    Attributes:
        what, who: the work, and `ours` or the peer's name.
        timing: None where `reason` says why there is none.
        ratio: its time over ours.
        share: the least time over its time, for ours and where the least time is known.
        reason: why a peer was not timed.
    """

    what: str
    who: str
    timing: Timing | None
    ratio: float | None = None
    share: float | None = None
    reason: str = ""


class Contest(NamedTuple):
    """Ours against peers on one input.

    Attributes:
        inputs: leaves that `ours` and the peers read and whose gradients the backward pass makes.
        ours: gives the result.
        peers: make a call like `ours` when their turn comes, or raise.
        launches: of counts.py, of the forward pass and of both.
        random: results are not comparable, since there is dropout.
    """

    what: str
    inputs: tuple[Tensor, ...]
    ours: Callable[[], Tensor]
    peers: dict[str, Callable[[], Callable[[], Tensor]]]
    launches: tuple[Sequence[counts.Count], Sequence[counts.Count]]
    random: bool = False


class Report(NamedTuple):
    """All checks, and the rows of what was timed: nothing of an op that failed one."""

    device: str
    checks: list[Check]
    rows: list[Row]

    @property
    def failed(self) -> list[Check]:
        return [check for check in self.checks if not check.passed]

    @property
    def good(self) -> bool:
        """Everything of ours is right and was timed."""
        return not self.failed and all(row.timing for row in self.rows if row.who == "ours")


def measure(dry_run: bool) -> Report:
    """Checks, then times, on the first GPU, or on the CPU for a dry run.

    Raises:
        ConfigError: there is no GPU.
    """
    if not dry_run and not torch.cuda.is_available():
        raise ConfigError(
            "torch sees no GPU, and without one nothing can be timed: run it where torch.cuda.is_available() is true; "
            "--dry-run goes through all of it on the CPU, for no times that mean anything"
        )
    device, sizes = (torch.device("cpu"), dry_sizes()) if dry_run else (torch.device("cuda", 0), full_sizes())
    name = "CPU" if dry_run else torch.cuda.get_device_name(device)
    checks = []
    for check in check_all(device):
        _say(f"{'right' if check.passed else 'WRONG'}: {check}")
        checks.append(check)
    wrong = {check.op for check in checks if not check.passed}
    torch.manual_seed(0)
    clock, machine, rows = Clock(device, sizes.rounds), machine_of(name), []
    for op, contests in CONTESTS.items():
        for contest in contests(device, sizes) if op not in wrong else ():
            for row in contend(contest, clock, machine):
                _say(_line(row))
                rows.append(row)
    return Report(name, checks, rows)


def contend(contest: Contest, clock: Clock, machine: counts.Machine | None) -> Iterator[Row]:
    """Times ours, then each peer whose result agrees with ours; a peer that fails gets one row with the reason."""
    passes = ("forward", "forward and backward")
    try:
        ours = [clock.time(call) for call in _calls(contest.ours, contest.inputs)]
    except Exception as error:  # the other rows are wanted all the same
        yield Row(contest.what, "ours", None, reason=_reason(error))
        return
    for label, timing, launches in zip(passes, ours, contest.launches, strict=True):
        floor = sum(machine.floor(launch.needed).seconds for launch in launches) if machine else None
        share = floor and floor * 1e3 / timing.milliseconds
        yield Row(f"{contest.what}, {label}", "ours", timing, share=share)
    for who, make in contest.peers.items():
        try:
            call = make()
            if not contest.random:
                _must_agree(contest.ours, call)
            for label, run, own in zip(passes, _calls(call, contest.inputs), ours, strict=True):
                timing = clock.time(run)
                yield Row(f"{contest.what}, {label}", who, timing, timing.milliseconds / own.milliseconds)
        except Exception as error:  # of others' code, so of any kind
            yield Row(contest.what, who, None, reason=_reason(error))


def _calls(call: Callable[[], Tensor], inputs: tuple[Tensor, ...]) -> tuple[Callable[[], object], Callable[[], object]]:
    def without_gradients() -> object:
        with torch.no_grad():
            return call()

    def with_gradients() -> object:
        result = call()
        return torch.autograd.grad(result, inputs, torch.ones_like(result))

    return without_gradients, with_gradients


@torch.no_grad()
def _must_agree(ours: Callable[[], Tensor], theirs: Callable[[], Tensor]) -> None:
    own, other = ours().float(), theirs().float()
    difference = float((other - own).abs().max() / own.abs().max())
    if not difference <= _AGREEMENT:
        raise peers.RefusedError(f"its result differs from ours by {difference:.2g} of the greatest")


def _reason(error: Exception) -> str:
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return "out of memory"
    first = (str(error).strip().splitlines() or [""])[0][:120].replace("|", "/")  # a bar would end the table's cell
    return first if isinstance(error, peers.RefusedError) else f"{type(error).__name__}: {first}"


def _attention(device: torch.device, sizes: Sizes) -> Iterator[Contest]:
    for name, (lengths, rates) in sizes.batches.items():
        sequences = peers.sequences_of(lengths, device)
        shape = int(lengths.lengths_S.sum()), 3, sizes.heads, sizes.width // sizes.heads
        qkv_T3HE = torch.randn(shape, dtype=torch.bfloat16, device=device).requires_grad_()
        forward, _, _, backward = counts.attention_counts(lengths, *shape[2:])
        for rate in rates:
            yield Contest(
                f"attention, {name}" + (f", dropout {rate}" if rate else ""),
                (qkv_T3HE,),
                partial(packed_attention, qkv_T3HE, sequences, rate),
                {who: partial(_attending, make, lengths, rate, qkv_T3HE) for who, make in peers.ATTENTION.items()},
                ([forward], [forward, backward]),
                random=rate > 0,
            )


def _attending(make: peers.MakeAttend, lengths: counts.Lengths, rate: float, qkv_T3HE: Tensor) -> Callable[[], Tensor]:
    return partial(make(lengths, rate, qkv_T3HE.device), qkv_T3HE)


def _contrastive(device: torch.device, sizes: Sizes) -> Iterator[Contest]:
    for size in sizes.contrastive:
        x_ND, y_ND = (
            F.normalize(torch.randn(size, counts.VECTOR, device=device), dim=1).bfloat16().requires_grad_() for _ in range(2)
        )
        scale = torch.tensor([14.0], device=device).requires_grad_()
        inputs = (x_ND, y_ND, scale)
        groups_N = torch.arange(size, device=device)
        forward, backward = counts.contrastive_counts(size)
        yield Contest(
            f"contrastive, N = {size:,}",
            inputs,
            partial(_contrastive_loss, *inputs, groups_N),
            {who: partial(_losing, make, inputs) for who, make in peers.CONTRASTIVE.items()},
            ([forward], [forward, backward]),
        )


def _contrastive_loss(x_ND: Tensor, y_ND: Tensor, scale: Tensor, groups_N: Tensor) -> Tensor:
    row_all, row_positive, column_all, column_positive = contrastive_statistics(x_ND, y_ND, groups_N, groups_N, scale)
    return (row_all - row_positive + column_all - column_positive).mean() / 2


def _losing(make: peers.MakeLoss, inputs: tuple[Tensor, Tensor, Tensor]) -> Callable[[], Tensor]:
    return partial(make(inputs[0].device), *inputs)


def _cross_entropy(device: torch.device, sizes: Sizes) -> Iterator[Contest]:
    for targets in sizes.targets:
        shapes = (targets, counts.VECTOR), (sizes.vocabulary, counts.VECTOR), (sizes.vocabulary,)
        hidden, weight, bias = (torch.randn(shape, device=device).mul_(0.05).bfloat16().requires_grad_() for shape in shapes)
        given = (hidden, weight, bias, torch.randint(0, sizes.vocabulary, (targets,), device=device))
        _, whole = counts.cross_entropy_counts(targets, sizes.vocabulary)
        yield Contest(
            f"linear cross-entropy, {targets:,} targets",
            given[:3],
            partial(linear_cross_entropy, *given),
            {"logits stored whole": partial(_storing_logits, given)},
            ([], [whole]),
        )


def _storing_logits(given: tuple[Tensor, Tensor, Tensor, Tensor]) -> Callable[[], Tensor]:
    return partial(peers.whole_logits, *given)


CONTESTS = {"attention": _attention, "contrastive": _contrastive, "cross-entropy": _cross_entropy}


def machine_of(name: str) -> counts.Machine | None:
    """The GPU of counts.py with this device name; None for others, of which no floor is known."""
    known = {"A100-SXM4-80GB": counts.A100, "H100 80GB HBM3": counts.H100}  # PCIe cards and the 40 GB A100 are slower
    return next((machine for part, machine in known.items() if part in name), None)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _line(row: Row) -> str:
    if row.timing is None:
        return f"| {row.what} | {row.who} | not timed: {row.reason} | | | |"
    ratio, share = f"{row.ratio:.2f}" if row.ratio else "", f"{row.share:.0%}" if row.share else ""
    memory = "" if row.timing.peak_mb is None else f"{row.timing.peak_mb:,.0f}"
    return f"| {row.what} | {row.who} | {row.timing.milliseconds:.3f} | {ratio} | {share} | {memory} |"


def text(report: Report) -> str:
    """The report in Markdown."""
    passed = len(report.checks) - len(report.failed)
    lines = [f"{report.device}, torch {torch.__version__}: {passed} of {len(report.checks)} checks passed"]
    if report.device == "CPU":
        lines.append("**A dry run on the CPU at small sizes: the times below mean nothing.**")
    lines += [f"WRONG: {check}" for check in report.failed]
    lines += [f"{op}: not timed, since it is wrong" for op in dict.fromkeys(check.op for check in report.failed)]
    lines += [
        "",
        "| what | who | ms | over ours | share of floor | peak MB |",
        "|---|---|--:|--:|--:|--:|",
        *map(_line, report.rows),
    ]
    return "\n".join(lines)
