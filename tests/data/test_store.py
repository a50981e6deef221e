"""The regions store: exact, without copies, safe after a fork, and honest about damage."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import WIDTH, random_regions
from tests.life.small_run import flip_a_byte
from unimo_ds.data import store as module
from unimo_ds.data.store import RegionStore, RegionStoreWriter, decode_regions, encode_regions, finish_store
from unimo_ds.errors import DamagedRecordError, StoreError
from unimo_ds.regions import Regions

DETECTOR = {"architecture": "random", "feature_width": WIDTH, "classes": 19, "weights_sha256": "a" * 64}


def write(folder: Path, count: int = 5, shard: int = 0, detector: dict[str, object] = DETECTOR) -> dict[str, Regions]:
    rng = np.random.default_rng(shard)
    written = {f"{shard}/{number}.jpg": random_regions(rng, number + 1) for number in range(count)}
    with RegionStoreWriter(folder, detector, shard) as writer:
        for key, regions in written.items():
            writer.write(key, regions)
    return written


def assert_same(found: Regions, written: Regions) -> None:
    assert (found.width, found.height) == (written.width, written.height)
    for name in (
        "boxes_R4",
        "features_RF",
        "class_ids_RK",
        "class_probabilities_RK",
        "attribute_ids_R",
        "attribute_probabilities_R",
    ):
        ours, theirs = getattr(found, name), getattr(written, name)
        assert ours.dtype == theirs.dtype and (ours == theirs).all(), name


def test_what_is_written_by_several_shards_is_read_back_exactly(tmp_path: Path) -> None:
    written = write(tmp_path, shard=0) | write(tmp_path, shard=1)
    assert finish_store(tmp_path)["records"] == 10
    store = RegionStore(tmp_path)
    assert sorted(store.keys()) == sorted(written) and len(store) == 10
    for key, regions in written.items():
        assert_same(store.get(key), regions)
        assert store.count(key) == len(regions) and key in store
    assert "nowhere.jpg" not in store
    with pytest.raises(KeyError):
        store.get("nowhere.jpg")


def test_reading_copies_nothing(tmp_path: Path) -> None:
    with RegionStoreWriter(tmp_path, DETECTOR) as writer:
        writer.write("0/3.jpg", random_regions(np.random.default_rng(0), 10, width=2048))
    finish_store(tmp_path)
    regions = RegionStore(tmp_path).get("0/3.jpg")
    assert not regions.features_RF.flags.owndata and not regions.features_RF.flags.writeable
    assert regions.boxes_R4.flags.aligned and regions.features_RF.flags.aligned


@settings(deadline=None, derandomize=True, max_examples=150)
@given(st.integers(0, 10**9), st.integers(0, 7))
def test_any_flipped_bit_is_found(place: int, bit: int) -> None:
    value = bytearray(encode_regions(random_regions(np.random.default_rng(0), 6)))
    reserved = range(20, 24)  # of the header: no meaning
    place %= len(value)
    value[place] ^= 1 << bit
    if place in reserved or 8 <= place < 16:  # width and height stand before what the checksum covers
        return
    with pytest.raises(DamagedRecordError):
        decode_regions(bytes(value))


@pytest.mark.parametrize("kept", [0, 10, 40, -8])
def test_a_cut_record_is_found(kept: int) -> None:
    value = encode_regions(random_regions(np.random.default_rng(0), 6))
    with pytest.raises(DamagedRecordError, match="bytes"):
        decode_regions(value[:kept])


def test_one_damaged_record_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    written = write(tmp_path)
    finish_store(tmp_path)
    flip_a_byte(tmp_path / "shard-00000/data.mdb", written["0/3.jpg"].features_RF.tobytes())
    store = RegionStore(tmp_path)
    with pytest.raises(DamagedRecordError, match=r"0/3\.jpg.*checksum.*Extract this image again"):
        store.get("0/3.jpg")
    for key in set(written) - {"0/3.jpg"}:
        assert_same(store.get(key), written[key])


def test_a_store_that_is_not_finished_says_what_to_do(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(StoreError, match=r"not a finished regions store.*extract_features\.py"):
        RegionStore(tmp_path)


def test_another_detector_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    write(tmp_path)
    other = {**DETECTOR, "weights_sha256": "b" * 64}
    with pytest.raises(StoreError, match=r"weights_sha256: 'a+' there, 'b+' here"):
        RegionStoreWriter(tmp_path, other, shard=1)
    finish_store(tmp_path)
    with pytest.raises(StoreError, match="made by another detector than the checkpoint; weights_sha256"):
        RegionStore(tmp_path).expect_detector(other, "the checkpoint")


def test_the_map_grows_as_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_INITIAL_MAP", 1 << 16)
    written = write(tmp_path, count=300)
    finish_store(tmp_path)
    assert_same(RegionStore(tmp_path).get("0/299.jpg"), written["0/299.jpg"])


def test_a_shard_is_continued_and_a_kill_costs_only_what_was_pending(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    writer = RegionStoreWriter(tmp_path, DETECTOR)
    writer.write("first.jpg", random_regions(rng, 3))
    writer.flush()
    writer.write("pending.jpg", random_regions(rng, 3))
    writer._env.close()  # as a kill would leave it: no close(), no summary
    with RegionStoreWriter(tmp_path, DETECTOR) as again:
        assert "first.jpg" in again and "pending.jpg" not in again and len(again) == 1


def test_a_fork_after_reading_reads_on_its_own(tmp_path: Path) -> None:
    written = write(tmp_path)
    finish_store(tmp_path)
    store = RegionStore(tmp_path)
    store.get("0/1.jpg")
    child = os.fork()
    if child == 0:
        try:
            assert_same(store.get("0/2.jpg"), written["0/2.jpg"])
            assert_same(RegionStore(tmp_path).get("0/4.jpg"), written["0/4.jpg"])
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert_same(store.get("0/3.jpg"), written["0/3.jpg"])


def test_two_stores_at_once_and_one_twice(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / name, shard=0)
        finish_store(tmp_path / name)
    stores = [RegionStore(tmp_path / name) for name in ("one", "two", "one")]
    assert len({len(store.get("0/2.jpg")) for store in stores}) == 1
