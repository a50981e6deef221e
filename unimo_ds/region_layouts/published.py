"""Published regions as a stream: what all layouts have in common.

A layout yields `Entry`s: cheap to step over, decoded on demand. Damage costs one image, unless nothing at all can be read.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from unimo_ds.errors import DataError
from unimo_ds.region_layouts.rows import PublishedRow, ReadOptions, RowError, checked_regions
from unimo_ds.regions import Regions

_PATIENCE = 20  # damaged images at the very start after which the whole file counts as wrong
_LONGEST_SHOWN = 60
# Besides RowError, a ValueError: what numpy and Python say of pickles and JSON that hold anything but what is expected.
_OF_CONTENT = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, MemoryError)


@dataclass(frozen=True)
class Damage:
    """An image that was stepped over: its key (what there is of it), its place in the file, and what is wrong."""

    key: str
    where: str
    reason: str


@dataclass(frozen=True)
class Entry:
    """One image of a file: its key in the file, where it is, how far the file is read after it, and how to decode it."""

    key: str
    where: str
    position: int
    decode: Callable[[], PublishedRow]


class PublishedRegions(ABC):
    """A file or folder of one layout; iterating yields (key, regions) and raises DataError at the first damage.

    Attributes:
        path: the file or folder.
        options: what the file does not say of itself.
        layout: its name.
        source: what the identity of a store calls it: layouts that differ in order alone share it.
        detector: what usually made such files.
        repeats: whether one image's regions come again in several rows, as files of captions have it.
        has_attributes, has_sizes: whether images have attributes, and their sizes; known once one was read.
    """

    layout: ClassVar[str]
    source: ClassVar[str]
    detector: ClassVar[str] = "Faster R-CNN ResNet-101 (bottom-up attention)"
    repeats: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        if "layout" in cls.__dict__ and "source" not in cls.__dict__:
            cls.source = cls.layout

    def __init__(self, path: Path, options: ReadOptions) -> None:
        self.path, self.options = Path(path), options
        self.has_attributes = self.has_sizes = False

    @property
    @abstractmethod
    def total_bytes(self) -> int:
        """The `position` of the last entry, about."""

    @abstractmethod
    def entries(self) -> Iterator[Entry]:
        """Every image of the file, in its order.

        Raises:
            DataError: the file as a whole is not of this layout.
        """

    def __iter__(self) -> Iterator[tuple[str, Regions]]:
        return self.read()

    def read(
        self,
        reject: Callable[[Damage], None] | None = None,
        skip: Callable[[str, str], bool] = lambda key, where: False,
        advance: Callable[[int], None] = lambda position: None,
    ) -> Iterator[tuple[str, Regions]]:
        """Yields (key, regions) of every image.

        Args:
            reject: is told of each damaged image, which is then stepped over; None: damage raises.
            skip: whether the image of a key at a place in the file is not wanted; it is not decoded then.
            advance: is told how many bytes of `total_bytes` are read.

        Raises:
            DataError: the file is not of this layout, all images at its start are damaged, or one is and `reject` is None.
        """
        held: list[Damage] | None = []  # damage at the start, until an image shows that the layout is right
        for entry in self.entries():
            advance(entry.position)
            key = self.options.key_format.format(entry.key)
            if skip(key, entry.where):
                regions = None
            else:
                try:
                    row = entry.decode()
                    regions = checked_regions(row, key, entry.key, self.options)
                    self.has_attributes, self.has_sizes = row.attribute_ids_R is not None, row.size is not None
                except _OF_CONTENT as error:
                    reason = str(error) if isinstance(error, RowError) else f"{type(error).__name__}: {error}"
                    damage = Damage(key, entry.where, reason)
                    if reject is None:
                        raise DataError(f"{damage.where}: image {key[:_LONGEST_SHOWN]!r}: {damage.reason}") from error
                    if held is None:
                        reject(damage)
                    else:
                        held.append(damage)
                        self._give_up_after(held, _PATIENCE)
                    continue
            if held and reject:
                for damage in held:
                    reject(damage)
            held = None
            if regions is not None:
                yield key, regions
        if held:
            self._give_up_after(held, 1)

    def _give_up_after(self, damages: list[Damage], patience: int) -> None:
        if len(damages) >= patience:
            raise DataError(
                f"{self.path}: no image could be read as {self.layout}; {len(damages)} were tried. "
                f"The first, {damages[0].key[:_LONGEST_SHOWN]!r} ({damages[0].where}): {damages[0].reason}"
            )
