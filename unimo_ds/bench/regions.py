"""Reading regions: our store against UNITER's, msgpack in LMDB, a record at a time in one process.

Each reader does what its own training asks of it for one image. UNITER's decodes a dict of arrays and hands float32 tensors to
its collate function; ours hands views of the memory map to the packer, which copies them once, as float16, into the batch. That
copy is a row of its own, and so is UNITER's record without the conversion: neither side's remaining work is hidden. So is a
store of 64 shards, as that many processes write it.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import torch

from unimo_ds.bench.workload import FEATURE_WIDTH, random_regions
from unimo_ds.data.store import RegionStore, RegionStoreWriter, finish_store, shard_of
from unimo_ds.regions import Regions, location_features

IMAGES = 400
_PASSES = 10  # over the images in one timing: one pass takes some milliseconds, as long as a pause of the machine
_SHARDS = 64


def measure_reads(rounds: int = 5, images: int = IMAGES) -> list[dict[str, object]]:
    """Items a second of each layout, warm; processor time, best of `rounds`, rounds interleaved."""
    rng = np.random.default_rng(0)
    everything = {f"{number:06}.jpg": random_regions(rng, int(rng.integers(36, 101))) for number in range(images)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_ours(folder / "ours", everything, 1)
        _write_ours(folder / "sharded", everything, _SHARDS)
        _write_msgpack(folder / "msgpack", everything)
        keys = list(everything)
        first, ours = _timed(RegionStore(folder / "ours").get, keys), RegionStore(folder / "ours")
        readers: dict[str, Callable[[str], object]] = {
            "ours": ours.get,
            f"ours, {_SHARDS} shards": RegionStore(folder / "sharded").get,
            "ours, copied as the packer does": lambda key: _copied(ours.get(key)),
            **_msgpack_readers(folder / "msgpack"),
        }
        for read in readers.values():
            _timed(read, keys)
        times = [{label: _timed(read, keys * _PASSES) for label, read in readers.items()} for _ in range(rounds)]
    best = {label: min(seconds[label] for seconds in times) / _PASSES for label in readers}
    best["ours, first read, checksum verified"] = first
    return [
        {"layout": label, "items_per_second": images / seconds, "ours_over_it": seconds / best["ours"]}
        for label, seconds in best.items()
    ]


def _timed(read: Callable[[str], object], keys: list[str]) -> float:
    started = time.process_time()
    for key in keys:
        read(key)
    return time.process_time() - started


def _copied(regions: Regions) -> object:
    return np.array(regions.features_RF), location_features(regions.boxes_R4, regions.width, regions.height)


def _write_ours(folder: Path, everything: dict[str, Regions], shards: int) -> None:
    identity = {"architecture": "random", "feature_width": FEATURE_WIDTH, "classes": 1600, "attributes": 400}
    for shard in range(shards):
        with RegionStoreWriter(folder, identity, shard, shards=shards) as writer:
            for key, regions in everything.items():
                if shard_of(key, shards) == shard:
                    writer.write(key, regions)
    finish_store(folder)


def _write_msgpack(folder: Path, everything: dict[str, Regions]) -> None:
    """UNITER's record: a dict of numpy arrays through msgpack; its soft labels are left out, which makes it faster."""
    import msgpack
    import msgpack_numpy

    folder.mkdir()
    environment = lmdb.open(str(folder), map_size=1 << 31)
    with environment.begin(write=True) as transaction:
        for key, regions in everything.items():
            boxes = location_features(regions.boxes_R4, regions.width, regions.height)
            record = {
                "features": regions.features_RF,
                "norm_bb": boxes.astype(np.float16),
                "conf": regions.class_probabilities_RK[:, 0],
            }
            transaction.put(key.encode(), msgpack.packb(record, default=msgpack_numpy.encode))
    environment.close()


def _msgpack_readers(folder: Path) -> dict[str, Callable[[str], object]]:
    import msgpack
    import msgpack_numpy

    transaction: Any = lmdb.open(str(folder), readonly=True, lock=False, readahead=False).begin(buffers=True)

    def decode(key: str) -> dict[str, Any]:
        record: dict[str, Any] = msgpack.unpackb(transaction.get(key.encode()), object_hook=msgpack_numpy.decode)
        return record

    def read(key: str) -> object:
        record = decode(key)
        boxes = torch.tensor(record["norm_bb"]).float()
        return torch.tensor(record["features"]).float(), torch.cat([boxes, boxes[:, 4:5] * boxes[:, 4:5]], dim=-1)

    return {"UNITER: msgpack in LMDB": read, "msgpack in LMDB, decoded only": decode}


def table(rows: list[dict[str, object]]) -> str:
    """The rows as Markdown."""
    head = "| layout | items/s | ours / it |\n|---|---|---|\n"
    return head + "\n".join(f"| {row['layout']} | {row['items_per_second']:,.0f} | {row['ours_over_it']:.1f} |" for row in rows)
