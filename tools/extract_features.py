"""Finds the regions of images and writes them to a regions store.

    python tools/extract_features.py IMAGES --out STORE                     a folder; its keys are paths below it
    python tools/extract_features.py instances.json --images-root IMAGES --out STORE      as COCO lists them
    srun python tools/extract_features.py IMAGES --out STORE                each task writes a shard of its own

Run it again to continue after an interruption; images that could not be read are listed in STORE/failures-*.jsonl.
"""

import argparse
import sys
from pathlib import Path

from unimo_ds.errors import UnimoError
from unimo_ds.extraction import ExtractionPlan, ExtractionResult, extract_features


def parse_arguments() -> ExtractionPlan:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="folder of images, or a COCO JSON file or JSON list of file names")
    parser.add_argument("--out", type=Path, required=True, help="folder of the regions store")
    parser.add_argument("--images-root", type=Path, help="with a JSON file: the folder its names are relative to")
    parser.add_argument("--detector", default="world", help="packaged detector or detector file (default: world)")
    parser.add_argument("--min-boxes", type=int, help="fewest regions an image gets (default: the detector's)")
    parser.add_argument("--max-boxes", type=int, help="most regions an image gets (default: the detector's)")
    parser.add_argument("--threshold", type=float, help="least probability of a region (default: the detector's)")
    parser.add_argument("--batch", type=int, default=8, help="images of one size that run together")
    parser.add_argument("--workers", type=int, default=1, help="decoding processes")
    parser.add_argument("--shards", type=int, help="processes in all (default: from torchrun's or srun's environment)")
    parser.add_argument("--shard", type=int, help="number of this one, from 0")
    parser.add_argument("--processes", type=int, default=1, help="local processes to start, one thread each")
    chosen = vars(parser.parse_args())
    names = {"min_boxes": "min_boxes", "max_boxes": "max_boxes", "threshold": "score_threshold"}
    selection = {key: value for name, key in names.items() if (value := chosen.pop(name)) is not None}
    return ExtractionPlan(**chosen, selection=selection)


def describe(result: ExtractionResult, out: Path) -> str:
    state = "finished" if result.finished else "other shards are not done yet"
    if not result.extracted and not result.failures:
        return f"{out}: nothing left to do for {result.images} images ({state})"
    failed = f"; {len(result.failures)} could not be read, see {out}/failures-*.jsonl" if result.failures else ""
    return f"{out}: extracted {result.extracted} of {result.images} images ({state}){failed}"


def main() -> None:
    plan = parse_arguments()
    try:
        print(describe(extract_features(plan), plan.out))
    except UnimoError as error:
        sys.exit(f"extract_features: {error}")


if __name__ == "__main__":
    main()
