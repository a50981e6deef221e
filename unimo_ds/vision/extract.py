"""Runs a detector over many images: decoding in other processes, batches of one resized size, failures stepped over."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from unimo_ds.errors import UnimoError
from unimo_ds.failures import Failure
from unimo_ds.progress import Progress
from unimo_ds.regions import Regions
from unimo_ds.vision.detector import Detector
from unimo_ds.vision.image_sources import Item

MOST_PIXELS = 100_000_000
"""Larger pictures are refused by their header: decoded, they would take the memory of the whole job (300 MB and more)."""
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000")  # by content; no others, which may start programs
_MOST_HELD = 1 << 30  # bytes of decoded images that wait for others of their size
_AHEAD = 2  # decoded images a decoding process has ready
REFUSED = "the detector refused it"

Pixels = npt.NDArray[np.uint8]
Size = tuple[int, int]
Write = Callable[[list[tuple[str, Regions]]], None]


class ImageError(Exception):
    """One image cannot be used; the message says why, the kind of problem before its first colon."""


@dataclass(frozen=True)
class _Decoded:
    """What a decoding process sends back: the pixels [H, W, 3], or in their place the reason for having none.

    As an array, which goes through a pipe: a tensor would go through shared memory, of which containers have little.
    """

    pixels_HW3: Pixels | None
    reason: str = ""


@dataclass(frozen=True)
class _Member:
    """An image of known size in its group; without pixels when its regions are stored already."""

    item: Item
    size: Size
    pixels_HW3: Pixels | None


@dataclass
class _Group:
    """Images of one batch shape that wait for more."""

    members: list[_Member] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """What they would take decoded, stored ones too: groups must not depend on what is stored."""
        return sum(3 * height * width for height, width in (member.size for member in self.members))


def read_image(path: Path) -> Tensor:
    """The picture as uint8 RGB [3, H, W], in the pixel order of the file (an EXIF rotation is not applied, as in COCO).

    Raises:
        ImageError: as `decode_image`.
    """
    return as_tensor(_read(Item(path.name, str(path))))


def decode_image(file: BinaryIO) -> Pixels:
    """The first frame of a picture as RGB [H, W, 3]; transparency is dropped, 16 bits of grey become 8, CMYK is converted.

    Raises:
        ImageError: empty, damaged, no picture, larger than `MOST_PIXELS`, or of pixels without a known range.
    """
    try:
        with Image.open(file, formats=_FORMATS) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise ImageError(f"too large: {picture.width}x{picture.height} pixels; at most {MOST_PIXELS:,} are read")
            return as_rgb(picture)
    except ImageError:
        raise
    except (Image.DecompressionBombError, MemoryError) as error:
        raise ImageError(f"too large: {error}") from error
    except UnidentifiedImageError as error:
        file.seek(0)
        reason = f"no picture: none of {', '.join(_FORMATS)}" if file.read(1) else "empty file: it has no bytes"
        raise ImageError(reason) from error
    except Exception as error:  # Pillow's decoders raise almost anything on damaged files: struct.error, KeyError, ...
        kind = "truncated" if "truncated" in str(error).lower() else "damaged"
        raise ImageError(f"{kind}: {type(error).__name__}: {error}") from error


def as_rgb(picture: Image.Image) -> Pixels:
    """The first frame of an opened picture, as `decode_image` gives it.

    Raises:
        ImageError: pixels without a known range.
    """
    if picture.mode.startswith("I;16") or picture.mode == "I":  # Pillow's own conversion would cut off all above 255
        grey_HW = np.array(picture).astype(np.int64)
        if grey_HW.min() < 0 or grey_HW.max() > 0xFFFF:
            raise ImageError(f"unknown range: grey from {grey_HW.min()} to {grey_HW.max()}; at most 16 bits are read")
        return np.repeat((grey_HW >> 8).astype(np.uint8)[..., None], 3, axis=2)
    if picture.mode == "F":
        raise ImageError("unknown range: pixels are floating-point numbers")
    return np.array(picture.convert("RGB"))


def as_tensor(pixels_HW3: Pixels) -> Tensor:
    """Pixels as a detector takes them, [3, H, W]."""
    return torch.from_numpy(pixels_HW3).permute(2, 0, 1).contiguous()


def _read(item: Item) -> Pixels:
    try:
        file = item.open()
    except FileNotFoundError as error:
        raise ImageError(f"missing: {error.strerror}") from error
    except OSError as error:
        raise ImageError(f"cannot be opened: {error.strerror}") from error
    with file:
        return decode_image(file)


def extract(
    images: Sequence[Item],
    detector: Detector,
    write: Write,
    stored_size: Callable[[str], Size | None] = lambda key: None,
    *,
    batch: int = 8,
    workers: int = 1,
    look_ahead: int = 64,
    show_progress: bool = True,
) -> list[Failure]:
    """Detects the regions of every image that is not stored, and hands each batch to `write`, in an order that never varies.

    Convolutions may differ in the last bit with the batch that an image is in. So that a run that was stopped ends in the same
    bytes as one that was not, the groups depend on the images and their sizes alone: stored images keep their place in them,
    and a group of stored images is skipped.

    Args:
        images: each once.
        write: is called with every batch, once for each image that could be read.
        stored_size: height and width of an image whose regions are there already (resuming), else None.
        batch: images of one batch shape that run together.
        workers: decoding processes; 0 decodes in this one.
        look_ahead: images held back, at most, while waiting for others of their size.

    Returns:
        The images that were stepped over: unreadable, too large, or refused by the detector.

    Raises:
        UnimoError: the system ended a decoding process.
    """
    sizes = [stored_size(item.key) for item in images]
    waiting = [item for item, size in zip(images, sizes, strict=True) if size is None]
    failures: list[Failure] = []
    if not waiting:
        return failures
    with Progress("extracting regions", len(waiting), "images", show_progress) as progress:

        def fail(item: Item, reason: str) -> None:
            failures.append(Failure(item.key, item.place, reason))
            progress.advance(1, f"{len(failures):,} failed")

        known = _with_sizes(images, sizes, _decode(waiting, workers), fail)
        for group in _groups(known, detector, batch, look_ahead):
            found = _detect([member for member in group if member.pixels_HW3 is not None], detector, fail)
            if found:
                write(found)
                progress.advance(len(found), f"{len(failures):,} failed" if failures else "")
    return failures


class _Decoding(Dataset[_Decoded]):
    """Decoding as a dataset, for `DataLoader`'s processes and their order."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> _Decoded:
        try:
            return _Decoded(_read(self.items[index]))
        except ImageError as error:
            return _Decoded(None, str(error))


def _decode(items: Sequence[Item], workers: int) -> Iterator[_Decoded]:
    ahead = _AHEAD if workers else None
    try:
        yield from DataLoader(
            _Decoding(items),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=ahead,
            worker_init_fn=end_with_parent if workers else None,
        )
    except RuntimeError as error:
        if _is_lost_decoder(error):
            raise _lost_decoder(error) from error
        raise


def end_with_parent(number: int = 0) -> None:
    """Sees that this process (worker `number`) ends when the one that started it is killed.

    A decoding process that waits to hand over a picture would wait for ever; a local process would keep its shard's lock.
    """
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _is_lost_decoder(error: RuntimeError) -> bool:
    return "DataLoader worker" in str(error)


def _lost_decoder(error: RuntimeError) -> UnimoError:
    return UnimoError(
        f"a decoding process was ended by the system, most often for want of memory ({str(error).splitlines()[0]}). "
        "What was extracted is kept. Start again, with fewer --workers or --processes if memory is short."
    )


def _with_sizes(
    images: Sequence[Item], sizes: Sequence[Size | None], decoded: Iterator[_Decoded], fail: Callable[[Item, str], None]
) -> Iterator[_Member]:
    """The images in their order, stored ones without pixels; those that cannot be read are left out."""
    for item, size in zip(images, sizes, strict=True):
        if size is not None:
            yield _Member(item, size, None)
            continue
        found = next(decoded)
        if found.pixels_HW3 is None:
            fail(item, found.reason)
        else:
            height, width, _ = found.pixels_HW3.shape
            yield _Member(item, (height, width), found.pixels_HW3)


def _groups(members: Iterator[_Member], detector: Detector, batch: int, look_ahead: int) -> Iterator[list[_Member]]:
    """Lists of at most `batch` images of one batch shape; how they are made depends on sizes and order only."""
    held: dict[Size, _Group] = {}
    for member in members:
        shape = detector.batch_shape(*member.size)
        held.setdefault(shape, _Group()).members.append(member)
        if len(held[shape].members) == batch:
            yield held.pop(shape).members
        while (
            sum(len(group.members) for group in held.values()) >= look_ahead
            or sum(group.bytes for group in held.values()) > _MOST_HELD
        ):
            yield held.pop(next(iter(held))).members  # the shape that has waited longest
    for group in held.values():
        yield group.members


def _detect(members: Sequence[_Member], detector: Detector, fail: Callable[[Item, str], None]) -> list[tuple[str, Regions]]:
    """A batch that the detector refuses (out of memory, a picture of one row) is tried again image by image."""
    if not members:
        return []
    try:
        images = [as_tensor(member.pixels_HW3) for member in members if member.pixels_HW3 is not None]
        return list(zip([member.item.key for member in members], detector.detect(images), strict=True))
    except RuntimeError as error:
        if _is_lost_decoder(error):  # torch reports it in whatever the main thread is doing
            raise _lost_decoder(error) from error
        if _is_lost_device(error):
            raise
        if len(members) == 1:
            fail(members[0].item, f"{REFUSED}: {error}")
            return []
    return [found for member in members for found in _detect([member], detector, fail)]


def _is_lost_device(error: RuntimeError) -> bool:
    """A GPU that failed would refuse all that follows: that is no failure of one image."""
    return not isinstance(error, torch.OutOfMemoryError) and "CUDA error" in str(error)
