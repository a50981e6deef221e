"""Images with their regions as one HTML page that needs no network; its words, looks and script are in `regions.html`."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from unimo_ds.pages import open_template
from unimo_ds.regions import Regions
from unimo_ds.vision.drawing import COLOURS, best_class, letters_on, name_of, place_labels
from unimo_ds.vision.pictures import encode, fit

_LARGEST_ALONE, _LARGEST = 1600, 800  # pixels of the longer side that go into the page
_OTHERS = 3  # further classes of a region that are named
_LABELLED_ALONE, _LABELLED = 12, 5  # regions whose label is always seen
_LETTER_ALONE, _LETTER = 1 / 52, 1 / 28  # height of a label's letters, of the picture's width as it is shown
_START = 0.3  # the slider's first place, if regions as sure as that exist


@dataclass(frozen=True)
class PageImage:
    """An image to show: `picture` may have another size than `regions` say; `problem` is a remark on it."""

    key: str
    regions: Regions
    picture: Image.Image
    problem: str


@dataclass(frozen=True)
class _Region:
    """One region as the page has it. Places are in pixels of the image on disk."""

    rank: int
    name: str
    probability: float | None
    others: list[tuple[str, float]]
    attribute: str
    attribute_probability: float
    x: float
    y: float
    width: float
    height: float
    share: float
    colour: str
    ink: str
    text: str
    label: tuple[float, float, float, float]
    labelled: bool


@dataclass(frozen=True)
class _Shown:
    key: str
    width: int
    height: int
    source: str
    problem: str
    letter: float
    regions: list[_Region]

    @property
    def backmost_first(self) -> list[_Region]:
        """The larger ones first, so that the mouse reaches small ones inside."""
        return sorted(self.regions, key=lambda region: -region.share)


def render_page(folder: Path, images: Sequence[PageImage], class_names: Sequence[str], attribute_names: Sequence[str]) -> str:
    """The page.

    Args:
        folder: the store.
        class_names, attribute_names: without background and "none"; where there is none, numbers.

    Raises:
        UnimoError: jinja2 is missing.
    """
    shown = [_show(image, class_names, attribute_names, alone=len(images) == 1) for image in images]
    probabilities = [region.probability or 0.0 for image in shown for region in image.regions]
    return str(
        open_template(Path(__file__).with_name("regions.html")).render(
            folder=folder,
            images=shown,
            alone=len(shown) == 1,
            probable=any(probabilities),
            start=_START if max(probabilities, default=0.0) >= _START else 0.0,
            attributes=any(region.attribute for image in shown for region in image.regions),
        )
    )


def _show(image: PageImage, class_names: Sequence[str], attribute_names: Sequence[str], alone: bool) -> _Shown:
    regions = image.regions
    largest = _LARGEST_ALONE if alone else _LARGEST
    picture = fit(image.picture, largest) if max(image.picture.size) > largest else image.picture
    letter = max(regions.width, regions.height * 0.75) * (_LETTER_ALONE if alone else _LETTER)
    bests = [best_class(regions, index) for index in range(len(regions))]
    classless = regions.class_ids_RK.shape[1] == 0
    names = ["" if classless else name_of(number, class_names, "class") for number, _ in bests]
    attributes = [name_of(int(number), attribute_names, "attribute") if number else "" for number in regions.attribute_ids_R]
    texts = [
        " ".join(filter(None, [attribute, name])) or f"region {rank}"
        for rank, (attribute, name) in enumerate(zip(attributes, names, strict=True), 1)
    ]
    sizes = [(_letters(text) * letter * 0.57 + letter * 0.6, letter * 1.35) for text in texts]
    corners = place_labels(regions.boxes_R4.tolist(), sizes, regions.width, regions.height)
    sides_R2 = np.maximum(regions.boxes_R4[:, 2:] - regions.boxes_R4[:, :2], 0)
    listed = []
    for index, (x1, y1, _, _) in enumerate(regions.boxes_R4.tolist()):
        colour = COLOURS[index % len(COLOURS)]
        across, down = (float(side) for side in sides_R2[index])
        left, top = corners[index]
        listed.append(
            _Region(
                rank=index + 1,
                name=names[index],
                probability=None if classless else bests[index][1],
                others=_others(regions, index, bests[index][0], class_names),
                attribute=attributes[index],
                attribute_probability=float(regions.attribute_probabilities_R[index]),
                x=round(x1, 1),
                y=round(y1, 1),
                width=round(across, 1),
                height=round(down, 1),
                share=across * down / max(regions.width * regions.height, 1),
                colour=colour,
                ink=letters_on(colour),
                text=texts[index],
                label=(round(left, 1), round(top, 1), round(sizes[index][0], 1), round(sizes[index][1], 1)),
                labelled=index < (_LABELLED_ALONE if alone else _LABELLED),
            )
        )
    source = encode(image.key, picture).source
    return _Shown(image.key, regions.width, regions.height, source, image.problem, round(letter, 2), listed)


def _letters(text: str) -> float:
    """Width of a text in letters of the Latin kind: Chinese ones are twice as wide."""
    return sum(1.8 if unicodedata.east_asian_width(letter) in "WF" else 1.0 for letter in text)


def _others(regions: Regions, index: int, best: int, class_names: Sequence[str]) -> list[tuple[str, float]]:
    """The next most probable classes, the background among them."""
    pairs = zip(regions.class_ids_RK[index].tolist(), regions.class_probabilities_RK[index].tolist(), strict=True)
    return [(name_of(number, class_names, "class"), share) for number, share in pairs if number != best][:_OTHERS]
