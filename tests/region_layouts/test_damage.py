"""Damage costs one image and says where and what it is; a file that is no table of regions at all is one clear error."""

import gzip
import io
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import lmdb
import msgpack
import numpy as np
import pytest

from tests.region_layouts.published_files import PUBLISHED, Images, b64, detected
from unimo_ds.errors import DataError
from unimo_ds.region_layouts import Damage, ReadOptions, open_layout

THREE = {str(key): detected(key, 4) for key in (1, 2, 3)}
CANVAS = ReadOptions(nominal_canvas=True)
# A damaged page of LMDB can end the process, a damaged heap of variable-length HDF5 can occupy it for ever.
UNGUARDED = ("uniter_lmdb", "vilbert_lmdb", "nocaps_hdf5")
Field = Callable[[list[bytes]], None]


def read(path: Path, layout: str | None = None, options: ReadOptions | None = None) -> tuple[list[str], list[Damage]]:
    damages: list[Damage] = []
    keys = [key for key, _ in open_layout(path, layout, options).read(damages.append)]
    return keys, damages


def damaged_table(path: Path, number: int, change: Field, images: Images = THREE, name: str = "bottom-up") -> Path:
    """A table of which the columns of one line, counted from 0, are changed."""
    PUBLISHED[name].write(path, images)
    lines = path.read_bytes().splitlines()
    fields = lines[number].split(b"\t")
    change(fields)
    lines[number] = b"\t".join(fields)
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def put(column: int, content: bytes) -> Field:
    return lambda fields: fields.__setitem__(column, content)


def cut(column: int, length: int) -> Field:
    return lambda fields: fields.__setitem__(column, fields[column][:-length])


def array(column: int, values: object) -> Field:
    return put(column, b64(np.array(values, np.float32)).encode())


BOX = [10, 10, 100, 100]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (cut(5, 1), r"features: damaged base64 of \d+ characters \(Incorrect padding"),
        (put(5, b"!" * 172), r"features: damaged base64 of 172 characters \(Only base64 data is allowed"),
        (cut(5, 4), r"features: 126 bytes; expected a multiple of 16 \(4 boxes\)"),
        (cut(4, 32), r"boxes: 42 bytes; expected 64 \(4 x 4 float32\)"),
        (put(3, b"5"), r"boxes: 64 bytes; expected 80 \(5 x 4 float32\)"),
        (put(3, b"0"), "num_boxes is '0'; expected a whole number of at least 1"),
        (put(1, b"wide"), "image width is 'wide'; expected a whole number of at least 1"),
        (put(2, b"-3"), "image height is '-3'"),
        (put(2, b"nan"), "image height is 'nan'"),
        (put(2, b"inf"), "image height is 'inf'"),
        (lambda fields: fields.pop(), "5 columns; expected 6: image_id, image_w, image_h, num_boxes, boxes, features"),
        (
            array(4, [BOX, BOX, BOX, [0, 0, 700, 10]]),
            r"box 3, \(0\.0, 0\.0, 700\.0, 10\.0\), lies outside its .* 640x427",
        ),
        (array(4, [BOX, [-2, 0, 9, 9], BOX, BOX]), r"box 1, \(-2\.0, .*outside"),
        (array(4, [[50, 10, 40, 20], BOX, BOX, BOX]), "box 0 is .*expected x1 <= x2 and y1 <= y2"),
        (array(4, [BOX, BOX, BOX, [0, 0, np.nan, 1]]), "a box is not finite"),
        (array(5, [[0, 1], [np.nan, 0], [1, 1], [2, 2]]), "a feature is nan; expected finite numbers"),
        (array(5, [[0, 1], [1e6, 0], [1, 1], [2, 2]]), "a feature is 1000000.0; expected finite numbers of at most 65504"),
    ],
)
def test_a_damaged_row_is_stepped_over_and_named(change: Field, reason: str, tmp_path: Path) -> None:
    path = damaged_table(tmp_path / "a.tsv", 1, change)
    start = path.read_bytes().index(b"\n") + 1
    keys, damages = read(path)
    assert keys == ["1", "3"] and [damage.key for damage in damages] == ["2"]
    assert damages[0].where == f"{path}:2 (byte {start:,})"
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(damages[0].reason)
    with pytest.raises(DataError, match=rf"{path}:2 \(byte {start:,}\): image '2': "):
        list(open_layout(path))


def test_a_box_that_reaches_a_pixel_beyond_its_image_stays_as_it_is(tmp_path: Path) -> None:
    boxes = [BOX, BOX, BOX, [0, 0, 640.9, 427.5]]
    path = damaged_table(tmp_path / "a.tsv", 1, array(4, boxes))
    assert (dict(open_layout(path))["2"].boxes_R4 == np.array(boxes, np.float32)).all()


def test_an_empty_key_is_damage_and_an_empty_line_is_nothing(tmp_path: Path) -> None:
    path = damaged_table(tmp_path / "a.tsv", 1, put(0, b" "))
    path.write_bytes(path.read_bytes() + b"\n\r\n")
    keys, damages = read(path)
    assert keys == ["1", "3"] and "column image_id: empty" in damages[0].reason


def test_a_key_that_is_no_text_is_damage(tmp_path: Path) -> None:
    keys, damages = read(damaged_table(tmp_path / "a.tsv", 1, put(0, b"\xff\xfe")))
    assert keys == ["1", "3"] and "column image_id: 'utf-8'" in damages[0].reason


@pytest.mark.parametrize("length", [1, 3, 200])
def test_a_last_line_that_was_cut_says_so(length: int, tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    PUBLISHED["bottom-up"].write(path, THREE)
    path.write_bytes(path.read_bytes()[: -2 - length])
    keys, damages = read(path)
    assert keys == ["1", "2"] and "the file ends within this line: was it cut?" in damages[0].reason


def test_a_last_line_without_an_end_but_whole_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    PUBLISHED["bottom-up"].write(path, THREE)
    path.write_bytes(path.read_bytes().rstrip())
    assert read(path) == (["1", "2", "3"], [])


def test_a_gzipped_table_is_read_and_a_cut_one_is_an_error_after_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    noise = np.random.default_rng(0)
    images = {str(key): replace(one, features_RF=noise.random((4, 4096), np.float32)) for key, one in THREE.items()}
    PUBLISHED["bottom-up"].write(path, images)
    packed = tmp_path / "a.tsv.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read(packed) == (["1", "2", "3"], [])
    positions: list[int] = []
    list(open_layout(packed).read(advance=positions.append))
    assert positions == sorted(positions) and positions[-1] <= packed.stat().st_size
    packed.write_bytes(packed.read_bytes()[: -packed.stat().st_size // 5])
    found = []
    with pytest.raises(DataError, match=r"a\.tsv\.gz: damaged gzip after line 2 .*; "):
        for key, _ in open_layout(packed):
            found.append(key)
    assert found == ["1", "2"]


def test_lxmert_columns_are_checked_one_by_one(tmp_path: Path) -> None:
    for column, content, reason in (
        (3, b64(np.arange(3)), "objects_id: 24 bytes; expected 32"),
        (3, b64(np.array([0, 1, 2, 1600])), "class number 1601 of 1600"),
        (3, b64(np.array([0, 1, -2, 3])), "class number -1 of 1600"),
        (5, b64(np.array([0, 1, 2, 400])), "attribute number 401 of 400"),
        (4, b64(np.array([0.5, 1.5, 0.1, 0.1], np.float32)), "a class probability lies outside 0..1"),
        (6, b64(np.array([0.5, np.nan, 0.1, 0.1], np.float32)), "a attribute probability lies outside 0..1"),
        (6, b64(np.zeros(3, np.float32)), "attrs_conf: 12 bytes; expected 16"),
    ):
        path = damaged_table(tmp_path / "a.tsv", 1, put(column, content.encode()), name="LXMERT")
        keys, damages = read(path)
        assert keys == ["1", "3"] and reason in damages[0].reason


def test_ids_that_windows_wrote_are_read(tmp_path: Path) -> None:
    path = damaged_table(tmp_path / "a.tsv", 1, put(3, b64(np.array([5, 6, 7, 8], np.int32)).encode()), name="LXMERT")
    assert dict(open_layout(path))["2"].class_ids_RK[:, 0].tolist() == [6, 7, 8, 9]


def test_a_distribution_that_is_none_is_damage(tmp_path: Path) -> None:
    for values, reason in (
        (np.full((4, 1601), 0.01, np.float32), "the class probabilities of a box sum to 16.010"),
        (np.zeros((4, 7), np.float32), "7 class probabilities; expected 1601, background included"),
        (np.full((4, 1601), -0.5, np.float32), "a class lies outside 0..1"),
    ):
        path = damaged_table(tmp_path / "a", 1, put(6, b64(values).encode()), name="UNIMO")
        keys, damages = read(path, "unimo_tsv")
        assert keys == ["1", "3"] and reason in damages[0].reason


def test_width_and_height_the_wrong_way_round_are_told_by_the_boxes(tmp_path: Path) -> None:
    path = tmp_path / "test"
    PUBLISHED["UNIMO, height first"].write(path, THREE)
    with pytest.raises(DataError, match=r"no image could be read as unimo_tsv; 3 were tried.*width and height the other way"):
        list(open_layout(path, "unimo_tsv").read(lambda damage: None))
    squares = {"1": detected(1, 4, 300, 300)}
    PUBLISHED["UNIMO"].write(path, squares)
    with pytest.raises(DataError, match="the boxes of its first lines fit both orders of width and height; say --layout"):
        open_layout(path)
    PUBLISHED["UNIMO"].write(path, {"1": replace(detected(1), width=200, height=200)})
    with pytest.raises(DataError, match="fit neither order"):
        open_layout(path)
    path.write_text("a\tb\tc\td\te\tf\tg\n")
    with pytest.raises(DataError, match="none of its first lines has the columns img_filename, image_w, image_h"):
        open_layout(path)


@pytest.mark.parametrize("name", ["UNIMO captions", "UNIMO entailment"])
def test_a_damaged_line_among_those_of_one_image_costs_nothing(name: str, tmp_path: Path) -> None:
    path = tmp_path / "train"
    PUBLISHED[name].write(path, THREE)
    lines = path.read_bytes().splitlines()
    lines[1] = lines[1][:-40]
    path.write_bytes(b"\n".join(lines) + b"\n")
    keys, damages = read(path)
    assert set(keys) == {"1", "2", "3"} and len(damages) == 1 and f"{path}:2 " in damages[0].where


def test_a_file_in_which_nothing_can_be_read_is_one_error(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("".join(f"{number}\t640\t427\t4\tAAAA\tAAAA\n" for number in range(1000)))
    damages: list[Damage] = []
    with pytest.raises(DataError, match=r"a\.tsv: no image could be read as bottom_up_tsv; 20 were tried\. The first, '0' \("):
        list(open_layout(path).read(damages.append))
    assert damages == []


def test_damage_at_the_start_is_reported_when_the_layout_proves_right(tmp_path: Path) -> None:
    keys, damages = read(damaged_table(tmp_path / "a.tsv", 0, cut(5, 1)))
    assert keys == ["2", "3"] and [damage.key for damage in damages] == ["1"]


def test_files_that_are_no_regions_are_told_apart(tmp_path: Path) -> None:
    for content, message in (
        (b"", "is empty"),
        (b"hello world\n", "has 1 columns between tabs and 1 between semicolons, as no known layout"),
        (b"\x89HDF\r\n\x1a\n and then nothing", "cannot be read as HDF5"),
    ):
        path = tmp_path / "a"
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            open_layout(path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=r"neither data\.mdb nor \.npz, \.npy, \.json files in it"):
        open_layout(tmp_path / "folder")
    (tmp_path / "folder/manifest.json").write_text("{}")
    with pytest.raises(DataError, match="is a regions store already"):
        open_layout(tmp_path / "folder")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["pictures"] = 1
    with pytest.raises(DataError, match="HDF5 with pictures; no known layout"):
        open_layout(tmp_path / "b.h5")


def test_a_line_without_end_does_not_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    with path.open("wb") as file:
        file.write(b"1\t2\t3\t4\t5\t6")
        file.truncate(1 << 28)
    with pytest.raises(DataError, match="a line of more than 64 MB; this is no table of regions"):
        open_layout(path)


class Evil:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.path}",)

    def __init__(self, path: Path) -> None:
        self.path = path


def test_a_pickle_that_would_run_something_is_refused_before_it_does(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    PUBLISHED["ViLBERT"].write(tmp_path / "db", THREE)
    put_value(tmp_path / "db", b"2", pickle.dumps({"features": Evil(trace)}))
    keys, damages = read(tmp_path / "db")
    assert (
        keys == ["1", "3"] and "it asks for posix.system, which data does not need: nothing of it was run" in damages[0].reason
    )
    PUBLISHED["MILVLG"].write(tmp_path / "npz", THREE)
    np.savez(tmp_path / "npz/2.npz", x=np.zeros((4, 8)), bbox=THREE["2"].boxes_R4, info=Evil(trace))  # type: ignore[arg-type]
    keys, damages = read(tmp_path / "npz")
    assert keys == ["1", "3"] and "it asks for posix.system" in damages[0].reason
    index = tmp_path / "a_imgid2idx.pkl"
    PUBLISHED["BAN"].write(tmp_path / "a.hdf5", THREE)
    index.write_bytes(pickle.dumps(Evil(trace)))
    with pytest.raises(DataError, match=r"it asks for posix\.system"):
        list(open_layout(tmp_path / "a.hdf5"))
    index.unlink()
    with pytest.raises(DataError, match=r"a_imgid2idx\.pkl beside it cannot be read"):
        list(open_layout(tmp_path / "a.hdf5"))
    assert not trace.exists()


def test_damaged_values_of_databases_are_stepped_over(tmp_path: Path) -> None:
    for name in ("UNITER", "UNITER, compressed", "ViLBERT", "MMF LMDB"):
        path, key = tmp_path / name, b"2.npz" if name.startswith("UNITER") else b"2"
        PUBLISHED[name].write(path, THREE)
        with lmdb.open(str(path)) as env, env.begin() as transaction:
            value = transaction.get(key)
        for broken in (value[:-30], value[:40], b"", b"nonsense", msgpack.dumps({"norm_bb": 1}), pickle.dumps([1])):
            put_value(path, key, broken)
            keys, damages = read(path, options=CANVAS)
            assert keys == ["1", "3"] and [damage.key for damage in damages] == ["2"], (name, broken[:10])


def test_a_database_that_was_cut_is_an_error_not_the_end_of_the_process(tmp_path: Path) -> None:
    path = tmp_path / "db"
    PUBLISHED["UNITER"].write(path, {str(key): detected(key, 40) for key in range(20)})
    os.truncate(path / "data.mdb", (path / "data.mdb").stat().st_size // 2)
    for read_it in (open_layout, lambda path: list(open_layout(path, "uniter_lmdb"))):
        with pytest.raises(DataError, match=r"data\.mdb: was cut: [\d,]+ bytes of [\d,]+; fetch it again"):
            read_it(path)
    (path / "data.mdb").write_bytes(b"no database")
    with pytest.raises(DataError, match="cannot be read as LMDB"):
        open_layout(path)


def put_value(path: Path, key: bytes, value: bytes) -> None:
    with lmdb.open(str(path), map_size=1 << 28) as env, env.begin(write=True) as transaction:
        transaction.put(key, value)


def test_damaged_files_of_folders_are_stepped_over(tmp_path: Path) -> None:
    for name, suffix in (("MILVLG", ".npz"), ("UNITER npz", ".npz"), ("MMF npy", ".npy"), ("VL-BERT", ".json")):
        path = tmp_path / name
        PUBLISHED[name].write(path, THREE)
        victim = path / f"2{suffix}"
        content = victim.read_bytes()
        for broken in (content[: len(content) // 2], content[:20], b"", b"[1, 2]", b"\x93NUMPY\x01\x00"):
            victim.write_bytes(broken)
            keys, damages = read(path, options=CANVAS)
            assert keys == ["1", "3"] and [damage.key for damage in damages] == ["2"], (name, broken[:10])
            assert damages[0].where == str(victim)
        victim.unlink()
        victim.mkdir()


def test_a_folder_without_the_half_of_an_image_says_so(tmp_path: Path) -> None:
    PUBLISHED["MMF npy"].write(tmp_path / "npy", THREE)
    (tmp_path / "npy/2_info.npy").unlink()
    keys, damages = read(tmp_path / "npy")
    assert keys == ["1", "3"] and damages[0].reason == "cannot be read (No such file or directory)"


def test_boxes_that_do_not_imply_one_size_are_damage(tmp_path: Path) -> None:
    PUBLISHED["BAN"].write(tmp_path / "a.hdf5", THREE)
    with h5py.File(tmp_path / "a.hdf5", "r+") as file:
        file["spatial_features"][5] *= 0.9
    keys, damages = read(tmp_path / "a.hdf5")
    assert keys == ["1", "3"] and "do not imply one width of the image" in damages[0].reason


def test_an_hdf5_file_that_was_never_filled_to_its_end_gives_what_there_is(tmp_path: Path) -> None:
    PUBLISHED["BAN"].write(tmp_path / "a.hdf5", THREE)
    with h5py.File(tmp_path / "a.hdf5", "r+") as file:
        file["pos_boxes"][2] = 0, 0
    keys, damages = read(tmp_path / "a.hdf5")
    assert keys == ["1", "2"] and "never filled, or cut" in damages[0].reason
    (tmp_path / "a.hdf5").write_bytes((tmp_path / "a.hdf5").read_bytes()[:600])
    with pytest.raises(DataError, match="cannot be read as HDF5"):
        open_layout(tmp_path / "a.hdf5")


def test_vinvl_tables_must_go_line_by_line(tmp_path: Path) -> None:
    folder = tmp_path / "v"
    PUBLISHED["VinVL"].write(folder, THREE)
    predictions = folder / "predictions.tsv"
    lines = predictions.read_bytes().splitlines(keepends=True)
    predictions.write_bytes(b"".join([lines[0], lines[2], lines[1]]))
    with pytest.raises(DataError, match=r"features\.tsv:2 .*image '2', where .*predictions\.tsv has '3': they must go"):
        list(open_layout(folder))
    predictions.write_bytes(lines[0])
    with pytest.raises(DataError, match="has its end"):
        list(open_layout(folder))
    moved = lines[1].replace(b'"rect": [0.0', b'"rect": [50.0')
    assert moved != lines[1]
    predictions.write_bytes(b"".join([lines[0], moved, lines[2]]))
    keys, damages = read(folder)
    assert keys == ["1", "3"] and r"predictions.tsv has other boxes than features.tsv (by 0.078" in damages[0].reason


def test_numbers_of_rows_that_do_not_go_together_are_damage(tmp_path: Path) -> None:
    image = THREE["2"]
    for changes, reason in (
        ({"x": image.features_RF[:3]}, "3 rows of features for 4 boxes"),
        ({"bbox": image.boxes_R4[:, :3]}, "boxes have the shape 4x3; expected R x 4"),
        ({"x": image.features_RF.astype(complex)}, "features are complex128; expected numbers"),
        ({"num_bbox": 9}, "rows of"),
        ({"image_w": np.array([1, 2])}, "ValueError"),
    ):
        path = tmp_path / "npz"
        if not path.exists():
            PUBLISHED["MCAN"].write(path, THREE)
        arrays = {"x": image.features_RF, "bbox": image.boxes_R4, "num_bbox": 4, "image_w": 640, "image_h": 427}
        if "num_bbox" in changes:
            arrays["x"] = image.features_RF[:2]
        np.savez(path / "2.npz", **(arrays | changes))
        keys, damages = read(path)
        assert keys == ["1", "3"] and reason in damages[0].reason, damages


def test_gzip_is_told_by_its_content_not_by_its_name(tmp_path: Path) -> None:
    plain = io.BytesIO()
    path = tmp_path / "table"
    PUBLISHED["LXMERT"].write(path, THREE)
    with gzip.GzipFile(fileobj=plain, mode="wb") as stream:
        stream.write(path.read_bytes())
    path.write_bytes(plain.getvalue())
    assert open_layout(path).layout == "lxmert_tsv" and read(path) == (["1", "2", "3"], [])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", [name for name, kind in PUBLISHED.items() if kind.layout not in UNGUARDED])
def test_random_damage_never_ends_in_anything_but_a_data_error(name: str, tmp_path: Path) -> None:
    """Bytes are changed, taken out or put in anywhere in a file."""
    kind, rng = PUBLISHED[name], np.random.default_rng(sum(name.encode()))
    path = tmp_path / f"published{kind.suffix}"
    kind.write(path, THREE)
    files = sorted(file for file in tmp_path.rglob("*") if file.is_file())
    options, read_some = ReadOptions(sizes=dict.fromkeys(THREE, (640, 427)), nominal_canvas=True), 0
    for _ in range(25):
        victim = files[rng.integers(len(files))]
        content = victim.read_bytes()
        start, length = int(rng.integers(len(content))), int(rng.integers(1, 40))
        middle = [rng.bytes(length), b"", rng.bytes(length) + content[start : start + length]][rng.integers(3)]
        end = len(content) if rng.random() < 0.2 else start + length
        victim.write_bytes(content[:start] + middle + content[end:])
        try:
            keys, damages = read(path, kind.layout, options)
            read_some += bool(keys)
            assert len({*keys, *(damage.key for damage in damages)}) >= 1
        except DataError as error:
            assert str(tmp_path) in str(error)
        victim.write_bytes(content)
    assert read_some > 0
