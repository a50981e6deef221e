"""Converts published region features to a regions store, and a store to files for other tools.

    python tools/convert_regions.py trainval_36.tsv --out STORE --key-format 'COCO_train2014_{:0>12}.jpg'
    python tools/convert_regions.py flickr30k-features/bbox100/train/* --out STORE            several files, one store
    python tools/convert_regions.py coco_train2014/feat_th0.2_max100_min10 --out STORE --sizes instances_train2014.json
    python tools/convert_regions.py STORE --to hdf5 --out regions.hdf5                        or tsv, lxmert

docs/region_files.md lists the layouts. Run it again to continue after an interruption; rows that could not be used are listed
in STORE/failures-*.jsonl. It exits with 3 if an image was lost to them, with 1 if nothing could be done.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

from unimo_ds.errors import UnimoError
from unimo_ds.region_conversion import ConversionPlan, ConversionResult, convert_regions, export_regions
from unimo_ds.region_layouts import LAYOUTS
from unimo_ds.region_layouts.writing import WRITERS

_LOST = 3  # exit code
_READING = (  # options that say what a published file does not
    "layout",
    "detector",
    "sizes",
    "nominal_canvas",
    "kept_classes",
    "class_names",
    "attribute_names",
    "key_format",
)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "sources", nargs="+", type=Path, metavar="SOURCE", help="published files or folders; with --to, a store"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the regions store; with --to, the file")
    parser.add_argument("--to", choices=WRITERS, help="write a store to a file of bottom-up attention, of LXMERT, or HDF5")
    parser.add_argument("--layout", choices=LAYOUTS, metavar="NAME", help=f"default: told from the file; {', '.join(LAYOUTS)}")
    parser.add_argument("--detector", help="what made the features, for the store's identity (default: what usually does)")
    parser.add_argument("--sizes", type=Path, help="image sizes: COCO's JSON, {key: [width, height]}, a table, or the images")
    parser.add_argument(
        "--nominal-canvas", action="store_true", help="relative boxes of images of unknown size: count it as 1024x1024"
    )
    parser.add_argument("--kept-classes", type=int, default=16, help="how many of a whole class distribution (default: 16)")
    parser.add_argument("--class-names", type=Path, help="the detector's classes, one a line, without background")
    parser.add_argument("--attribute-names", type=Path, help='the detector\'s attributes, one a line, without "none"')
    parser.add_argument("--key-format", default="{}", help="makes the store's key of the file's: 'COCO_val2014_{:0>12}.jpg'")
    chosen = parser.parse_args()
    if chosen.to and len(chosen.sources) > 1:
        parser.error("--to writes one store; merge several with `unimo-ds regions merge` first")
    if chosen.to:
        given = [name for name in _READING if getattr(chosen, name) != parser.get_default(name)]
        if given:
            parser.error(f"--to writes a store as it is; it takes no --{given[0].replace('_', '-')}")
    return chosen


def describe(result: ConversionResult, out: Path) -> str:
    lines = [
        f"{out}: converted {result.converted:,} images of {', '.join(result.layouts)}; {result.present:,} were there before"
    ]
    if result.failures:
        lines.append(
            f"{len(result.failures):,} rows were stepped over, see {out}/failures-*.jsonl; {len(result.lost):,} images lost:"
        )
        reasons = Counter(failure.reason.split(";")[0] for failure in result.failures)
        lines += [f"  {count:,} x {reason}" for reason, count in reasons.most_common(5)]
    return "\n".join(lines)


def main() -> None:
    chosen = parse_arguments()
    try:
        if chosen.to:
            print(f"{chosen.out}: wrote {export_regions(chosen.sources[0], chosen.to, chosen.out):,} images")
            return
        del chosen.to
        result = convert_regions(ConversionPlan(**vars(chosen)))
    except UnimoError as error:
        sys.exit(f"convert_regions: {error}")
    print(describe(result, chosen.out))
    if result.lost:
        sys.exit(_LOST)


if __name__ == "__main__":
    main()
