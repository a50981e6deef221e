"""Training steps side by side: rounds are interleaved, so that a noisy machine is noisy for all."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from unimo_ds.bench import workload as work
from unimo_ds.bench.contenders import MATRIX_FLOPS, shape
from unimo_ds.progress import track

PAIRS, DOCUMENTS = 28, 8  # about 2,000 positions each
AGAINST = ("engine", "visualbert", "roberta")


@dataclass
class Contender:
    """A process that makes steps on demand, and what it measured."""

    name: str
    kind: str
    count: int
    process: subprocess.Popen[str]
    seconds: list[float] = field(default_factory=list)
    peak_mb: float = 0.0

    def step(self, keep: bool) -> None:
        """Makes one step; `keep` is False for a warm-up."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith('{"seconds"'):  # libraries print too
                answer = json.loads(line)
                self.peak_mb = answer["peak_mb"]
                if keep:
                    self.seconds.append(answer["seconds"])
                return
        raise RuntimeError(f"the contender {self.name} ended; its error is above")

    @property
    def median(self) -> float:
        """Median processor seconds of a step."""
        return statistics.median(self.seconds)


@contextmanager
def _started(names: list[str], size: str, precision: str, kind: str, count: int) -> Iterator[list[Contender]]:
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONWARNINGS": "ignore"}
    contenders = []
    for name in names:
        words = [sys.executable, "-m", "unimo_ds.bench.contenders", name, size, precision, kind, str(count)]
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables)
        contenders.append(Contender(name, kind, count, process))
    try:
        yield contenders
    finally:
        for contender in contenders:
            contender.process.kill()
            contender.process.wait()


def measure(
    size: str,
    precision: str,
    rounds: int,
    against: Sequence[str] = AGAINST,
    pairs: int = PAIRS,
    documents: int = DOCUMENTS,
) -> list[dict[str, object]]:
    """Rows of the table for one size and precision: our step, and that of each of `against`.

    A large peer needs minutes a step, so from base size on peers have one round after their warm-up.
    """
    peer_rounds = 1 if size in ("base", "large") else rounds
    work_of = {
        "engine": ("pairs", pairs, rounds),
        "visualbert": ("pairs", pairs, peer_rounds),
        "roberta": ("documents", documents, peer_rounds),
    }
    groups = [(["matrix_product", "fastest_product", "ours", name], *work_of[name]) for name in against]
    rows: list[dict[str, object]] = []
    for names, kind, count, kept in groups:
        with _started(names, size, precision, kind, count) as contenders:
            for number in track(range(kept + 1), f"{size} {precision}: {', '.join(names)}", kept + 1, "rounds"):
                for contender in contenders:
                    contender.step(keep=number > 0)
        rows += _rows(contenders, size, precision, kind, count)
    return rows


def _rows(contenders: list[Contender], size: str, precision: str, kind: str, count: int) -> list[dict[str, object]]:
    limit, fastest, our = contenders[:3]
    load = work.pairs(count) if kind == "pairs" else work.documents(count)
    flops = work.useful_flops(work.packed(load), shape(size))
    rate = MATRIX_FLOPS / limit.median
    fastest_rate = max(rate, MATRIX_FLOPS / fastest.median)
    return [
        {
            "size": size,
            "precision": precision,
            "workload": f"{count} {kind}",
            "contender": contender.name,
            "tokens": load.tokens,
            "seconds": contender.median,
            "tokens_per_second": load.tokens / contender.median,
            "ours_over_it": contender.median / our.median,
            "share_of_matrix_rate": flops / contender.median / rate,
            "share_of_fastest_rate": flops / contender.median / fastest_rate,
            "peak_mb": contender.peak_mb,
            "useful_gflops": flops / 1e9,
            "matrix_gflops_per_second": rate / 1e9,
            "fastest_gflops_per_second": fastest_rate / 1e9,
        }
        for contender in contenders[2:]
    ]


def table(rows: list[dict[str, object]]) -> str:
    """The rows as Markdown."""
    head = (
        "| size | precision | workload | contender | tokens/s | ours / it | share of matrix rate | of the fastest | peak MB |\n"
        "|---|---|---|---|---|---|---|---|---|\n"
    )
    lines = [
        f"| {row['size']} | {row['precision']} | {row['workload']} | {row['contender']} | {row['tokens_per_second']:,.0f} "
        f"| {row['ours_over_it']:.2f} | {100 * _number(row['share_of_matrix_rate']):.0f} % "
        f"| {100 * _number(row['share_of_fastest_rate']):.0f} % | {row['peak_mb']:,.0f} |"
        for row in rows
    ]
    limits = "; ".join(
        f"{precision} {_range(rows, precision, 'matrix')} by torch, {_range(rows, precision, 'fastest')} by the fastest library"
        for precision in sorted({str(row["precision"]) for row in rows})
    )
    return head + "\n".join(lines) + f"\n\nMatrix products of 2,048 on one thread, in the same rounds, GFLOP/s: {limits}."


def _range(rows: list[dict[str, object]], precision: str, which: str) -> str:
    found = [_number(row[f"{which}_gflops_per_second"]) for row in rows if row["precision"] == precision]
    return " to ".join(f"{rate:.0f}" for rate in sorted({min(found), max(found)}))


def _number(value: object) -> float:
    assert isinstance(value, float)
    return value
