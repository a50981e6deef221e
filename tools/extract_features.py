"""Finds the regions of images and writes them to a regions store.

    python tools/extract_features.py IMAGES --out STORE                     a folder; its keys are paths below it
    python tools/extract_features.py instances.json --images-root IMAGES --out STORE      as COCO or Karpathy list them
    python tools/extract_features.py 'shards/*.tar' --out STORE             tars, not unpacked; keys are their members
    python tools/extract_features.py IMAGES --out STORE --processes 8       local processes, on CPUs or on as many GPUs
    torchrun --nproc_per_node 8 tools/extract_features.py IMAGES --out STORE       also `deepspeed`, `srun`, and
    sbatch slurm/extract_features.sbatch IMAGES --out STORE                 an array of jobs

Every process writes a shard of its own. Run it again, by any number of processes, to continue after an interruption or to add
images; images that could not be read are listed in STORE/failures-*.jsonl. See docs/regions.md.
"""

import argparse
import sys
from pathlib import Path

from unimo_ds import golden as reference
from unimo_ds.errors import UnimoError
from unimo_ds.extraction import ExtractionPlan, ExtractionResult, extract_features
from unimo_ds.failures import count_kinds
from unimo_ds.vision.conventions import CONVENTIONS
from unimo_ds.vision.torchvision_detector import ARCHITECTURES


def parse_arguments() -> tuple[ExtractionPlan, Path | None]:
    """What to extract, and what to compare it with."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "images", type=Path, nargs="+", help="folder of images or tars, JSON list (COCO, Karpathy, plain), or tars"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the regions store")
    parser.add_argument("--images-root", type=Path, help="with a JSON file: the folder its names are relative to")
    parser.add_argument("--detector", default="world", help="packaged detector, detector file, or published weights")
    parser.add_argument("--conventions", choices=[*CONVENTIONS, *ARCHITECTURES], help="with published weights: whose settings")
    parser.add_argument("--class-names", type=Path, help="with published weights: text file, a class a line")
    parser.add_argument("--attribute-names", type=Path, help="with published weights: text file, an attribute a line")
    parser.add_argument("--min-boxes", type=int, help="fewest regions an image gets (default: the detector's)")
    parser.add_argument("--max-boxes", type=int, help="most regions an image gets (default: the detector's)")
    parser.add_argument("--threshold", type=float, help="least probability of a region (default: the detector's)")
    parser.add_argument("--batch", type=int, default=8, help="images of one size that run together (default: 8)")
    parser.add_argument("--workers", type=int, default=1, help="decoding processes of each process (default: 1)")
    parser.add_argument("--processes", type=int, default=1, help="local processes to start, one thread each (default: 1)")
    parser.add_argument("--shards", type=int, help="calls in all, where several share the work (a job array)")
    parser.add_argument("--shard", type=int, help="number of this one, from 0")
    parser.add_argument("--verify", type=Path, metavar="GOLDEN", help="compare the finished store with these features")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # `deepspeed` appends it; the environment has it too
    chosen = vars(parser.parse_args())
    chosen["images"] = chosen["images"][0] if len(chosen["images"]) == 1 else tuple(chosen["images"])
    names = {"min_boxes": "min_boxes", "max_boxes": "max_boxes", "threshold": "score_threshold"}
    selection = {key: value for name, key in names.items() if (value := chosen.pop(name)) is not None}
    golden: Path | None = chosen.pop("verify")
    del chosen["local_rank"]
    return ExtractionPlan(**chosen, selection=selection), golden


def describe(result: ExtractionResult, out: Path) -> str:
    """What was done, how many failed and why."""
    done = f"extracted {result.extracted:,} of" if result.extracted else "nothing left to do for"
    state = "finished" if result.finished else "other shards are not done yet"
    text = f"{out}: {done} {result.images:,} images ({state})"
    if result.failures:
        text += f"; {len(result.failures):,} failed: {count_kinds(result.failures)}; see {out}/failures-*.jsonl"
    return text


def verify(store: Path, golden: Path) -> bool:
    """Compares the store with reference features, and says what differs."""
    report = reference.verify(store, golden)
    print(report.text)
    return bool(report.same)


def main() -> None:
    plan, golden = parse_arguments()
    try:
        if golden is not None:
            reference.check_reference(golden)
        result = extract_features(plan)
        print(describe(result, plan.out))
        if golden is not None and result.speaks and not verify(plan.out, golden):
            sys.exit(1)
    except UnimoError as error:
        sys.exit(f"extract_features: {error}")
    except KeyboardInterrupt:
        sys.exit(f"extract_features: stopped; the same command continues {plan.out}")


if __name__ == "__main__":
    main()
