"""Retrieved neighbours as data: what `tools/find_neighbours.py` writes and the loader reads.

A folder of arrays; N pairs, M images of pairs, I images and Q sentences that can be found, K and J neighbours at most:

    manifest.json        format, version, how it was made, the regions stores of the images that can be found
    pairs.npy            uint64 [N], `rewrites.pair_digest(image, text)` of each pair, in the order of the captions file
    pair_images.npy      int32 [N], which row of image_rows.npy belongs to the pair's image
    image_rows.npy       int32 [M, K], numbers of found images, best first; -1 where there are no more
    image_scores.npy     float16 [M, K]
    text_rows.npy        int32 [N, J], numbers of found sentences, best first; -1 where there are no more
    text_scores.npy      float16 [N, J]
    found_images.jsonl   I lines `[store, key]`: the number of a store in the manifest, and the image's key there
    sentences.txt        Q lines, UTF-8
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unimo_ds.errors import DataError

VERSION = 1
_ARRAYS = {
    "pairs": np.uint64,
    "pair_images": np.int32,
    "image_rows": np.int32,
    "image_scores": np.float16,
    "text_rows": np.int32,
    "text_scores": np.float16,
}


@dataclass(frozen=True)
class Neighbours:
    """A folder of neighbours, memory-mapped; shapes as in the module's docstring."""

    folder: Path
    manifest: dict[str, Any]
    pairs: npt.NDArray[np.uint64]
    pair_images: npt.NDArray[np.int32]
    image_rows: npt.NDArray[np.int32]
    image_scores: npt.NDArray[np.float16]
    text_rows: npt.NDArray[np.int32]
    text_scores: npt.NDArray[np.float16]

    @property
    def stores(self) -> list[Path]:
        """The regions stores of the images that can be found."""
        return [Path(store) for store in self.manifest["stores"]]

    def found_images(self) -> Iterator[tuple[int, str]]:
        """`(number of the store, key)` of each image that can be found.

        Raises:
            DataError: a line is no such pair; names file and line.
        """
        path = self.folder / "found_images.jsonl"
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    store, key = json.loads(line)
                    yield int(store), str(key)
                except (ValueError, TypeError) as error:
                    raise DataError(f"{path}:{number}: expected [store, key], found {line.strip()[:60]!r} ({error})") from error

    def sentences(self) -> Iterator[str]:
        """Each sentence that can be found."""
        with (self.folder / "sentences.txt").open(encoding="utf-8", newline="\n") as lines:
            for line in lines:
                yield line.rstrip("\n")


def open_neighbours(folder: Path) -> Neighbours:
    """Opens a finished folder.

    Raises:
        DataError: it is not finished, is of another version, or its arrays do not fit each other.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if manifest.get("version") != VERSION:
            raise DataError(f"{folder / 'manifest.json'}: version {manifest.get('version')!r}, this program reads {VERSION}")
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(
            f"{folder}: not a finished folder of neighbours ({error}). Run tools/find_neighbours.py to the end."
        ) from error
    found = Neighbours(folder, manifest, **arrays)
    if not isinstance(manifest.get("stores"), list):
        raise DataError(f"{folder / 'manifest.json'}: names no regions stores. Run tools/find_neighbours.py again.")
    if not len(found.pairs) == len(found.pair_images) == len(found.text_rows):
        raise DataError(
            f"{folder}: pairs.npy, pair_images.npy and text_rows.npy differ in length. Run tools/find_neighbours.py again."
        )
    return found


def write_neighbours(
    folder: Path,
    manifest: dict[str, Any],
    arrays: dict[str, npt.NDArray[Any]],
    found_images: Iterable[tuple[int, str]],
    sentences: Iterable[str],
) -> None:
    """Writes a folder under another name and renames it when it is whole; an earlier one of that name is replaced.

    Args:
        folder: where it will be.
        manifest: how it was made; must hold `stores`, a list of paths.
        arrays: the arrays of the module's docstring, by name.
        found_images, sentences: see there; a sentence must not hold a line break.

    Raises:
        DataError: there is something else under that name, which is left alone.
    """
    if folder.exists() and not (folder / "manifest.json").exists() and (folder.is_file() or any(folder.iterdir())):
        raise DataError(f"{folder}: exists, and is no folder of neighbours; choose another name")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        _write(temporary, manifest, arrays, found_images, sentences)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be written: {error.strerror or error}. Make room, or choose another folder."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write(
    temporary: Path,
    manifest: dict[str, Any],
    arrays: dict[str, npt.NDArray[Any]],
    found_images: Iterable[tuple[int, str]],
    sentences: Iterable[str],
) -> None:
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name, dtype in _ARRAYS.items():
        np.save(temporary / f"{name}.npy", np.asarray(arrays[name], dtype))
    with (temporary / "found_images.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps([store, key]) + "\n" for store, key in found_images)
    with (temporary / "sentences.txt").open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(sentence + "\n" for sentence in sentences)
    content = {"format": "unimo_ds neighbours", "version": VERSION, **manifest}
    (temporary / "manifest.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
