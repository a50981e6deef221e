"""The pictures of a report: thumbnails, and pictures with their regions drawn, encoded into the page."""

from dataclasses import dataclass
from pathlib import Path

from unimo_ds.data.store import RegionStore
from unimo_ds.vision.drawing import draw_surest
from unimo_ds.vision.pictures import Picture, encode, fit, open_picture

_THUMBNAIL, _FIGURE = 240, 640  # pixels of the longer side; twice what is shown, for dense screens


@dataclass(frozen=True)
class ReportSection:
    """One run of the report.

    Attributes:
        title: heading of its part of the page.
        run_folder: made by pre-training; holds or finds an evaluation.
        images_root: the folder that keys of the store are paths below.
        regions: the regions store of the evaluated pairs.
    """

    title: str
    run_folder: Path
    images_root: Path
    regions: Path


@dataclass(frozen=True)
class Found:
    """A picture that a caption has found."""

    picture: Picture
    score: str
    right: bool


@dataclass(frozen=True)
class Query:
    """A caption with what it has found; `own` is its own picture where that is not among them."""

    caption: str
    found: list[Found]
    rank: int | None
    own: Picture | None


@dataclass(frozen=True)
class Written:
    """A picture with its regions drawn, what was written about it, and a remark on what is drawn."""

    picture: Picture
    generated: str
    true: list[str]
    note: str


class Gallery:
    """Pictures of one section, read from its folder and encoded for the page."""

    def __init__(self, section: ReportSection) -> None:
        self._section = section
        self._store = RegionStore(section.regions)
        self._thumbnails: dict[str, Picture] = {}

    @property
    def classes(self) -> int:
        """How many classes the detector of its regions knows."""
        return int(self._store.detector["classes"])

    def thumbnail(self, key: str) -> Picture:
        """The picture `key`, small."""
        if key not in self._thumbnails:
            image = open_picture(self._section.images_root, key)
            small = image if isinstance(image, Picture) else encode(key, fit(image, _THUMBNAIL))
            self._thumbnails[key] = small
        return self._thumbnails[key]

    def figure(self, key: str) -> tuple[Picture, str]:
        """The picture `key` with its best regions drawn, and a remark on what is drawn."""
        image = open_picture(self._section.images_root, key)
        if isinstance(image, Picture):
            return image, ""
        image = fit(image, _FIGURE)  # before drawing: then boxes and letters are sharp
        if key not in self._store:
            return encode(key, image), "not in the regions store"
        drawn, note = draw_surest(image, self._store.get(key), self._store.class_names, self._store.attribute_names)
        return encode(key, drawn), note
