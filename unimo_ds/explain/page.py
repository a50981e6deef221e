"""A step as one HTML page that needs neither network nor scripts; its words and looks are in `explain.html`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from unimo_ds.explain.step import BACKGROUND_NAME, Sample, ShownImage, ShownRegion, Summary
from unimo_ds.explain.terminal import fit_text, loss_text, share_text, sharing
from unimo_ds.pages import open_template
from unimo_ds.vision.pictures import encode, fit, open_picture

_FIGURE, _THUMBNAIL = 640, 240  # pixels of the longer side; twice what is shown, for dense screens
_SHARES_SHOWN = 16
_LABELLED = 8  # regions of an image without picture, whose names are written into it
_LETTER_WIDTH = 0.58  # of a label's height


@dataclass(frozen=True)
class Box:
    """A region drawn: place in pixels of the image, where its label begins, and whether that is written."""

    x: float
    y: float
    width: float
    height: float
    region: ShownRegion
    label_x: float
    label_y: float
    labelled: bool


@dataclass(frozen=True)
class Figure:
    """An image drawn: `source` is its picture, empty where there is none, and `problem` says why."""

    image: ShownImage
    source: str
    problem: str
    boxes: list[Box]
    letter: float


class Draughtsman:
    """Draws images; each picture is read once.

    Args:
        root: the folder that keys are paths below; None: there are no pictures.
    """

    def __init__(self, root: Path | None) -> None:
        self._root = root
        self._pictures: dict[tuple[str, int], tuple[str, str]] = {}

    def figure(self, image: ShownImage) -> Figure:
        """The image of a sample, with its hidden regions; without its picture with the best of the others too."""
        source, problem = self._picture(image.key, _FIGURE)
        letter = max(image.width, image.height) / 24
        shown = [region for region in image.regions if region.hidden or not source or image.hidden]
        labelled = image.hidden if source else [*image.hidden, *image.objects[:_LABELLED]]
        return Figure(image, source, problem, [_box(region, image, letter, region in labelled) for region in shown], letter)

    def thumbnail(self, image: ShownImage) -> Figure:
        """A retrieved image; its boxes are drawn where there is no picture."""
        source, problem = self._picture(image.key, _THUMBNAIL)
        letter = max(image.width, image.height) / 12
        labelled = image.objects[: _LABELLED // 2]
        boxes = [] if source else [_box(region, image, letter, region in labelled) for region in image.regions]
        return Figure(image, source, problem, boxes, letter)

    def _picture(self, key: str, side: int) -> tuple[str, str]:
        if self._root is None:
            return "", ""
        if (key, side) not in self._pictures:
            opened = open_picture(self._root, key)
            picture = encode(key, fit(opened, side)) if isinstance(opened, Image.Image) else opened
            self._pictures[key, side] = picture.source, picture.problem
        return self._pictures[key, side]


def _box(region: ShownRegion, image: ShownImage, letter: float, labelled: bool) -> Box:
    x1, x2 = (share * image.width for share in region.box[::2])
    y1, y2 = (share * image.height for share in region.box[1::2])
    text = len(region.label) * letter * _LETTER_WIDTH
    return Box(
        x=round(x1, 1),
        y=round(y1, 1),
        width=round(x2 - x1, 1),
        height=round(y2 - y1, 1),
        region=region,
        label_x=round(max(1.0, min(x1 + letter / 4, image.width - text)), 1),
        label_y=round(min(y1 + letter, image.height - letter / 4), 1),
        labelled=labelled and region.label != BACKGROUND_NAME,
    )


def render_page(
    title: str,
    folder: Path,
    summary: Summary,
    scored: str,
    notes: Sequence[str],
    samples: Sequence[Sample],
    images: Path | None,
) -> str:
    """The page.

    Args:
        title: run and step.
        folder: the run.
        summary: of the step.
        scored: which checkpoint scored the candidates, or why none did.
        notes: warnings.
        samples: those that are shown.
        images: the folder that image keys are paths below; None: there are no pictures.

    Raises:
        UnimoError: jinja2 is missing.
    """
    draughtsman = Draughtsman(images)
    return str(
        open_template(Path(__file__).with_name("explain.html")).render(
            title=title,
            folder=folder,
            summary=summary,
            sharing=sharing(summary),
            shares=summary.shares if len(summary.shares) <= _SHARES_SHOWN else [],
            scored=scored,
            notes=notes,
            samples=samples,
            total=sum(count for _, _, count, _ in summary.corpora),
            draw=draughtsman,
            fit=fit_text,
            share=share_text,
            loss=loss_text,
        )
    )
