"""Draws the demo world: pictures, captions, questions, hypotheses and texts, none of which needs a download."""

import argparse
from pathlib import Path

from unimo_ds.demo.world import WorldConfig, write_world


def main() -> None:
    defaults = WorldConfig()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--train", type=int, default=defaults.train, help="captioned pictures to train on")
    parser.add_argument("--val", type=int, default=defaults.val, help="captioned pictures to evaluate on")
    parser.add_argument("--alone", type=int, default=defaults.alone, help="pictures without captions")
    parser.add_argument("--paragraphs", type=int, default=defaults.paragraphs, help="paragraphs of text without pictures")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="another seed draws another world")
    parser.add_argument("--workers", type=int, default=2, help="drawing processes")
    given = parser.parse_args()
    config = WorldConfig(given.train, given.val, given.alone, given.paragraphs, given.seed)
    write_world(config, given.out, given.workers)


if __name__ == "__main__":
    main()
