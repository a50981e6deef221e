"""The regions store: exact, without copies, safe after a fork, and honest about damage."""

import os
import pickle
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import lmdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import WIDTH, random_regions
from tests.life.small_run import flip_a_byte
from unimo_ds.data import shard_lock
from unimo_ds.data import store as module
from unimo_ds.data.store import (
    RegionStore,
    RegionStoreWriter,
    complete_shards,
    decode_regions,
    encode_regions,
    finish_store,
    shard_of,
    stored_elsewhere,
)
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
    arrays = [value for value in vars(regions).values() if isinstance(value, np.ndarray)]
    assert len(arrays) == 6
    assert all(not array.flags.owndata and not array.flags.writeable and array.flags.aligned for array in arrays)
    with pytest.raises(ValueError, match="read-only"):
        regions.features_RF[0, 0] = 1


def test_two_readers_of_one_record_see_the_same_memory(tmp_path: Path) -> None:
    write(tmp_path)
    finish_store(tmp_path)
    one, two = RegionStore(tmp_path).get("0/3.jpg"), RegionStore(tmp_path).get("0/3.jpg")
    for name in ("boxes_R4", "features_RF", "class_ids_RK", "class_probabilities_RK"):
        assert np.shares_memory(getattr(one, name), getattr(two, name)), name


RECORD = encode_regions(random_regions(np.random.default_rng(0), 6))
HEADER = 32


def assert_found(place: int, change: int) -> None:
    value = bytearray(RECORD)
    value[place] ^= change
    with pytest.raises(DamagedRecordError):
        decode_regions(bytes(value))


@pytest.mark.parametrize("place", range(HEADER))
def test_any_changed_byte_of_a_header_is_found(place: int) -> None:
    """The image's size and the number of kept classes stand there too."""
    for change in range(1, 256):
        assert_found(place, change)


@settings(deadline=None, derandomize=True, max_examples=150)
@given(st.integers(HEADER, len(RECORD) - 1), st.integers(1, 255))
def test_any_changed_byte_of_the_regions_is_found(place: int, change: int) -> None:
    assert_found(place, change)


def test_a_record_without_a_header_checksum_is_read_as_before() -> None:
    value = bytearray(RECORD)
    value[20:24] = bytes(4)
    assert_same(decode_regions(bytes(value)), random_regions(np.random.default_rng(0), 6))


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
    message = rf"^{re.escape(str(tmp_path))}: image '0/3\.jpg': the checksum .*Remove the shard's folder and"
    for _ in range(2):  # a record that was refused once is not taken for a verified one
        with pytest.raises(DamagedRecordError, match=message):
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
    writer._leave()  # as a kill would leave it: no close(), no complete summary
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
    for name, count in (("one", 3), ("two", 7)):
        with RegionStoreWriter(tmp_path / name, DETECTOR) as writer:
            writer.write("same.jpg", random_regions(np.random.default_rng(0), count))
        finish_store(tmp_path / name)
    stores = [RegionStore(tmp_path / name) for name in ("one", "two", "one")]
    assert [len(store.get("same.jpg")) for store in stores] == [3, 7, 3]


def test_a_store_made_anew_in_the_same_place_is_read_anew(tmp_path: Path) -> None:
    """One process may read a store, have it extracted again, and read it again; LMDB is opened once a process."""
    write(tmp_path / "store", shard=0)
    finish_store(tmp_path / "store")
    before = RegionStore(tmp_path / "store")
    assert len(before.get("0/4.jpg")) == 5
    shutil.rmtree(tmp_path / "store")
    with RegionStoreWriter(tmp_path / "store", DETECTOR) as writer:
        writer.write("0/4.jpg", random_regions(np.random.default_rng(9), 9))
    finish_store(tmp_path / "store")
    after = RegionStore(tmp_path / "store")
    assert list(after.keys()) == ["0/4.jpg"] and len(after.get("0/4.jpg")) == 9


@pytest.mark.parametrize("key", ["", "k" * 512, "é" * 256], ids=["empty", "512 letters", "512 bytes"])
def test_a_key_that_lmdb_cannot_hold_is_refused_and_never_found(tmp_path: Path, key: str) -> None:
    with RegionStoreWriter(tmp_path, DETECTOR) as writer:
        writer.write("k" * 511, random_regions(np.random.default_rng(0), 2))
        with pytest.raises(StoreError, match="a key has 1 to 511 bytes"):
            writer.write(key, random_regions(np.random.default_rng(0), 2))
        assert key not in writer
    finish_store(tmp_path)
    store = RegionStore(tmp_path)
    assert key not in store and list(store.keys()) == ["k" * 511]
    with pytest.raises(KeyError):
        store.get(key)


def test_damage_anywhere_in_the_file_gives_a_named_error_or_the_right_regions(tmp_path: Path) -> None:
    """LMDB's own pages have no checksums: keys, offsets and page numbers may change too. Never wrong regions, never a crash."""
    written = write(tmp_path, count=8)
    finish_store(tmp_path)
    path = tmp_path / "shard-00000/data.mdb"
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    starts_of_pages = [page + int(rng.integers(48)) for page in range(0, len(whole), 4096)]
    for place in [*starts_of_pages * 2, *rng.integers(0, len(whole), 30).tolist()]:
        content = bytearray(whole)
        content[place] ^= int(rng.integers(1, 256))
        path.write_bytes(bytes(content))
        child = os.fork()  # LMDB is opened once a process
        if child == 0:
            os._exit(reads_right_or_refuses(tmp_path, written))
        assert os.waitpid(child, 0)[1] == 0, f"byte {place}"


def test_a_page_that_lmdb_refuses_is_damage_of_the_images_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Corrupted:
        def get(self, name: bytes) -> bytes:
            raise lmdb.CorruptedError("a page of no kind")

    write(tmp_path)
    finish_store(tmp_path)
    store = RegionStore(tmp_path)
    monkeypatch.setattr(store, "_open", lambda: [Corrupted()])
    with pytest.raises(DamagedRecordError, match=r"image '0/1\.jpg': a page of no kind. Remove the shard's folder"):
        store.get("0/1.jpg")


def reads_right_or_refuses(folder: Path, written: dict[str, Regions]) -> int:
    try:
        store = RegionStore(folder)
        for key, regions in written.items():
            try:
                assert_same(store.get(key), regions)
            except (StoreError, KeyError):
                continue
    except BaseException:
        return 1
    return 0


def test_a_lost_shard_is_named(tmp_path: Path) -> None:
    write(tmp_path, shard=0)
    write(tmp_path, shard=1)
    finish_store(tmp_path)
    shutil.rmtree(tmp_path / "shard-00001")
    with pytest.raises(StoreError, match=r"shard-00001: cannot be opened .* Remove the shard's folder"):
        RegionStore(tmp_path).get("1/0.jpg")


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("{", r"manifest\.json: cannot be read"),
        ("[]", r"manifest\.json: holds list, expected a JSON object"),
        ('{"version": 99}', r"manifest\.json: version 99, this program reads 1"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_named(tmp_path: Path, manifest: str, message: str) -> None:
    (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(StoreError, match=message):
        RegionStore(tmp_path)


def test_shards_of_different_detectors_are_not_merged(tmp_path: Path) -> None:
    write(tmp_path / "a", shard=0)
    write(tmp_path / "b", shard=1, detector={**DETECTOR, "classes": 7})
    shutil.copytree(tmp_path / "b", tmp_path / "a", dirs_exist_ok=True)
    with pytest.raises(StoreError, match="shard 1 was written by another detector; classes: 7 there, 19 here"):
        finish_store(tmp_path / "a")
    with pytest.raises(StoreError, match="nothing was extracted into it yet"):
        finish_store(tmp_path / "nowhere")


def test_a_store_is_pickled_to_workers_without_what_is_open(tmp_path: Path) -> None:
    written = write(tmp_path)
    finish_store(tmp_path)
    store = RegionStore(tmp_path)
    store.get("0/1.jpg")
    assert_same(pickle.loads(pickle.dumps(store)).get("0/1.jpg"), written["0/1.jpg"])
    assert_same(store.get("0/2.jpg"), written["0/2.jpg"])


def test_an_image_without_regions_is_a_record_too(tmp_path: Path) -> None:
    with RegionStoreWriter(tmp_path, DETECTOR) as writer:
        writer.write("empty.jpg", random_regions(np.random.default_rng(0), 0))
    finish_store(tmp_path)
    found = RegionStore(tmp_path).get("empty.jpg")
    assert len(found) == 0 and found.features_RF.shape == (0, WIDTH)


RECORDS = st.tuples(st.integers(0, 12), st.integers(1, 40), st.integers(0, 6), st.integers(0, 2**32))


@settings(deadline=None, derandomize=True, max_examples=60)
@given(RECORDS)
def test_a_record_of_any_shape_comes_back_exactly(shape: tuple[int, int, int, int]) -> None:
    """Odd numbers of regions, features and classes, where parts must be padded to eight bytes."""
    count, width, kept, seed = shape
    regions = random_regions(np.random.default_rng(seed), count, width, kept=kept)
    value = encode_regions(regions)
    found = decode_regions(value)
    assert_same(found, regions)
    assert len(value) % 8 == 0 and found.features_RF.shape == (count, width) and found.class_ids_RK.shape == (count, kept)


def test_arrays_that_do_not_lie_in_one_piece_are_written_as_they_look(tmp_path: Path) -> None:
    """A slice of a detector's output, in another byte order or width, is still the same numbers."""
    whole = random_regions(np.random.default_rng(0), 8)
    sliced = Regions(*[value[::2] if isinstance(value, np.ndarray) else value for value in vars(whole).values()])
    widened = Regions(*[v.astype(v.dtype.newbyteorder(">")) if isinstance(v, np.ndarray) else v for v in vars(sliced).values()])
    assert encode_regions(widened) == encode_regions(sliced)
    assert_same(decode_regions(encode_regions(sliced)), sliced)


@pytest.mark.parametrize(("place", "value"), [(0, b"UNMX"), (4, b"\x02\x00")], ids=["magic", "version"])
def test_a_record_of_another_program_says_what_it_is(place: int, value: bytes) -> None:
    content = bytearray(RECORD)
    content[place : place + len(value)] = value
    with pytest.raises(DamagedRecordError, match=r"magic 0x.* version .*; this program reads 0x534d4e55 version 1"):
        decode_regions(bytes(content), check=False)


def test_a_damaged_record_is_found_by_every_process_once_and_then_read_without_checking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path)
    finish_store(tmp_path)
    checks: list[bool] = []
    monkeypatch.setattr(module, "decode_regions", lambda value, check: checks.append(check) or decode_regions(value, check))
    store = RegionStore(tmp_path)
    for key in ("0/1.jpg", "0/1.jpg", "0/2.jpg", "0/1.jpg"):
        store.get(key)
    assert checks == [True, False, True, False]


def test_killed_outright_a_writer_loses_only_what_was_pending_and_is_continued(tmp_path: Path) -> None:
    """600 records: two commits of 256 are on disk, the other 88 are done again, and the result is as if never killed."""
    rng = np.random.default_rng(0)
    written = {f"{number}.jpg": random_regions(rng, 1 + number % 3) for number in range(600)}
    child = os.fork()
    if child == 0:
        writer = RegionStoreWriter(tmp_path, DETECTOR)
        for key, regions in written.items():
            writer.write(key, regions)
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    with pytest.raises(StoreError, match="shard-00000: is not complete: its writer still runs, or was stopped"):
        finish_store(tmp_path)
    with RegionStoreWriter(tmp_path, DETECTOR) as again:
        left = [key for key in written if key not in again]
        assert left == list(written)[512:] and len(again) == 512
        for key in left:
            again.write(key, written[key])
        assert len(again) == 600
    assert finish_store(tmp_path)["records"] == 600
    store = RegionStore(tmp_path)
    for key, regions in written.items():
        assert_same(store.get(key), regions)


def test_a_record_written_again_is_replaced_and_counted_once(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with RegionStoreWriter(tmp_path, DETECTOR) as writer:
        writer.write("a.jpg", random_regions(rng, 3))
    with RegionStoreWriter(tmp_path, DETECTOR) as writer:
        writer.write("a.jpg", random_regions(rng, 5))
    assert finish_store(tmp_path)["records"] == 1 and RegionStore(tmp_path).count("a.jpg") == 5


def test_of_very_different_detectors_four_differences_are_named(tmp_path: Path) -> None:
    ours = {"feature_width": WIDTH, **dict.fromkeys("abcdef", 1)}
    write(tmp_path, detector=ours)
    with pytest.raises(
        StoreError, match=r"detector; a: 1 there, 2 here; .*d: 1 there, 2 here\. Choose another --out"
    ) as caught:
        RegionStoreWriter(tmp_path, {"feature_width": WIDTH, **dict.fromkeys("abcdef", 2)}, shard=1)
    assert "e: 1" not in str(caught.value)
    with pytest.raises(StoreError, match="preprocessing: None there, 'BGR' here"):
        RegionStoreWriter(tmp_path, {**ours, "preprocessing": "BGR"}, shard=1)
    finish_store(tmp_path)
    store = RegionStore(tmp_path)
    store.expect_detector(dict(ours), "itself")
    assert store.feature_width == WIDTH


def test_a_damaged_key_is_an_error_that_names_the_store(tmp_path: Path) -> None:
    write(tmp_path)
    finish_store(tmp_path)
    path = tmp_path / "shard-00000/data.mdb"
    content = path.read_bytes().replace(b"0/3.jpg", b"0/\xff.jpg")
    path.write_bytes(content)
    with pytest.raises(
        DamagedRecordError,
        match=rf"^{re.escape(str(tmp_path))}: a key is damaged .*Remove the shard's folder",
    ):
        list(RegionStore(tmp_path).keys())


def test_a_page_that_lmdb_refuses_ends_the_list_of_keys_with_a_named_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Corrupted:
        def cursor(self) -> "Corrupted":
            return self

        def iternext(self, values: bool) -> Iterator[bytes]:
            yield b"0/0.jpg"
            raise lmdb.CorruptedError("a page of no kind")

    write(tmp_path)
    finish_store(tmp_path)
    store = RegionStore(tmp_path)
    monkeypatch.setattr(store, "_open", lambda: [Corrupted()])
    keys = store.keys()
    assert next(keys) == "0/0.jpg"
    with pytest.raises(DamagedRecordError, match="a page of no kind"):
        next(keys)


def test_a_shard_is_found_by_its_key_in_any_program() -> None:
    """Numbers that must never change: stores on disk are divided by them."""
    keys = ["a.jpg", "train2014/COCO_train2014_000000000009.jpg", "ü.png"]
    assert [shard_of(key, 64) for key in keys] == [53, 23, 52]
    counts = np.bincount([shard_of(f"{number}.jpg", 8) for number in range(8000)], minlength=8)
    assert counts.min() > 900 and counts.max() < 1100


def write_hashed(folder: Path, shards: int, keys: list[str], only: int | None = None) -> None:
    for shard in range(shards) if only is None else [only]:
        with RegionStoreWriter(folder, DETECTOR, shard, shards=shards) as writer:
            for key in keys:
                if shard_of(key, shards) == shard:
                    writer.write(key, random_regions(np.random.default_rng(len(key)), 2))


def test_a_reader_looks_first_where_the_key_belongs(tmp_path: Path) -> None:
    keys = [f"{number}.jpg" for number in range(40)]
    write_hashed(tmp_path, 8, keys)
    assert finish_store(tmp_path)["hashed_over"] == [8]
    store = RegionStore(tmp_path)
    lookups: list[int] = []

    class Counting:
        def __init__(self, place: int, transaction: object) -> None:
            self.place, self.transaction = place, transaction

        def get(self, name: bytes) -> object:
            lookups.append(self.place)
            return self.transaction.get(name)  # type: ignore[attr-defined]

    store._transactions = [Counting(place, transaction) for place, transaction in enumerate(store._open())]
    for key in keys:
        assert key in store
    assert lookups == [shard_of(key, 8) for key in keys]
    assert "nowhere.jpg" not in store and len(lookups) == len(keys) + 9


def test_a_store_that_was_divided_twice_is_read_by_both_divisions(tmp_path: Path) -> None:
    first, second = [f"{number}.jpg" for number in range(20)], [f"{number}.jpg" for number in range(20, 40)]
    write_hashed(tmp_path, 3, first)
    write_hashed(tmp_path, 2, second)
    assert finish_store(tmp_path)["hashed_over"] == [3, 2]
    store = RegionStore(tmp_path)
    assert all(key in store for key in first + second) and sorted(store.keys()) == sorted(first + second)


def test_what_lies_in_other_shards_is_known_to_whoever_continues(tmp_path: Path) -> None:
    keys = [f"{number}.jpg" for number in range(40)]
    assert stored_elsewhere(tmp_path, 0, 2) == set()
    write_hashed(tmp_path, 3, keys)
    assert stored_elsewhere(tmp_path, 1, 3) == set()  # by the same division nothing needs to be read
    wanted = {key for key in keys if shard_of(key, 2) == 0 and shard_of(key, 3) != 0}
    assert stored_elsewhere(tmp_path, 0, 2) == wanted
    RegionStoreWriter(tmp_path, DETECTOR, 7, shards=8)._leave()
    (tmp_path / "shard-00009").mkdir()  # of a writer that starts at this moment
    assert stored_elsewhere(tmp_path, 0, 2) == wanted


def test_a_key_of_another_shard_is_refused(tmp_path: Path) -> None:
    wrong = next(f"{number}.jpg" for number in range(9) if shard_of(f"{number}.jpg", 2) == 1)
    with RegionStoreWriter(tmp_path, DETECTOR, 0, shards=2) as writer, pytest.raises(ValueError, match="belongs into shard 1"):
        writer.write(wrong, random_regions(np.random.default_rng(0), 2))


def test_an_image_in_two_shards_is_found_when_the_store_is_finished(tmp_path: Path) -> None:
    for shard in (0, 1, 2):
        with RegionStoreWriter(tmp_path, DETECTOR, shard) as writer:
            for key in [f"{shard}.jpg", "same.jpg"] if shard else ["first.jpg"]:
                writer.write(key, random_regions(np.random.default_rng(0), 2))
    with pytest.raises(StoreError, match=r"image 'same\.jpg' is in two shards, 1 and 2.*regions merge OUT"):
        finish_store(tmp_path)
    assert not (tmp_path / "manifest.json").exists()


def test_a_second_writer_of_a_shard_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_lock, "_PATIENCE", 0.1)
    writer = RegionStoreWriter(tmp_path, DETECTOR, shards=1)
    with pytest.raises(StoreError, match="shard-00000: this process is writing this shard"):
        RegionStoreWriter(tmp_path, DETECTOR)
    child = os.fork()
    if child == 0:
        try:
            RegionStoreWriter(tmp_path, DETECTOR)
        except StoreError as error:
            os._exit(f"process {os.getppid()} on " in str(error))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert shard_lock.holder_of(tmp_path / "shard-00000") is None  # this process is no other
    writer.close()
    write(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    with pytest.raises(StoreError, match="shard-00000: cannot be written: Not a directory"):
        RegionStoreWriter(tmp_path / "store", DETECTOR)


def test_a_writer_that_an_exception_ends_drops_what_is_pending_and_is_continued(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="half way"), RegionStoreWriter(tmp_path, DETECTOR) as writer:
        writer.write("0.jpg", random_regions(np.random.default_rng(0), 2))
        writer.flush()
        writer.write("1.jpg", random_regions(np.random.default_rng(0), 2))
        raise RuntimeError("half way")
    with RegionStoreWriter(tmp_path, DETECTOR) as again:
        assert "0.jpg" in again and "1.jpg" not in again and again.size("0.jpg") == (160, 200)
        assert again.size("1.jpg") is None
        again.write("1.jpg", random_regions(np.random.default_rng(0), 2))
        assert again.size("1.jpg") == (160, 200) and len(again) == 2


def test_shards_that_nobody_continues_are_completed_as_they_are(tmp_path: Path) -> None:
    write_hashed(tmp_path, 2, ["a.jpg", "b.jpg", "c.jpg", "d.jpg"])
    writer = RegionStoreWriter(tmp_path, DETECTOR, 5)
    writer.write("e.jpg", random_regions(np.random.default_rng(0), 2))
    writer.flush()
    writer._leave()
    with pytest.raises(StoreError, match="shard-00005: is not complete"):
        finish_store(tmp_path)
    complete_shards(tmp_path)
    assert finish_store(tmp_path)["records"] == 5


def test_a_manifest_that_says_the_same_is_left_alone(tmp_path: Path) -> None:
    write(tmp_path)
    finish_store(tmp_path)
    before = (tmp_path / "manifest.json").stat().st_mtime_ns
    RegionStoreWriter(tmp_path, DETECTOR).close()
    finish_store(tmp_path)
    assert (tmp_path / "manifest.json").stat().st_mtime_ns == before


def test_names_go_beside_the_shards_once_and_come_back(tmp_path: Path) -> None:
    write(tmp_path / "nameless")
    finish_store(tmp_path / "nameless")
    store = RegionStore(tmp_path / "nameless")
    assert (store.class_names, store.attribute_names) == ((), ()) and not (tmp_path / "nameless/names.json").exists()
    for classes in (("dog", "Straße"), ("other",)):
        RegionStoreWriter(tmp_path / "named", DETECTOR, 0, classes, ("red",)).close()
    finish_store(tmp_path / "named")
    store = RegionStore(tmp_path / "named")
    assert (store.class_names, store.attribute_names) == (("dog", "Straße"), ("red",))


@pytest.mark.parametrize("name", ["manifest.json", "shard-00000.json"])
def test_a_file_without_a_detector_is_named(tmp_path: Path, name: str) -> None:
    write(tmp_path)
    finish_store(tmp_path)
    (tmp_path / name).write_text('{"version": 1, "shard": 0, "records": 5}')
    message = re.escape(f"{tmp_path / name}: has no `detector`")
    with pytest.raises(StoreError, match=message):
        RegionStoreWriter(tmp_path, DETECTOR)
    with pytest.raises(StoreError, match=message):
        RegionStore(tmp_path) if name == "manifest.json" else finish_store(tmp_path)


def test_a_detector_without_a_feature_width_is_named(tmp_path: Path) -> None:
    write(tmp_path, detector={"architecture": "a file"})
    finish_store(tmp_path)
    with pytest.raises(StoreError, match=r"manifest\.json: `feature_width` of the detector is None, expected a number"):
        assert RegionStore(tmp_path).feature_width


def test_a_reader_forgets_what_it_has_verified_before_that_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_REMEMBERED", 3)
    written = write(tmp_path, count=8)
    finish_store(tmp_path)
    store = RegionStore(tmp_path)
    for key in written:
        store.get(key)
        assert len(store._verified) <= 3


READS, READERS = 50_000, 4


def read_many(folder: Path) -> None:
    """A worker of a loader: reads far more images than it has seen, with new strings as keys, and says what it grew by."""
    store = RegionStore(folder)
    names = list(store.keys())
    for key in names[:100]:
        store.get(key)
    before, total = private_memory(), 0.0
    for number in range(READS):
        total += float(store.get(bytes(names[number], "ascii").decode()).features_RF[0, 0])
    print(private_memory() - before, total)


def private_memory() -> int:
    """Bytes of this process alone. Pages of the store's files are the page cache's: the system takes them back as it likes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon:")))


def test_memory_stays_flat_over_many_reads_in_four_workers(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    regions = [random_regions(rng, count) for count in (1, 2, 3)]
    with RegionStoreWriter(tmp_path, DETECTOR) as writer:
        for number in range(READS):
            writer.write(f"train2014/COCO_train2014_{number:012}.jpg", regions[number % 3])
    finish_store(tmp_path)
    readers, outputs, growth = [], [], []
    for _ in range(READERS):
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            with os.fdopen(write_end, "w") as sys.stdout:
                read_many(tmp_path)
            os._exit(0)
        os.close(write_end)
        readers.append(child)
        outputs.append(read_end)
    for child, output in zip(readers, outputs, strict=True):
        with os.fdopen(output) as file:
            growth.append(int(file.read().split()[0]))
        assert os.waitpid(child, 0)[1] == 0
    assert sum(growth) < 50 << 20, f"{growth} bytes"
    print(growth)


def test_bytes_on_disk_are_what_the_documents_say(tmp_path: Path) -> None:
    """The formulas of docs/regions.md, on a store as published detectors make it: 2,048 numbers, 16 classes."""
    rng = np.random.default_rng(0)
    counts = [10, 36, 50, 64, 100] * 30
    with RegionStoreWriter(tmp_path, DETECTOR) as writer:
        for number, count in enumerate(counts):
            writer.write(f"{number:06}.jpg", random_regions(rng, count, width=2048, kept=16))
            if number % 8 == 7:
                writer.flush()
    records = [len(encode_regions(random_regions(rng, count, width=2048, kept=16))) for count in counts]
    assert [round(32 + 4180 * count) for count in counts] == [pytest.approx(size, abs=14) for size in records]
    pages = sum(-(-(size + 16) // 4096) for size in records)
    assert pages * 4096 <= (tmp_path / "shard-00000/data.mdb").stat().st_size <= pages * 4096 * 1.02
