"""Finding neighbours at scale: time and memory of `unimo_ds.neighbour_search`, and what FAISS misses.

The data are random but have the shape of real ones. Images: 36 regions with their 5 likeliest of 1,600 classes, of which a kind
of scene shows few often and a few are in every scene. Texts: words by Zipf's law from a vocabulary of 20,000, of which the
100 most frequent are stop words. Features are not read by the search, so the stores hold narrow ones.
"""

import json
import multiprocessing
import re
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from unimo_ds.data.store import RegionStoreWriter, finish_store
from unimo_ds.neighbour_search import NeighbourPlan, find_neighbours
from unimo_ds.neighbours import open_neighbours
from unimo_ds.progress import track
from unimo_ds.regions import Regions

SIZE = 100_000
CLASSES, SCENES, OBJECTS_OF_A_SCENE = 1600, 500, 40
REGIONS, KEPT = 36, 5
VOCABULARY, STOP_WORDS = 20_000, 100
FEATURE_WIDTH = 8
_DETECTOR = {"architecture": "random", "feature_width": FEATURE_WIDTH, "classes": CLASSES}


def measure_search(size: int = SIZE) -> list[dict[str, object]]:
    """Searches for `size` pairs of as many images in `size` images and sentences; each row is a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pairs, texts = folder / "pairs.jsonl", folder / "texts.txt"
        _write_images(folder / "own", size, 0)
        _write_images(folder / "other", size, 1)
        captions = [{"image": f"{number:07}.jpg", "text": text} for number, text in enumerate(_sentences(size, 10, 2))]
        pairs.write_text("".join(json.dumps(caption) + "\n" for caption in captions), encoding="utf-8")
        texts.write_text("\n\n".join(_sentences(size, 18, 3)), encoding="utf-8")
        plan = NeighbourPlan(pairs, folder / "own", (folder / "other",), (texts,), folder / "all")
        images = replace(plan, out=folder / "images", texts_per_pair=0)
        faiss = replace(images, out=folder / "faiss", index="faiss")
        sentences = replace(plan, out=folder / "sentences", images_per_pair=0)
        work = {"images, exact": images, "images, FAISS": faiss, "sentences, BM25": sentences, "images and sentences": plan}
        rows = [{"search": label, "size": size, **_measure(plan)} for label, plan in work.items()]
        recall = _recall(images.out, faiss.out)
    return [row | ({"recall": recall} if row["search"] == "images, FAISS" else {}) for row in rows]


def _measure(plan: NeighbourPlan) -> dict[str, object]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_search, plan).result()


def _search(plan: NeighbourPlan) -> dict[str, object]:
    started, worked = time.perf_counter(), time.process_time()
    find_neighbours(plan)
    seconds, processor = time.perf_counter() - started, time.process_time() - worked
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return {"seconds": seconds, "processor_seconds": processor, "peak_mb": int(peak[1]) / 1024 if peak else 0.0}


def _recall(exact: Path, approximate: Path) -> float:
    """The share of the images found exactly that are found approximately too."""
    rows = zip(open_neighbours(exact).image_rows, open_neighbours(approximate).image_rows, strict=True)
    shared = [(np.isin(one[one >= 0], other).sum(), (one >= 0).sum()) for one, other in rows]
    found, wanted = np.sum(shared, axis=0)
    return float(found / wanted)


def _write_images(folder: Path, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scenes = np.random.default_rng(99)  # the same for both stores
    popular_C = _zipf(CLASSES)
    objects_SO = np.stack([scenes.choice(CLASSES, OBJECTS_OF_A_SCENE, False, popular_C) for _ in range(SCENES)])
    alike_CK = scenes.integers(0, CLASSES, (CLASSES, KEPT - 1))  # what a detector takes a class for
    often_O = _zipf(OBJECTS_OF_A_SCENE)
    corners_R4 = np.zeros((REGIONS, 4), np.float32)
    with RegionStoreWriter(folder, _DETECTOR) as writer:
        for number in track(range(count), f"drawing images of {folder.name}", count, "images"):
            classes_R = objects_SO[rng.integers(SCENES), rng.choice(OBJECTS_OF_A_SCENE, REGIONS, p=often_O)]
            classes_RK = np.concatenate([classes_R[:, None], alike_CK[classes_R]], axis=1) + 1
            shares_RK = rng.dirichlet([8, 2, 1, 0.5, 0.5], REGIONS)
            regions = Regions(
                640,
                480,
                corners_R4 + rng.random((REGIONS, 1), np.float32),
                np.zeros((REGIONS, FEATURE_WIDTH), np.float16),
                classes_RK.astype(np.uint16),
                shares_RK.astype(np.float16),
                np.zeros(REGIONS, np.uint16),
                np.zeros(REGIONS, np.float16),
            )
            writer.write(f"{number:07}.jpg" if seed == 0 else f"other/{number:07}.jpg", regions)
    finish_store(folder)


def _sentences(count: int, mean_length: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    known = sorted(word for word in ENGLISH_STOP_WORDS if len(word) > 1)[:STOP_WORDS]
    words = np.array(known + [f"word{number}q" for number in range(VOCABULARY - len(known))])
    lengths = np.clip(rng.poisson(mean_length, count), 5, 50)
    drawn = iter(words[rng.choice(VOCABULARY, int(lengths.sum()), p=_zipf(VOCABULARY))])
    return [" ".join(next(drawn) for _ in range(length)).capitalize() + "." for length in lengths]


def _zipf(count: int) -> npt.NDArray[np.float64]:
    weights = 1 / np.arange(1, count + 1)
    shares: npt.NDArray[np.float64] = weights / weights.sum()
    return shares


def table(rows: list[dict[str, object]]) -> str:
    """The rows as Markdown."""
    head = "| search | pairs, images, sentences | seconds | processor seconds | peak MB | recall |\n|---|---|---|---|---|---|\n"
    lines = [
        f"| {row['search']} | {row['size']:,} each | {row['seconds']:,.0f} | {row['processor_seconds']:,.0f} "
        f"| {row['peak_mb']:,.0f} | {row.get('recall', 1.0):.3f} |"
        for row in rows
    ]
    return head + "\n".join(lines)
