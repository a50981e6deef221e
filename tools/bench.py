"""Measures training steps and region reads against named peers and against the machine's matrix-product rate.

    python tools/bench.py all                                   the tables of docs/performance.md, about half an hour
    python tools/bench.py training --sizes small --rounds 3
    python tools/bench.py profile --sizes base            where a step through the engine spends its time
    python tools/bench.py attention                       against padded attention with a mask
    python tools/bench.py contrastive --huge              against open_clip's loss; 65,536 pairs too, which takes minutes
    python tools/bench.py retrieval                       scores of image-text pairs, against VisualBERT, padded
    python tools/bench.py generation                      captions by beam search, against BLIP's decoder
    python tools/bench.py regions                         reading the store, for docs/performance.md
    python tools/bench.py extraction                      finding regions, for docs/performance.md
    python tools/bench.py rewriting                       precision, for docs/rewriting.md; fails below 98 %
    python tools/bench.py candidates                      what the candidates of CMCL cost, for docs/cmcl.md
    python tools/bench.py plan                            what two ranks hold and send, beside the plan, for docs/plan.md
    python tools/bench.py neighbours                      100,000 pairs, images and sentences, for docs/neighbours.md

Processor time of one thread, rounds interleaved, so ratios hold on a noisy machine.
"""

import argparse
import json
import sys
from pathlib import Path

from unimo_ds.bench import (
    attention,
    candidates,
    contrastive,
    extraction,
    generation,
    neighbours,
    plan,
    regions,
    retrieval,
    rewriting,
    step_profile,
    training,
)
from unimo_ds.errors import UnimoError

WHAT = (
    "training",
    "profile",
    "attention",
    "contrastive",
    "generation",
    "retrieval",
    "regions",
    "extraction",
    "rewriting",
    "candidates",
    "neighbours",
    "plan",
    "all",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=WHAT)
    parser.add_argument("--sizes", nargs="+", default=["small", "base"], choices=["tiny", "small", "base", "large"])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--against", nargs="+", default=training.AGAINST, choices=training.AGAINST)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--huge", action="store_true", help="contrastive: 65,536 pairs too, ours alone")
    parser.add_argument("--out", type=Path, help="also write the rows as JSON")
    parser.add_argument("--rewrites", type=Path, default=Path("data/demo/rewrites/train"), help="rewritten captions")
    parser.add_argument(
        "--world", default="data/demo/world", help="the drawn world; `none`: rewrites of other images, not judged"
    )
    parser.add_argument("--captions", type=int, default=1500, help="captions whose rewrites are judged, a seeded sample")
    parser.add_argument("--sample", type=int, default=0, help="rewrites to print as a Markdown table")
    parser.add_argument("--recipe", type=Path, default=Path("recipes/demo.yaml"), help="the run whose candidates are counted")
    given = parser.parse_args()
    if given.what == "rewriting":
        try:
            world = None if given.world == "none" else Path(given.world)
            judged = rewriting.judge_rewrites(given.rewrites, world, given.captions)
        except UnimoError as error:
            sys.exit(f"bench: {error}")
        print(rewriting.report(judged, given.sample))
        sys.exit(world is not None and not rewriting.good_enough(judged))
    if given.what == "candidates":
        print(candidates.candidates_table(candidates.measure_candidates(given.recipe)))
        return
    if given.what == "plan":
        print(plan.table(given.precisions))
        return
    rows: list[dict[str, object]] = []
    if given.what in ("regions", "all"):
        rows = regions.measure_reads()
        print(regions.table(rows) + "\n")
    if given.what in ("extraction", "all"):
        steps = extraction.measure_extraction(given.rounds)
        print(extraction.table(steps, extraction.measure_world()) + "\n")
        rows += steps
    if given.what in ("attention", "all"):
        kernels = attention.measure_attention(attention.batches(), given.rounds)
        print(attention.table(kernels) + "\n", flush=True)
        rows += kernels
    if given.what in ("contrastive", "all"):
        kernels = contrastive.measure_contrastive(rounds=given.rounds, huge=given.huge)
        print(contrastive.table(kernels) + "\n", flush=True)
        rows += kernels
    if given.what in ("generation", "all"):
        texts = generation.measure_generation(given.sizes, given.precisions, given.rounds)
        print(generation.table(texts) + "\n", flush=True)
        rows += texts
    if given.what in ("retrieval", "all"):
        pairs = retrieval.measure_retrieval(given.sizes, given.precisions, given.rounds)
        print(retrieval.table(pairs) + "\n", flush=True)
        rows += pairs
    if given.what == "profile":
        for size in given.sizes:
            for precision in given.precisions:
                rows += step_profile.measure_profile(size, precision)
        print(step_profile.table(rows) + "\n")
    if given.what == "neighbours":
        rows = neighbours.measure_search()
        print(neighbours.table(rows) + "\n")
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
