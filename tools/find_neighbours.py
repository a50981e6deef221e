"""Finds, for each image-text pair, images that show the same objects and sentences that speak of the same things.

    python tools/find_neighbours.py captions.json --regions STORE --images STORE STORE --texts corpus.txt --out FOLDER

Run again with the same input and settings it does nothing. docs/neighbours.md says what is computed and what it costs.
"""

import argparse
import sys
from pathlib import Path

from unimo_ds.augment.nearest import INDEXES
from unimo_ds.errors import UnimoError
from unimo_ds.neighbour_search import NeighbourPlan, describe, find_neighbours


def parse_arguments() -> NeighbourPlan:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path, help="captions with their images: COCO captions (.json) or JSON Lines (.jsonl)")
    parser.add_argument("--regions", type=Path, required=True, help="regions store of the pairs' images")
    parser.add_argument("--images", type=Path, nargs="+", required=True, help="regions stores of images that can be found")
    parser.add_argument(
        "--texts", type=Path, nargs="+", required=True, help="texts whose sentences can be found: .txt .jsonl .json"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--images-per-pair", type=int, default=100, help="most images for a pair (default: 100)")
    parser.add_argument("--texts-per-pair", type=int, default=100, help="most sentences for a pair (default: 100)")
    parser.add_argument("--image-score-above", type=float, default=0.5, help="only images of a higher cosine (default: 0.5)")
    parser.add_argument("--text-score-above", type=float, default=0.0, help="only sentences of a higher score (default: 0)")
    parser.add_argument(
        "--index", choices=INDEXES, default="exact", help="faiss: approximate, needs faiss-cpu (default: exact)"
    )
    parser.add_argument(
        "--text-vectors", type=Path, help="compare sentence vectors of this sentence-transformers model, not words"
    )
    parser.add_argument("--detector", default="world", help="detector that names the classes in the summary (default: world)")
    chosen = vars(parser.parse_args())
    return NeighbourPlan(**{**chosen, "images": tuple(chosen["images"]), "texts": tuple(chosen["texts"])})


def main() -> None:
    try:
        print(describe(find_neighbours(parse_arguments())))
    except UnimoError as error:
        sys.exit(f"find_neighbours: {error}")


if __name__ == "__main__":
    main()
