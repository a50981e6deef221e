"""Checks the CUDA kernels on this machine's GPU, then times them against what is installed of their peers.

    python tools/bench_gpu.py                      a few minutes; progress on stderr, one Markdown table on stdout
    python tools/bench_gpu.py --dry-run            the same on the CPU at small sizes; its times mean nothing

Peers: torch's SDPA and FlexAttention, flash-attn, Inf-CL (`pip install inf-cl`), whole matrices and logits. One that is missing
or refuses is named with the reason. What is wrong is not timed, and it exits with 1. docs/kernels.md explains.
"""

import argparse
import sys

from unimo_ds.bench import gpu
from unimo_ds.errors import UnimoError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, small; its times mean nothing")
    try:
        report = gpu.measure(parser.parse_args().dry_run)
    except UnimoError as error:
        sys.exit(f"bench_gpu: {error}")
    print(gpu.text(report))
    sys.exit(0 if report.good else 1)


if __name__ == "__main__":
    main()
