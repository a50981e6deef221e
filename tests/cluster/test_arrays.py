"""Array jobs of extraction and of rewriting: as one process alone; an element that is lost costs nothing but its work."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.cluster.slurm import Cluster
from tests.life.small_run import ROOT
from tests.life.test_extraction_kill import inputs as pictures  # noqa: F401  (a fixture)
from tests.life.test_extraction_kill import records
from tests.life.test_launchers import call

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


def wait_until_there(folder: Path, pattern: str) -> None:
    deadline = time.monotonic() + 120
    while not any(folder.glob(pattern)):
        assert time.monotonic() < deadline, f"no {folder}/{pattern} after 2 minutes"
        time.sleep(0.01)


def processes_with(words: list[str]) -> list[int]:
    """The processes that were started with all these words among their own."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            own = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if all(word.encode() in own for word in words):
            found.append(int(folder.name))
    return found


def test_an_array_extracts_what_one_process_does(cluster: Cluster, pictures: Path) -> None:  # noqa: F811
    words = [str(pictures / "images"), "--detector", str(pictures / "tiny.safetensors"), "--batch", "3", "--out"]
    alone, out = pictures / "alone", pictures / "array"
    call([sys.executable, "tools/extract_features.py", *words, str(alone)])
    batch = ["--time=15", "slurm/extract_features.sbatch", *words, str(out)]
    job = cluster.submit(pictures / "array-%a.out", "--array=0-1", *batch)
    wait_until_there(out, "shard-00001*/data.mdb")
    cluster.command("scancel", f"{job}_1")
    states = {number: cluster.wait(f"{job}_{number}", 200)["JobState"] for number in range(2)}
    said = (pictures / "array-1.out").read_text()
    assert states == {0: "COMPLETED", 1: "CANCELLED"}, said
    before = records(out)
    assert len(before) < len(records(alone))

    job = cluster.submit(pictures / "again-%a.out", "--array=0-1", *batch)
    states = {number: cluster.wait(f"{job}_{number}", 200)["JobState"] for number in range(2)}
    assert states == {0: "COMPLETED", 1: "COMPLETED"}
    assert before.items() <= records(out).items() and records(out) == records(alone)


def test_an_array_rewrites_what_one_process_does(cluster: Cluster, tmp_path: Path) -> None:
    captions = [
        {"image": f"{n // 2}.jpg", "text": f"A {colour} {thing} on a {below}, number {n}."}
        for n, (colour, thing, below) in enumerate(
            (("red", "blue", "green")[n % 3], ("cup", "ball", "hat", "drum")[n % 4], ("box", "chair")[n % 2]) for n in range(400)
        )
    ]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(caption) + "\n" for caption in captions))
    words = [str(tmp_path / "captions.jsonl"), "--translator", "none", "--negatives", "12", "--chunk", "8", "--out"]
    alone, out = tmp_path / "alone", tmp_path / "array"
    call([sys.executable, "tools/rewrite_captions.py", *words, str(alone)])
    batch = ["--time=15", "--array=0-1", "--cpus-per-task=1", "slurm/rewrite.sbatch", *words, str(out)]
    job = cluster.submit(tmp_path / "array-%a.out", *batch)
    wait_until_there(out, "rewrites-00001-of-00002.jsonl.partial")
    for pid in processes_with([str(ROOT / "tools/rewrite_captions.py"), str(out), "1"]):
        os.kill(pid, signal.SIGKILL)
