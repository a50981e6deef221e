"""Array jobs of extraction and of rewriting: as one process alone; an element that is lost costs nothing but its work."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.cluster.slurm import Cluster
from tests.life.launchers import call
from tests.life.test_extraction_kill import inputs as pictures  # noqa: F401  (a fixture)
from tests.life.test_extraction_kill import records
from unimo_ds.data.store import decode_regions

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
EXTRACT, REWRITE = "tools/extract_features.py", "tools/rewrite_captions.py"
CAPTIONS = 2600  # three chunks of a thousand: two for the first element


def wait_until_there(folder: Path, pattern: str) -> None:
    deadline = time.monotonic() + 120
    while not any(folder.glob(pattern)):
        assert time.monotonic() < deadline, f"no {folder}/{pattern} after 2 minutes"
        time.sleep(0.01)


def send(number: signal.Signals, tool: str, out: Path, element: int) -> None:
    """Sends a signal to what an element of an array has started."""
    wanted = [sys.executable, tool, str(out), "--shard", str(element)]
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if words[0] == wanted[0] and set(wanted) <= set(words):  # srun has these words too, behind its own
            os.kill(int(folder.name), number)


def test_an_array_extracts_what_one_process_does(cluster: Cluster, pictures: Path) -> None:  # noqa: F811
    words = [str(pictures / "images"), "--detector", str(pictures / "tiny.safetensors"), "--batch", "3", "--out"]
    out = pictures / "array"
    call([sys.executable, EXTRACT, *words, str(pictures / "alone")])
    alone = records(pictures / "alone")
    batch = ["--time=15", "--array=0-1", "slurm/extract_features.sbatch", *words, str(out)]
    job = cluster.submit(pictures / "array-%a.out", *batch)
    wait_until_there(out, "shard-00001*/data.mdb")
    send(signal.SIGSTOP, EXTRACT, out, 1)  # so that it is not done before it is cancelled
    cluster.command("scancel", f"{job}_1")
    assert cluster.wait_for_array(job, 2, 200) == ["COMPLETED", "CANCELLED"], (pictures / "array-1.out").read_text()
    before = records(out)
    assert len(before) < len(alone)

    job = cluster.submit(pictures / "again-%a.out", *batch)
    assert cluster.wait_for_array(job, 2, 200) == ["COMPLETED", "COMPLETED"]
    found = records(out)
    assert before.items() <= found.items() and found.keys() == alone.keys()
    for key, value in alone.items():  # found in other batches
        ours, theirs = decode_regions(found[key]), decode_regions(value)
        np.testing.assert_allclose(ours.boxes_R4, theirs.boxes_R4, atol=1e-3)
        np.testing.assert_allclose(ours.features_RF.astype("f4"), theirs.features_RF.astype("f4"), atol=2e-3, rtol=2e-3)


def test_an_array_rewrites_what_one_process_does(cluster: Cluster, tmp_path: Path) -> None:
    colours, things, places = ("red", "blue", "green"), ("cup", "ball", "hat", "drum"), ("box", "chair")
    captions = [
        {"image": f"{n // 2}.jpg", "text": f"A {colours[n % 3]} {things[n % 4]} on a {places[n % 2]}, number {n}."}
        for n in range(CAPTIONS)
    ]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(caption) + "\n" for caption in captions))
    words = [str(tmp_path / "captions.jsonl"), "--translator", "none", "--negatives", "12", "--out"]
    alone, out = tmp_path / "alone", tmp_path / "array"
    call([sys.executable, REWRITE, *words, str(alone)])
    batch = ["--time=15", "--array=0-1", "--cpus-per-task=1", "slurm/rewrite.sbatch", *words, str(out)]
    job = cluster.submit(tmp_path / "array-%a.out", *batch)
    wait_until_there(out, "report-00000-of-00002.json")  # its first chunk is done
    send(signal.SIGKILL, REWRITE, out, 0)
    assert cluster.wait_for_array(job, 2, 200) == ["FAILED", "COMPLETED"], (tmp_path / "array-0.out").read_text()
    before = (out / "rewrites-00000-of-00002.jsonl.partial").read_text()

    job = cluster.submit(tmp_path / "again-%a.out", *batch)
    assert cluster.wait_for_array(job, 2, 200) == ["COMPLETED", "COMPLETED"]
    assert "nothing left to do" in (tmp_path / "again-1.out").read_text()
    assert before and (out / "rewrites-00000-of-00002.jsonl").read_text().startswith(before)
    assert rewritten(out) == rewritten(alone) and len(rewritten(out)) == CAPTIONS


def rewritten(out: Path) -> list[str]:
    return sorted(line for file in out.glob("rewrites-*.jsonl") for line in file.read_text().splitlines())
