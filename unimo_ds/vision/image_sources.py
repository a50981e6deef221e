"""Where images come from: folders, lists in JSON, and tar files that are read without unpacking.

An image is a key, which names its regions in a store, and a place that its bytes are read from. The key is the path below
the folder, the name in the list, or the member's name in its tar: with `/` and extension, as captions refer to it.
"""

import errno
import glob
import io
import os
import stat
import tarfile
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from unimo_ds.errors import DataError
from unimo_ds.vision.coco import read_json

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_COMPRESSED = {
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ": "unxz",
    b"\x28\xb5\x2f\xfd": "unzstd",
}


class Item(NamedTuple):
    """One image: its key, and the file that holds it; `size` bytes from `offset`, or with size -1 the whole file."""

    key: str
    path: str
    offset: int = 0
    size: int = -1

    @property
    def place(self) -> str:
        """For reports: the file, and the member of a tar."""
        return self.path if self.size < 0 else f"{self.path}:{self.key}"

    def open(self) -> BinaryIO:
        """Its bytes.

        Raises:
            OSError: the file is missing, or may not be read.
        """
        if self.size < 0:
            return _open_regular(self.path)
        with _open_regular(self.path) as file:
            file.seek(self.offset)
            return io.BytesIO(file.read(self.size))


def _open_regular(path: str) -> BinaryIO:
    """A file, and not a pipe or a device, whose reader could wait for ever."""
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "no regular file")
    return file


def find_images(source: Path | Sequence[Path], root: Path | None = None) -> Iterator[Item]:
    """Every image of `source` once, in an order that depends on the names alone, or as they are listed.

    Args:
        source: a folder, searched recursively for images, or, when it holds none, for tars; a JSON list of file names; a JSON
            file whose `images` have a `file_name` (COCO) or a `filename` and perhaps a `filepath` (Karpathy's splits); a tar;
            a pattern of tars, like `shards/*.tar`; or several tars.
        root: the folder that the names in a JSON file are relative to.

    Raises:
        DataError: no such source, nothing in it, a folder with both images and tars, a JSON file without `root`, a tar that
            is compressed or damaged, a member that is in two tars.
    """
    sources = [Path(source)] if isinstance(source, str | Path) else [Path(each) for each in source]
    tars = _listed_tars(sources)
    if tars is None and sources[0].is_dir():
        tars = yield from _in_folder(sources[0])
    elif tars is None:
        yield from _in_list(sources[0], root)
    if tars:
        yield from _in_tars(tars)


def _listed_tars(sources: Sequence[Path]) -> list[Path] | None:
    """The tars that were named, sorted; None: the one source is something else."""
    tars: list[Path] = []
    for source in sources:
        matches = [source] if source.exists() else [Path(name) for name in glob.glob(str(source), recursive=True)]
        if not matches:
            raise DataError(f"{source}: no such folder or file of images")
        tars += sorted(matches)
    others = [path for path in tars if path.is_dir() or not _is_tar_name(path)]
    if not others:
        return list(dict.fromkeys(tars))
    if len(tars) > 1:
        raise DataError(f"{others[0]}: is no tar; several sources at once are read only if all are tar files")
    return None


def _is_tar_name(path: Path) -> bool:
    return ".tar" in path.suffixes or path.suffix == ".tgz"


def _in_folder(folder: Path) -> Generator[Item, None, list[Path]]:
    """Yields the images below a folder; returns the tars, if there are only tars."""
    first, tars = None, []
    for place, folders, names in os.walk(folder, followlinks=True, onerror=_refuse_folder):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(place, name)
            if name.lower().endswith(SUFFIXES):
                first = first or path
                yield Item(os.path.relpath(path, folder).replace(os.sep, "/"), path)
            elif _is_tar_name(Path(name)):
                tars.append(Path(path))
    if first is not None and tars:
        raise DataError(
            f"{folder}: holds images ({first}) and tars ({min(tars)}); which are meant? "
            f"Name a folder of images alone, or the tars: '{folder}/**/*.tar' in quotes"
        )
    if first is None and not tars:
        raise DataError(f"{folder}: no images found; looked for {', '.join(SUFFIXES)} and .tar")
    return sorted(tars)


def _refuse_folder(error: OSError) -> None:
    raise DataError(f"{error.filename}: cannot be listed: {error.strerror}") from error


def _in_list(path: Path, root: Path | None) -> Iterator[Item]:
    if path.suffix.lower() in SUFFIXES:
        raise DataError(f"{path}: is one image; name the folder that it is in, or a JSON list")
    if root is None:
        raise DataError(f"{path}: a list of images needs --images-root, the folder its names are relative to")
    content = read_json(path)
    listed = content.get("images") if isinstance(content, dict) else content
    if not isinstance(listed, list) or not listed:
        raise DataError(f"{path}: no images found; expected a list of names, or an object with a list `images`")
    for name in dict.fromkeys(_name(path, entry) for entry in listed):
        yield Item(name, f"{root}/{name}")


def _name(path: Path, entry: Any) -> str:
    """The file name in one entry of a list."""
    name = entry
    if isinstance(entry, dict):
        name = entry.get("file_name", entry.get("filename"))
        if isinstance(name, str) and isinstance(entry.get("filepath"), str):
            name = f"{entry['filepath']}/{name}"
    if not isinstance(name, str) or not name:
        raise DataError(
            f"{path}: {entry!r:.200} names no file; expected a name, or an object with `file_name` (COCO), or with `filename` "
            "and perhaps `filepath` (Karpathy)"
        )
    return name


def _in_tars(tars: Sequence[Path]) -> Iterator[Item]:
    where: dict[str, Path] = {}
    for tar in tars:
        for item in _members(tar):
            before = where.setdefault(item.key, tar)
            if before is not tar:
                raise DataError(f"{item.key}: is in two tars, {before} and {tar}; a store has one image of a name")
            yield item
    if not where:
        raise DataError(f"{', '.join(map(str, tars[:3]))}: no images found; looked for members {', '.join(SUFFIXES)}")


def _members(tar: Path) -> Iterator[Item]:
    """The images in a tar, from its headers; of a member that is there twice the last, as tar itself unpacks it."""
    found: dict[str, Item] = {}
    try:
        with tar.open("rb") as file:
            start = file.read(8)
            program = next((each for magic, each in _COMPRESSED.items() if start.startswith(magic)), None)
            if program:
                raise DataError(f"{tar}: is compressed, and images are read from the middle of it. First: {program} {tar}")
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as opened:
                while (member := opened.next()) is not None:
                    opened.members = []  # type: ignore[attr-defined]  # tarfile keeps all of them otherwise
                    if member.isreg() and member.name.lower().endswith(SUFFIXES):
                        key = member.name.removeprefix("./")
                        found[key] = Item(key, str(tar), member.offset_data, member.size)
                file.seek(opened.offset)
                if any(file.read(tarfile.BLOCKSIZE)):  # tarfile takes a header that it cannot read for the end
                    raise tarfile.ReadError(f"no header at byte {opened.offset:,}")
    except tarfile.TarError as error:
        raise DataError(f"{tar}: is damaged, cut short or no tar ({error}); {len(found)} images were found in it") from error
    except OSError as error:
        raise DataError(f"{tar}: cannot be read: {error.strerror}") from error
    yield from found.values()
