"""Rewrites captions: true ones and hard false ones, for cross-modal contrastive learning.

    python tools/rewrite_captions.py captions_train2017.json --out REWRITES --processes 8        COCO captions
    python tools/rewrite_captions.py pairs.jsonl --out REWRITES --translator marian --marian OPUS-MT-EN-DE OPUS-MT-DE-EN
    python tools/rewrite_captions.py pairs.jsonl --out REWRITES --translator none                no positives
    srun python tools/rewrite_captions.py pairs.jsonl --out REWRITES                             each task writes a shard

Run it again to continue after an interruption. A run's corpus then names the folder in `rewrites`.
"""

import argparse
import sys
from pathlib import Path
from typing import get_args

from unimo_ds.errors import UnimoError
from unimo_ds.rewriting import RewritePlan, RewriteResult, TranslatorName, rewrite_captions


def parse_arguments() -> RewritePlan:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("captions", type=Path, help="COCO captions (.json), or JSON Lines with `text` and `image` (.jsonl)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the rewritten captions")
    parser.add_argument(
        "--translator", choices=get_args(TranslatorName), default="apertium", help="who makes the positives (default: apertium)"
    )
    parser.add_argument(
        "--marian", type=Path, nargs=2, metavar=("THERE", "BACK"), help="folders of two MarianMT models: from English, and back"
    )
    parser.add_argument(
        "--sentence-model", type=Path, help="sentence-transformers model that filters positives (default: packaged)"
    )
    parser.add_argument("--positives", type=int, default=3, help="most positives a caption (default: 3)")
    parser.add_argument("--negatives", type=int, default=100, help="most negatives a caption (default: 100)")
    parser.add_argument("--minimum-similarity", type=float, default=0.8, help="least cosine of a positive (default: 0.8)")
    parser.add_argument("--seed", type=int, default=1, help="of the choice of negatives (default: 1)")
    parser.add_argument("--shards", type=int, help="processes in all (default: from torchrun's or srun's environment)")
    parser.add_argument("--shard", type=int, help="number of this one, from 0")
    parser.add_argument("--processes", type=int, default=1, help="local processes to start, one thread and one shard each")
    chosen = vars(parser.parse_args())
    chosen["marian"] = chosen["marian"] and tuple(chosen["marian"])
    return RewritePlan(**chosen)


def describe(result: RewriteResult, out: Path) -> str:
    state = "finished" if result.finished else "other shards are not done yet"
    if not result.written:
        return f"{result.table()}\n{out}: nothing left to do for {result.captions:,} captions ({state})"
    rejected = f"; {result.rejected:,} records could not be used" if result.rejected else ""
    return f"{result.table()}\n{out}: rewrote {result.written:,} of {result.captions:,} captions ({state}){rejected}"


def main() -> None:
    plan = parse_arguments()
    try:
        print(describe(rewrite_captions(plan), plan.out))
    except UnimoError as error:
        sys.exit(f"rewrite_captions: {error}")


if __name__ == "__main__":
    main()
