"""The pictures of a report: thumbnails, and pictures with their regions drawn, encoded into the page."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unimo_ds.data.store import RegionStore
from unimo_ds.regions import BACKGROUND, Regions
from unimo_ds.vision.drawing import draw_regions, resize_regions
from unimo_ds.vision.pictures import Picture, encode, fit, open_picture

_DRAWN_REGIONS = 8
SURE = 0.3  # a region less probable is not drawn: stores keep a minimum of regions, however doubtful
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
        regions = self._store.get(key)
        drawn = _surest(regions)
        placed = resize_regions(drawn, image.width, image.height)
        names = self._store.class_names, self._store.attribute_names
        note = f"{len(drawn)} of {len(regions)} regions drawn"
        return encode(key, draw_regions(image, placed, *names, most=len(drawn))), note


def _surest(regions: Regions) -> Regions:
    """The best regions, of those whose class is sure enough; the very best one if none is."""
    probability_R = np.where(regions.class_ids_RK != BACKGROUND, regions.class_probabilities_RK, 0).max(axis=1, initial=0)
    sure = np.flatnonzero(probability_R >= SURE)[:_DRAWN_REGIONS]
    kept = sure if len(sure) else np.arange(min(1, len(regions)))
    return Regions(
        regions.width,
        regions.height,
        regions.boxes_R4[kept],
        regions.features_RF[kept],
        regions.class_ids_RK[kept],
        regions.class_probabilities_RK[kept],
        regions.attribute_ids_R[kept],
        regions.attribute_probabilities_R[kept],
    )
