"""Runs a detector over many images: decoding in other processes, batches of one resized size, failures stepped over."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from unimo_ds.progress import Progress
from unimo_ds.regions import Regions
from unimo_ds.vision.detector import Detector

MOST_PIXELS = 100_000_000
"""Larger pictures are refused by their header: decoded, they would take the memory of the whole job (300 MB and more)."""

Item = tuple[str, Path]
Write = Callable[[str, Regions], None]


class ImageError(Exception):
    """One image cannot be used; the message says why."""


@dataclass(frozen=True)
class Failure:
    """An image that was stepped over."""

    key: str
    path: str
    reason: str


@dataclass(frozen=True)
class _Decoded:
    """What a decoding process sends back: the picture, or in its place the reason for having none."""

    key: str
    path: str
    image: Tensor | None
    reason: str = ""


def read_image(path: Path) -> Tensor:
    """The picture as uint8 RGB [3, H, W], in the pixel order of the file (an EXIF rotation is not applied, as in COCO).

    Raises:
        ImageError: missing, damaged, no picture, or larger than `MOST_PIXELS`.
    """
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise ImageError(f"{picture.width}x{picture.height} pixels; at most {MOST_PIXELS:,} are read")
            pixels_HW3 = np.array(picture.convert("RGB"))
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise almost anything on damaged files: struct.error, KeyError, ...
        raise ImageError(f"{type(error).__name__}: {error}") from error
    return torch.from_numpy(pixels_HW3).permute(2, 0, 1).contiguous()


def extract(
    images: Iterable[Item],
    detector: Detector,
    write: Write,
    done: Callable[[str], bool] = lambda key: False,
    *,
    batch: int = 8,
    workers: int = 1,
    look_ahead: int = 64,
    show_progress: bool = True,
) -> list[Failure]:
    """Detects the regions of every image that is not done, and hands them to `write` in an order that never varies.

    Args:
        images: (key, path) of each.
        write: is called once for each image that could be read.
        done: whether an image's regions are there already (resuming).
        batch: images of one resized size that run together; it changes speed, not results.
        workers: decoding processes; 0 decodes in this one.
        look_ahead: decoded images held back, at most, while waiting for others of their size.

    Returns:
        The images that were stepped over: unreadable, too large, or refused by the detector.
    """
    waiting = [item for item in images if not done(item[0])]
    failures: list[Failure] = []
    if not waiting:
        return failures
    with Progress("extracting regions", len(waiting), "images", show_progress) as progress:
        for group in _groups(_decode(waiting, workers), detector, batch, look_ahead, failures):
            _detect_and_write(group, detector, write, failures)
            progress.advance(len(group), f"{len(failures)} failed" if failures else "")
    return failures


def write_failures(failures: Sequence[Failure], path: Path) -> None:
    """One JSON object a line; an older report is replaced, or removed when nothing failed."""
    if failures:
        path.write_text("".join(json.dumps(asdict(failure)) + "\n" for failure in failures), encoding="utf-8")
    else:
        path.unlink(missing_ok=True)


class _Decoding(Dataset[_Decoded]):
    """Decoding as a dataset, for `DataLoader`'s processes and their order."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> _Decoded:
        key, path = self.items[index]
        try:
            return _Decoded(key, str(path), read_image(path))
        except ImageError as error:
            return _Decoded(key, str(path), None, str(error))


def _decode(items: Sequence[Item], workers: int) -> Iterator[_Decoded]:
    prefetch = 8 if workers else None
    yield from DataLoader(_Decoding(items), batch_size=None, num_workers=workers, prefetch_factor=prefetch)


def _groups(
    decoded: Iterable[_Decoded], detector: Detector, batch: int, look_ahead: int, failures: list[Failure]
) -> Iterator[list[_Decoded]]:
    """Lists of at most `batch` images of one resized size; failed images go to `failures`."""
    held: dict[tuple[int, int], list[_Decoded]] = {}
    for one in decoded:
        if one.image is None:
            failures.append(Failure(one.key, one.path, one.reason))
            continue
        size = detector.batch_shape(one.image.shape[1], one.image.shape[2])
        held.setdefault(size, []).append(one)
        if len(held[size]) == batch:
            yield held.pop(size)
        elif sum(map(len, held.values())) >= look_ahead:
            yield held.pop(next(iter(held)))  # the size that has waited longest
    yield from held.values()


def _detect_and_write(group: list[_Decoded], detector: Detector, write: Write, failures: list[Failure]) -> None:
    """A batch that the detector refuses (out of memory, a picture of one row) is tried again image by image."""
    try:
        found = detector.detect([one.image for one in group if one.image is not None])
    except RuntimeError as error:
        if len(group) == 1:
            failures.append(Failure(group[0].key, group[0].path, f"the detector refused it: {error}"))
            return
        for one in group:
            _detect_and_write([one], detector, write, failures)
        return
    for one, regions in zip(group, found, strict=True):
        write(one.key, regions)
