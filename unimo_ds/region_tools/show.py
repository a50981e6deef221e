"""`unimo-ds regions show`: images of a store with their regions drawn, as a picture or as a page."""

import difflib
import itertools
import math
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image, ImageDraw

from unimo_ds.data.store import RegionStore
from unimo_ds.errors import ConfigError, DataError, UnimoError
from unimo_ds.region_tools.page import PageImage, render_page
from unimo_ds.regions import Regions
from unimo_ds.vision.drawing import draw_regions, font_for, resize_regions
from unimo_ds.vision.pictures import check_folder, fit, picture_of

_MOST_DRAWN = 12  # regions in a picture, unless told otherwise; a page holds all
_SMALLEST, _LARGEST, _TILE = 800, 1600, 480  # pixels of the longer side: a drawn picture, one tile of a sheet
_NAMED = 5  # keys suggested in place of a wrong one
_COMPARED = 20_000  # keys that are compared letter by letter with a wrong one
_INK = "#1c2128"


@dataclass(frozen=True)
class Shown:
    """What was written where, in words."""

    path: Path
    text: str


@dataclass(frozen=True)
class _Image:
    """An image of the store with its picture, or with an empty canvas and the reason for that."""

    key: str
    regions: Regions
    picture: Image.Image
    problem: str


def show_regions(
    folder: Path,
    key: str | None = None,
    images: Path | None = None,
    out: Path | None = None,
    most: int | None = None,
    count: int = 9,
    seed: int = 0,
) -> Shown:
    """Draws one image's regions, or those of several images chosen at random.

    Args:
        folder: a finished store.
        key: the image; None: `count` images chosen by `seed`.
        images: the folder that keys are paths below; None: boxes are drawn on an empty canvas.
        out: `.png` or `.jpg`: a picture; `.html`: a page. None: a picture of one image, a page of several, in this folder.
        most: regions shown of an image, the best ones; None: 12 in a picture, all in a page.

    Raises:
        ConfigError: no such folder of images, or an `out` of another kind.
        DataError: the store has no such image; names the nearest keys.
        StoreError: no finished store, or the record is damaged.
    """
    check_folder(images)
    store = RegionStore(folder)
    chosen = [key] if key is not None else _choose(store, count, seed)
    path = out or Path(f"{PurePosixPath(key).stem}-regions.png" if key is not None else "regions.html")
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".html"):
        raise ConfigError(f"--out {path}: ends with {path.suffix!r}; expected .png or .jpg for a picture, .html for a page")
    opened = [_open(store, name, images) for name in chosen]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() == ".html":
            shown = [PageImage(image.key, image.regions.only(slice(most)), image.picture, image.problem) for image in opened]
            path.write_text(render_page(store.folder, shown, store.class_names, store.attribute_names), encoding="utf-8")
        else:
            labels = store.class_names, store.attribute_names, most or _MOST_DRAWN
            drawn = _draw(opened[0], _drawn_side(opened[0]), *labels) if key is not None else _sheet(opened, *labels)
            drawn.save(path)
    except OSError as error:
        raise UnimoError(f"{path}: cannot be written: {error.strerror}") from error
    lines = [f"{image.key}: {_size(image)}" for image in opened]
    notes = [f"{image.key}: {image.problem}" for image in opened if image.problem and images is not None]
    unnamed = [] if store.class_names else [f"{folder}: no names.json: numbers stand for the names of classes"]
    return Shown(path, "\n".join([*lines, *notes, *unnamed, f"{path}: written"]))


def _size(image: _Image) -> str:
    return f"{len(image.regions)} regions, {image.regions.width}x{image.regions.height} pixels"


def _choose(store: RegionStore, count: int, seed: int) -> list[str]:
    """Random keys, in the store's order."""
    places = sorted(random.Random(seed).sample(range(len(store)), min(count, len(store))))
    if not places:
        raise DataError(f"{store.folder}: the store is empty: there is nothing to show")
    wanted = set(places)
    keys = itertools.islice(store.keys(), places[-1] + 1)
    return [key for place, key in enumerate(keys) if place in wanted]


def _open(store: RegionStore, key: str, images: Path | None) -> _Image:
    try:
        regions = store.get(key)
    except KeyError as error:
        near = near_keys(key, store.keys())
        hint = f"did you mean {', '.join(map(repr, near))}?" if near else f"keys look like {next(store.keys(), '')!r}"
        raise DataError(f"{store.folder}: has no image {key!r}; {hint}") from error
    return _Image(key, regions, *picture_of(regions, key, images))


def near_keys(wanted: str, keys: Iterable[str]) -> list[str]:
    """Keys that `wanted` may have been meant for: the same file name, stem or number, a part of it, or nearly its letters."""
    path = PurePosixPath(wanted)
    number = _number(path.stem)
    likes: list[list[str]] = [[], [], [], []]
    letters: list[str] = []
    for key in keys:
        other = PurePosixPath(key)
        matches = (
            other.name.lower() == path.name.lower(),
            other.stem.lower() == path.stem.lower(),
            number is not None and _number(other.stem) == number,
            wanted.lower() in key.lower(),
        )
        for like, match in zip(likes, matches, strict=True):
            if match and len(like) < _NAMED:
                like.append(key)
        if len(letters) < _COMPARED:
            letters.append(key)
    found = list(dict.fromkeys(itertools.chain(*likes, difflib.get_close_matches(wanted, letters, _NAMED))))
    return found[:_NAMED]


def _number(stem: str) -> int | None:
    """`COCO_val2014_000000000042` -> 42."""
    digits = stem[len(stem.rstrip("0123456789")) :]
    return int(digits) if digits.isascii() and digits else None


def _drawn_side(image: _Image) -> int:
    return min(_LARGEST, max(_SMALLEST, *image.picture.size))


def _draw(image: _Image, side: int, class_names: tuple[str, ...], attribute_names: tuple[str, ...], most: int) -> Image.Image:
    picture = fit(image.picture, side)  # before drawing: then boxes and letters are sharp
    regions = resize_regions(image.regions, *picture.size)
    return draw_regions(picture, regions, class_names, attribute_names, most)


def _sheet(opened: list[_Image], class_names: tuple[str, ...], attribute_names: tuple[str, ...], most: int) -> Image.Image:
    """The images side by side, each with its key below."""
    columns = math.ceil(math.sqrt(len(opened)))
    gap, caption = 12, 36
    tiles = [_draw(image, _TILE, class_names, attribute_names, most) for image in opened]
    rows = [range(start, min(start + columns, len(tiles))) for start in range(0, len(tiles), columns)]
    heights = [max(tiles[place].height for place in row) + caption + gap for row in rows]
    sheet = Image.new("RGB", (columns * (_TILE + gap) + gap, sum(heights) + gap), "white")
    canvas = ImageDraw.Draw(sheet)
    y = gap
    for row, height in zip(rows, heights, strict=True):
        for column, place in enumerate(row):
            x, key = gap + column * (_TILE + gap), opened[place].key
            sheet.paste(tiles[place], (x, y))
            text = key if len(key) <= 52 else "…" + key[-51:]
            canvas.text((x, y + tiles[place].height + 6), text, fill=_INK, font=font_for(text, 16))
        y += height
    return sheet
