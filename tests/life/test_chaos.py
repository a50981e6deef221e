"""The short form of the campaign of docs/chaos.md: one fault of each of the kinds that matter most."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.life import small_run
from unimo_ds.chaos.faults import Kind

pytestmark = pytest.mark.life
KINDS = [Kind.FULL, Kind.FLIPPED, Kind.ONE_RANK, Kind.LAUNCHER, Kind.IN_SAVE, Kind.TERM]  # of the seed


def test_a_run_goes_on_after_every_fault_as_if_nothing_had_happened(tmp_path: Path) -> None:
    words = ["--kills", str(len(KINDS)), "--minutes", "8", "--seed", "0", "--out", str(tmp_path / "chaos")]
    command = [sys.executable, str(small_run.ROOT / "tools/chaos.py"), *words]
    done = subprocess.run(command, env=small_run.environment(), capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "chaos/rows.json").read_text())
    assert [row["kind"] for row in rows] == [kind.value for kind in KINDS]
    assert all(row["problems"] == [] for row in rows), done.stdout
    assert all(row["said"] or row["when"].startswith("not possible here: ") for row in rows), done.stdout
    assert (tmp_path / "chaos/curve.svg").exists()
