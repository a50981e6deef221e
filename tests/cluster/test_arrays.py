"""Array jobs of extraction and of rewriting: as one process alone; an element that is lost costs nothing but its work."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.cluster.slurm import Cluster
from tests.life.test_extraction_kill import inputs as pictures  # noqa: F401  (a fixture)
from tests.life.test_extraction_kill import records
from tests.life.test_launchers import call

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
CAPTIONS = 2600  # three chunks of a thousand: two for the first element


def wait_until_there(folder: Path, pattern: str) -> None:
    deadline = time.monotonic() + 120
    while not any(folder.glob(pattern)):
        assert time.monotonic() < deadline, f"no {folder}/{pattern} after 2 minutes"
        time.sleep(0.01)


def processes_with(program: str, *words: str) -> list[int]:
    """The processes of a program that were started with all these words among others."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            own = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if own[0] == program.encode() and all(word.encode() in own for word in words):
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
    assert cluster.wait_for_array(job, 2, 200) == ["COMPLETED", "CANCELLED"], (pictures / "array-1.out").read_text()
    before = records(out)
    assert len(before) < len(records(alone))

    job = cluster.submit(pictures / "again-%a.out", "--array=0-1", *batch)
    assert cluster.wait_for_array(job, 2, 200) == ["COMPLETED", "COMPLETED"]
    assert before.items() <= records(out).items() and records(out) == records(alone)


def test_an_array_rewrites_what_one_process_does(cluster: Cluster, tmp_path: Path) -> None:
    colours, things, places = ("red", "blue", "green"), ("cup", "ball", "hat", "drum"), ("box", "chair")
    captions = [
        {"image": f"{n // 2}.jpg", "text": f"A {colours[n % 3]} {things[n % 4]} on a {places[n % 2]}, number {n}."}
        for n in range(CAPTIONS)
    ]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(caption) + "\n" for caption in captions))
    words = [str(tmp_path / "captions.jsonl"), "--translator", "none", "--negatives", "12", "--out"]
    alone, out = tmp_path / "alone", tmp_path / "array"
    call([sys.executable, "tools/rewrite_captions.py", *words, str(alone)])
    batch = ["--time=15", "--array=0-1", "--cpus-per-task=1", "slurm/rewrite.sbatch", *words, str(out)]
    job = cluster.submit(tmp_path / "array-%a.out", *batch)
    wait_until_there(out, "report-00000-of-00002.json")  # its first chunk is done
    (pid,) = processes_with(sys.executable, "tools/rewrite_captions.py", str(out), "--shard", "0")
    os.kill(pid, signal.SIGKILL)
    assert cluster.wait_for_array(job, 2, 200) == ["FAILED", "COMPLETED"], (tmp_path / "array-0.out").read_text()
    before = (out / "rewrites-00000-of-00002.jsonl.partial").read_text()

    job = cluster.submit(tmp_path / "again-%a.out", *batch)
    assert cluster.wait_for_array(job, 2, 200) == ["COMPLETED", "COMPLETED"]
    assert "nothing left to do" in (tmp_path / "again-1.out").read_text()
    assert before and (out / "rewrites-00000-of-00002.jsonl").read_text().startswith(before)
    assert rewritten(out) == rewritten(alone) and len(rewritten(out)) == CAPTIONS


def rewritten(out: Path) -> list[str]:
    return sorted(line for file in out.glob("rewrites-*.jsonl") for line in file.read_text().splitlines())
