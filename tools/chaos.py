"""Strikes a small run of pre-training with faults, one after the other, and shows that it is the run that it would have been.

    python tools/chaos.py --kills 50 --minutes 25 --seed 0

Kills (-9) of a rank, of all, of the launcher; TERM; kills while saving and while loading; full disks; checkpoints that are cut
or have a flipped bit. In between the run goes on by another launcher, on another number of ranks and at another ZeRO stage. At
the end each sample must have been seen exactly once in each epoch, the loss must be that of a run that was left alone, and what
had to be done again must have the same bits where as many ranks did it at the same stage. Exit code 1 if anything is not so.

Linux; the full disks need root or user namespaces (`unshare --mount`).
"""

import argparse
import json
import signal
import sys
from dataclasses import asdict
from pathlib import Path

from unimo_ds.chaos.campaign import Campaign
from unimo_ds.chaos.disk import enter_own_mounts
from unimo_ds.chaos.report import draw, summary, table
from unimo_ds.errors import UnimoError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="number of faults, every kind in turn")
    parser.add_argument("--minutes", type=float, default=25, help="after which no more faults begin")
    parser.add_argument("--seed", type=int, default=0, help="of faults, moments, ranks and stages")
    parser.add_argument("--out", type=Path, default=Path("runs/chaos"), help="table, curve and logs; emptied first")
    given = parser.parse_args()
    enter_own_mounts()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # in order: nothing that was started stays behind
    try:
        outcome = Campaign(given.out.resolve(), given.kills, given.minutes, given.seed).go()
    except UnimoError as error:
        sys.exit(f"chaos: {error}")
    shown = f"{table(outcome.rows)}\n\n{summary(outcome)}\n"
    (given.out / "rows.json").write_text(json.dumps([asdict(row) for row in outcome.rows], indent=1), encoding="utf-8")
    (given.out / "table.md").write_text(shown, encoding="utf-8")
    (given.out / "curve.svg").write_text(draw(outcome), encoding="utf-8")
    print(shown)
    sys.exit(0 if outcome.right else 1)


if __name__ == "__main__":
    main()
