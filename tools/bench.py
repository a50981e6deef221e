"""Measures training steps and region reads against named peers and against the machine's matrix-product rate.

    python tools/bench.py all                                   the tables of docs/performance.md, about half an hour
    python tools/bench.py training --sizes small --rounds 3
    python tools/bench.py regions

Processor time of one thread, rounds interleaved, so ratios hold on a noisy machine.
"""

import argparse
import json
from pathlib import Path

from unimo_ds.bench import regions, training


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["training", "regions", "all"])
    parser.add_argument("--sizes", nargs="+", default=["small", "base"], choices=["tiny", "small", "base", "large"])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--against", nargs="+", default=training.AGAINST, choices=training.AGAINST)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="also write the rows as JSON")
    given = parser.parse_args()
    rows: list[dict[str, object]] = []
    if given.what in ("regions", "all"):
        rows = regions.measure_reads()
        print(regions.table(rows) + "\n")
    if given.what in ("training", "all"):
        for size in given.sizes:
            for precision in given.precisions:
                steps = training.measure(size, precision, given.rounds, given.against)
                print(training.table(steps) + "\n", flush=True)
                rows += steps
    if given.out is not None:
        given.out.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
