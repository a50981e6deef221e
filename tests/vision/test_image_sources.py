"""What counts as an image, under which key, and where its bytes are read from."""

import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from unimo_ds.errors import DataError
from unimo_ds.vision.image_sources import Item, find_images


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def write_files(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def keys(source: Path | list[Path], root: Path | None = None) -> list[str]:
    return [item.key for item in find_images(source, root)]


def contents(source: Path | list[Path]) -> dict[str, bytes]:
    found = {}
    for item in find_images(source):
        with item.open() as file:
            found[item.key] = file.read()
    return found


def test_a_folder_gives_the_images_below_it_in_a_fixed_order(tmp_path: Path) -> None:
    write_files(tmp_path, "b/2.JPG", "a/z.png", "a/deep/1.webp", "3.jpeg", "notes.txt", "a/jpg")
    assert keys(tmp_path) == ["3.jpeg", "a/z.png", "a/deep/1.webp", "b/2.JPG"]
    assert contents(tmp_path)["a/z.png"] == b"a/z.png"


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, "a/1.jpg", "b/2.jpg")
    scan = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match="b: cannot be listed: Permission denied"):
        keys(tmp_path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (["x/1.jpg", "2.jpg", "x/1.jpg"], ["x/1.jpg", "2.jpg"]),
        ({"images": [{"id": 4, "file_name": "1.jpg"}]}, ["1.jpg"]),
        ({"images": [{"filepath": "val2014", "filename": "v.jpg", "cocoid": 1}]}, ["val2014/v.jpg"]),
        ({"images": [{"filename": "1000092795.jpg", "imgid": 0}]}, ["1000092795.jpg"]),
    ],
    ids=["plain", "coco", "karpathy", "flickr30k"],
)
def test_lists_in_json(tmp_path: Path, content: object, expected: list[str]) -> None:
    path = tmp_path / "list.json"
    path.write_text(json.dumps(content))
    found = list(find_images(path, tmp_path / "root"))
    assert found == [Item(key, f"{tmp_path}/root/{key}") for key in expected]
    with pytest.raises(DataError, match="--images-root"):
        keys(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"images": [{"id": 3}]}', r"\{'id': 3\} names no file; expected a name, or an object with `file_name`"),
        ('{"images": []}', "no images found; expected a list of names"),
        ('{"annotations": []}', "no images found"),
        ('"1.jpg"', "no images found"),
        ("[3]", "3 names no file"),
        ("[", "cannot be read as JSON"),
    ],
)
def test_a_list_that_cannot_be_used_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "list.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        keys(path, tmp_path)


def test_tars_are_read_in_place_by_file_folder_pattern_and_list(tmp_path: Path) -> None:
    first = {"./000.jpg": b"zero", "000.json": b"{}", "d/001.png": b"one" * 400}
    second = {f"{'long/' * 30}002.jpg": b"two", "empty.jpg": b""}
    write_tar(tmp_path / "s/0.tar", first)
    write_tar(tmp_path / "s/1.tar", second)
    write_files(tmp_path, "s/0.parquet")
    both = {"000.jpg": b"zero", "d/001.png": b"one" * 400, f"{'long/' * 30}002.jpg": b"two", "empty.jpg": b""}
    assert contents(tmp_path / "s/0.tar") == {key: both[key] for key in ("000.jpg", "d/001.png")}
    for source in (tmp_path / "s", tmp_path / "s/*.tar", [tmp_path / "s/1.tar", tmp_path / "s/0.tar"]):
        assert contents(source) == both
    item = next(find_images(tmp_path / "s"))
    assert item.place == f"{tmp_path}/s/0.tar:000.jpg"


def test_of_a_member_that_is_twice_in_a_tar_the_last_counts(tmp_path: Path) -> None:
    for content in (b"old", b"new"):
        with tarfile.open(tmp_path / "a.tar", "a") as tar:
            member = tarfile.TarInfo("1.jpg")
            member.size = 3
            tar.addfile(member, io.BytesIO(content))
    assert contents(tmp_path / "a.tar") == {"1.jpg": b"new"}


def test_a_member_in_two_tars_names_both(tmp_path: Path) -> None:
    for name in ("0.tar", "1.tar"):
        write_tar(tmp_path / name, {"same.jpg": b"x"})
    with pytest.raises(DataError, match=r"same\.jpg: is in two tars, .*0\.tar and .*1\.tar"):
        keys(tmp_path)


def test_a_folder_with_both_images_and_tars_asks_which(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {"1.jpg": b"x"})
    write_files(tmp_path, "1.jpg")
    with pytest.raises(DataError, match=r"holds images \(.*1\.jpg\) and tars \(.*0\.tar\); which are meant"):
        keys(tmp_path)
    assert keys(tmp_path / "*.tar") == ["1.jpg"]


@pytest.mark.parametrize(("start", "program"), [(b"\x1f\x8b\x08\x00", "gunzip"), (b"\x28\xb5\x2f\xfd", "unzstd")])
def test_a_compressed_tar_is_refused_with_the_command(tmp_path: Path, start: bytes, program: str) -> None:
    (tmp_path / "a.tar.gz").write_bytes(start + bytes(600))
    with pytest.raises(DataError, match=rf"a\.tar\.gz: is compressed.*First: {program} "):
        keys(tmp_path)


def test_a_tar_that_is_damaged_anywhere_is_refused(tmp_path: Path) -> None:
    """`tarfile` by itself takes a damaged header for the end, and the rest of the images would be missed in silence."""
    write_tar(tmp_path / "whole.tar", {f"{number}.jpg": b"x" * 700 for number in range(4)})
    whole = (tmp_path / "whole.tar").read_bytes()
    member = 3 * tarfile.BLOCKSIZE
    damaged = {
        "first header": b"y" * 100 + whole[100:],
        "third header": whole[: 2 * member] + b"y" * 100 + whole[2 * member + 100 :],
        "cut in a header": whole[: 2 * member + 100],
        "cut in an image": whole[: 3 * member + 600],
        "no tar": b"hello " * 1000,
        "nothing": b"",
    }
    path = tmp_path / "a.tar"
    for case, content in damaged.items():
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.tar: is damaged, cut short or no tar"):
            raise AssertionError(f"{case}: {keys(path)}")


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    for source in (tmp_path / "nowhere", tmp_path / "*.tar", tmp_path / "nowhere.tar"):
        with pytest.raises(DataError, match="no such folder or file of images"):
            keys(source)
    with pytest.raises(DataError, match="no images found; looked for"):
        keys(tmp_path)
    write_tar(tmp_path / "texts.tar", {"a.txt": b"x"})
    with pytest.raises(DataError, match=r"texts\.tar: no images found"):
        keys(tmp_path)
    with pytest.raises(DataError, match="is no tar; several sources at once"):
        keys([tmp_path, tmp_path / "texts.tar"])


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (item,) = find_images(tmp_path)
    with pytest.raises(OSError, match="no regular file"):
        item.open()


def test_one_image_is_no_list(tmp_path: Path) -> None:
    write_files(tmp_path, "a.jpg")
    with pytest.raises(DataError, match=r"a\.jpg: is one image; name the folder"):
        keys(tmp_path / "a.jpg")
