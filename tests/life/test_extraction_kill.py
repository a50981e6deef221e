"""Kill -9 during extraction: the store can be read, the next run finishes it, and no byte of a record tells of the kill."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import lmdb
import pytest
import torch

from tests.life import small_run
from tests.life.extraction_worker import BATCH, digest
from tests.vision.conftest import save_picture, tiny_config
from unimo_ds.data.store import RegionStore, decode_regions
from unimo_ds.vision.detector_file import save_detector
from unimo_ds.vision.extract import read_image
from unimo_ds.vision.faster_rcnn import BottomUpDetector

pytestmark = pytest.mark.life
IMAGES = 90


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of five sizes in random order, two broken ones among them, and a detector with random weights."""
    folder = tmp_path_factory.mktemp("extraction")
    rng = random.Random(0)
    sizes = [(96, 128), (120, 90), (64, 64), (96, 160), (200, 96)]
    for number in range(IMAGES):
        save_picture(folder / "images" / f"{number:03}.png", number, *rng.choice(sizes))
    for number in (7, 40):
        path = folder / "images" / f"broken{number}.png"
        path.write_bytes((folder / "images" / f"{number:03}.png").read_bytes()[:300])
    torch.manual_seed(3)
    detector = BottomUpDetector(tiny_config(), ("square", "disc"), ("red", "blue"))
    torch.nn.init.normal_(detector.roi_heads.box_predictor.cls_score.weight, std=0.3)
    save_detector(detector.eval(), folder / "tiny.safetensors")
    return folder


def start(inputs: Path, out: Path, shard: int, shards: int = 2) -> subprocess.Popen[str]:
    words = [str(shards), str(shard), str(inputs / "images"), str(out), str(inputs / "tiny.safetensors")]
    log = out.with_suffix(".log")
    return subprocess.Popen(
        [sys.executable, "-m", "tests.life.extraction_worker", str(log), *words],
        cwd=small_run.ROOT,
        env=small_run.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_to_the_end(inputs: Path, out: Path, shards: int = 2) -> None:
    processes = [start(inputs, out, shard, shards) for shard in range(shards)]
    outputs = small_run.finish(processes)
    assert all(process.returncode == 0 for process in processes), "\n".join(outputs)


def detections(out: Path) -> list[tuple[int, str]]:
    """Shard and image of every detection so far."""
    log = out.with_suffix(".log")
    lines = log.read_text().splitlines() if log.exists() else []
    return [(int(line.split()[0]), line.split()[1]) for line in lines]


def records(out: Path) -> dict[bytes, bytes]:
    """Every record, byte for byte, whichever shard it is in, and whether the store is finished or not."""
    found: dict[bytes, bytes] = {}
    for shard in sorted(path for path in out.glob("shard-*") if path.is_dir()):
        with lmdb.open(str(shard), readonly=True, lock=False) as environment, environment.begin() as transaction:
            for key, value in transaction.cursor():
                assert key not in found
                found[key] = value
    return found


@pytest.fixture(scope="module")
def uninterrupted(inputs: Path) -> dict[bytes, bytes]:
    out = inputs / "whole"
    run_to_the_end(inputs, out)
    assert len(RegionStore(out)) == IMAGES and Counter(detections(out)).most_common(1)[0][1] == 1
    return records(out)


def test_kill_nine_again_and_again_costs_only_the_batch_at_work(inputs: Path, uninterrupted: dict[bytes, bytes]) -> None:
    out, rng, kills = inputs / "killed", random.Random(1), 0
    before: dict[bytes, bytes] = {}
    for victims in ([0, 1], [1], [0], [0, 1], []):
        first = len(detections(out))
        processes = [start(inputs, out, shard) for shard in (0, 1)]
        if victims:
            wait_for_detections(out, first + rng.randint(4, 12))
            time.sleep(rng.random() * 0.03)
        for victim in victims:
            processes[victim].send_signal(signal.SIGKILL)
        for shard, process in enumerate(processes):
            if victims and shard not in victims:  # it works on; a time limit stops it
                process.terminate()
            output, _ = process.communicate(timeout=60)  # decoding processes end too: they hold the other end of the pipe
            kills += process.returncode in (-signal.SIGKILL, -signal.SIGTERM)
            assert victims or process.returncode == 0, output
        now = records(out)
        assert before.items() <= now.items() and len(before) < len(now)
        for value in now.values():
            decode_regions(value, check=True)
        stored = {digest(read_image(inputs / "images" / key.decode())) for key in before}
        assert not stored & {image for _, image in detections(out)[first:]}, "an image was done twice"
        before = now
    assert kills == 8 and len(RegionStore(out)) == IMAGES
    assert before == uninterrupted
    counts = Counter(detections(out))
    assert len(counts) == IMAGES and sum(counts.values()) - IMAGES <= kills * BATCH


def wait_for_detections(out: Path, wanted: int) -> None:
    deadline = time.monotonic() + 120
    while len(detections(out)) < wanted:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_another_number_of_processes_finishes_what_two_began(inputs: Path, uninterrupted: dict[bytes, bytes]) -> None:
    """Batches are others then, so records may differ in the last bits of a feature; none is made twice."""
    out = inputs / "changed"
    processes = [start(inputs, out, shard) for shard in (0, 1)]
    wait_for_detections(out, 20)
    for process in processes:
        process.kill()
        process.communicate(timeout=30)
    committed = records(out)
    run_to_the_end(inputs, out, shards=3)
    assert len(RegionStore(out)) == IMAGES and committed.items() <= records(out).items()
    assert sorted(records(out)) == sorted(uninterrupted)
    assert sum(Counter(detections(out)).values()) - IMAGES <= 2 * BATCH


def test_local_processes_end_with_their_parent_and_the_next_run_goes_on(
    inputs: Path, uninterrupted: dict[bytes, bytes]
) -> None:
    out = inputs / "local"
    words = [sys.executable, "tools/extract_features.py", str(inputs / "images"), "--out", str(out), "--processes", "2"]
    words += ["--detector", str(inputs / "tiny.safetensors"), "--batch", str(BATCH)]
    parent = subprocess.Popen(
        words, cwd=small_run.ROOT, env=small_run.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    deadline = time.monotonic() + 120
    while not list(out.glob("shard-*/data.mdb")) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(parent.pid, signal.SIGKILL)
    parent.communicate(timeout=30)
    done = subprocess.run(words, cwd=small_run.ROOT, env=small_run.environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "extracted " in done.stdout and "(finished); 2 failed: 2 truncated; see" in done.stdout, done.stdout
    assert records(out) == uninterrupted
    again = subprocess.run(words, cwd=small_run.ROOT, env=small_run.environment(), capture_output=True, text=True, timeout=240)
    assert again.returncode == 0 and "nothing left to do for 92 images (finished)" in again.stdout, again.stdout
