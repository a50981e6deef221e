"""The folder of neighbours: what is written is read back, and what is not whole is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unimo_ds.errors import DataError
from unimo_ds.neighbours import open_neighbours, write_neighbours

ARRAYS: dict[str, Any] = {
    "pairs": [2**64 - 1, 5, 7],
    "pair_images": [0, 0, 1],
    "image_rows": [[1, 0], [-1, -1]],
    "image_scores": [[0.75, 0.5], [0, 0]],
    "text_rows": [[0], [2], [-1]],
    "text_scores": [[7.5], [0.25], [0]],
}
IMAGES = [(0, "a/ü.jpg"), (1, 'b "c".jpg')]
SENTENCES = ["A cup is a vessel.", "Él llegó \u2028 tarde.", "  Spaces stay.  "]


def write(folder: Path, **changes: Any) -> None:
    arrays = {name: np.array(value, "u8" if name == "pairs" else None) for name, value in {**ARRAYS, **changes}.items()}
    write_neighbours(folder, {"stores": ["one", "two"], "by": "a test"}, arrays, IMAGES, SENTENCES)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    write(tmp_path / "found")
    found = open_neighbours(tmp_path / "found")
    for name, value in ARRAYS.items():
        assert getattr(found, name).tolist() == value, name
    assert (found.image_rows.dtype, found.text_scores.dtype) == (np.int32, np.float16)
    assert list(found.found_images()) == IMAGES and list(found.sentences()) == SENTENCES
    assert found.stores == [Path("one"), Path("two")] and found.manifest["by"] == "a test"
    assert [path.name for path in tmp_path.iterdir()] == ["found"]


def test_written_again_it_is_another_whole(tmp_path: Path) -> None:
    write(tmp_path / "found")
    write(tmp_path / "found", text_rows=[[1], [1], [1]])
    assert open_neighbours(tmp_path / "found").text_rows.tolist() == [[1], [1], [1]]
    assert [path.name for path in tmp_path.iterdir()] == ["found"]


def test_a_failure_while_writing_leaves_the_earlier_one(tmp_path: Path) -> None:
    write(tmp_path / "found")

    def broken() -> Any:
        yield (0, "a.jpg")
        raise OSError("no space left on the device")

    arrays = {name: np.zeros((0, 0)) for name in ARRAYS}
    with pytest.raises(DataError, match="cannot be written: no space left"):
        write_neighbours(tmp_path / "found", {"stores": []}, arrays, broken(), [])
    assert list(open_neighbours(tmp_path / "found").found_images()) == IMAGES


@pytest.mark.parametrize("lost", ["manifest.json", "pairs.npy", "text_scores.npy"])
def test_an_unfinished_folder_is_refused(tmp_path: Path, lost: str) -> None:
    write(tmp_path / "found")
    (tmp_path / "found" / lost).unlink()
    with pytest.raises(DataError, match=r"found: not a finished folder of neighbours .*find_neighbours\.py to the end"):
        open_neighbours(tmp_path / "found")


@pytest.mark.parametrize("content", ["{", "[]", ""])
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    write(tmp_path / "found")
    (tmp_path / "found/manifest.json").write_text(content)
    with pytest.raises(DataError, match="not a finished folder of neighbours"):
        open_neighbours(tmp_path / "found")


def test_another_version_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "found")
    manifest = json.loads((tmp_path / "found/manifest.json").read_text())
    (tmp_path / "found/manifest.json").write_text(json.dumps({**manifest, "version": 99}))
    with pytest.raises(DataError, match="version 99, this program reads 1"):
        open_neighbours(tmp_path / "found")


def test_arrays_of_different_pairs_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "found", text_rows=[[1]])
    with pytest.raises(DataError, match="differ in length"):
        open_neighbours(tmp_path / "found")


@pytest.mark.parametrize("line", ["{", '["a", "b"]', "[1]", "3", "null"])
def test_a_found_image_that_is_none_is_named_with_its_line(tmp_path: Path, line: str) -> None:
    write(tmp_path / "found")
    (tmp_path / "found/found_images.jsonl").write_text(f'[0, "a.jpg"]\n{line}\n')
    with pytest.raises(DataError, match=r"found_images\.jsonl:2: expected \[store, key\]"):
        list(open_neighbours(tmp_path / "found").found_images())
