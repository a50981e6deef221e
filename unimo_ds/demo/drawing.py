"""Turns a scene into pixels: the sprite of each kind and colour, the backgrounds, and which pixel belongs to what.

Sprites are painted once at a high resolution and scaled down for each picture, which anti-aliases them for nothing and
draws well over a hundred pictures a second on one core.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from unimo_ds.demo.objects import COLOUR_BY_NAME, KIND_BY_NAME, Colour, Part, Rgb

WIDTH, HEIGHT = 256, 192

_CANVAS = 384
"""Side of the canvas a sprite is painted on; it is stored at half of that."""
_MARGIN = 12
_FIXED_PAINT: dict[str, Rgb] = {
    "ink": (34, 34, 38),
    "pale": (240, 240, 232),
    "wood": (132, 88, 52),
    "metal": (150, 154, 162),
    "leaf": (70, 140, 60),
    "heart": (120, 72, 40),
}

FloatImage = NDArray[np.float32]
Pattern = Callable[[NDArray[np.int64], NDArray[np.int64], int], NDArray[np.int64]]
"""0 or 1 for row, column and side of a tile."""


class Drawable(Protocol):
    """What drawing needs to know of a thing."""

    @property
    def kind(self) -> str: ...
    @property
    def colour(self) -> str: ...
    @property
    def box(self) -> tuple[int, int, int, int]: ...
    @property
    def mirrored(self) -> bool: ...
    @property
    def shade(self) -> float: ...


# --- sprites ---------------------------------------------------------------------------------------------------------


@cache
def sprite(kind: str, colour: str) -> Image.Image:
    """The trimmed RGBA picture of a thing with its outline, at about twice the size of a large one."""
    palette = COLOUR_BY_NAME[colour]
    canvas = Image.new("RGBA", (_CANVAS, _CANVAS))
    painter = ImageDraw.Draw(canvas)
    for part in KIND_BY_NAME[kind].parts:
        _paint(painter, part, _paint_of(part, palette))
    outline = canvas.getchannel("A").filter(ImageFilter.MaxFilter(7))
    outlined = Image.new("RGBA", canvas.size, (*palette.outline, 0))
    outlined.paste((*palette.outline, 255), (0, 0), outline)
    outlined.alpha_composite(canvas)
    return outlined.crop(outline.getbbox()).reduce(2)


@cache
def sprite_aspect(kind: str) -> float:
    """Width over height of a kind, outline included."""
    width, height = sprite(kind, "red").size
    return width / height


def _paint_of(part: Part, palette: Colour) -> Rgb:
    if part.paint == "shadow":
        red, green, blue = palette.dark
        return red // 2, green // 2, blue // 2
    shades = {"main": palette.main, "dark": palette.dark, "light": palette.light}
    return shades[part.paint] if part.paint in shades else _FIXED_PAINT[part.paint]


def _paint(painter: ImageDraw.ImageDraw, part: Part, fill: Rgb) -> None:
    scale = (_CANVAS - 2 * _MARGIN) / 100
    points = [_MARGIN + value * scale for value in part.points]
    width = round(part.width * scale)
    match part.shape:
        case "polygon":
            painter.polygon(points, fill)
        case "ellipse":
            painter.ellipse(points, None if width else fill, fill, width or 1)
        case "rectangle":
            painter.rounded_rectangle(points, part.first * scale, fill)
        case "line":
            painter.line(points, fill, width, joint="curve")
        case "arc":
            painter.arc(points, part.first, part.second, fill, width)
        case "pie":
            painter.pieslice(points, part.first, part.second, fill)


# --- backgrounds -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Background:
    """A setting: `horizon` is where its ground begins as a fraction of the height, None where there is no ground."""

    name: str
    horizon: float | None
    paint: Callable[[np.random.Generator], FloatImage]


def _gradient(top: Sequence[float], bottom: Sequence[float], rows: int) -> FloatImage:
    """`rows` rows [rows, 1, 3] that run from one colour to another."""
    steps = np.linspace(0.0, 1.0, rows, dtype=np.float32)[:, None, None]
    return np.asarray(top, np.float32) * (1 - steps) + np.asarray(bottom, np.float32) * steps


def _two_zones(horizon: float, upper: tuple[Rgb, Rgb], lower: tuple[Rgb, Rgb]) -> FloatImage:
    edge = round(horizon * HEIGHT)
    rows = np.concatenate((_gradient(*upper, edge), _gradient(*lower, HEIGHT - edge)))
    return np.repeat(rows, WIDTH, axis=1)


def _pastel(rng: np.random.Generator) -> NDArray[np.float32]:
    return rng.uniform(168, 232, 3).astype(np.float32)


def _blot(picture: FloatImage, centre: tuple[float, float], radius: float, colour: Rgb) -> None:
    """A soft disc, for a sun, a moon, or clouds."""
    y, x = np.ogrid[:HEIGHT, :WIDTH]
    distance = np.sqrt((x - centre[0]) ** 2 + (y - centre[1]) ** 2).astype(np.float32)
    cover = np.clip(radius - distance, 0.0, 1.0)[..., None]
    picture += cover * (np.asarray(colour, np.float32) - picture)


def _meadow(rng: np.random.Generator) -> FloatImage:
    picture = _two_zones(0.46, ((140, 196, 240), (214, 234, 248)), ((150, 200, 112), (98, 164, 74)))
    x, y = float(rng.uniform(30, 226)), float(rng.uniform(16, 44))
    for step in (-16.0, 0.0, 16.0):
        _blot(picture, (x + step, y - (4 if step == 0 else 0)), 13, (250, 252, 255))
    return picture


def _room(rng: np.random.Generator) -> FloatImage:
    picture = _two_zones(0.5, ((222, 210, 190), (206, 192, 170)), ((176, 128, 84), (146, 100, 62)))
    picture[: HEIGHT // 2] *= rng.uniform(0.9, 1.08, 3).astype(np.float32)
    boards = np.arange(HEIGHT // 2 + 6, HEIGHT, 15)
    picture[boards] *= 0.86
    picture[HEIGHT // 2 - 4 : HEIGHT // 2 + 1] = (240, 236, 226)
    return picture


def _beach(rng: np.random.Generator) -> FloatImage:
    picture = _two_zones(0.44, ((160, 214, 244), (226, 240, 246)), ((240, 222, 170), (222, 194, 136)))
    sea = slice(round(0.3 * HEIGHT), round(0.44 * HEIGHT))
    picture[sea] = _gradient((74, 150, 196), (110, 184, 210), sea.stop - sea.start)
    _blot(picture, (float(rng.uniform(24, 232)), 24), 15, (255, 236, 130))
    return picture


def _night(rng: np.random.Generator) -> FloatImage:
    picture = _two_zones(0.5, ((24, 28, 62), (58, 62, 110)), ((52, 70, 66), (34, 48, 46)))
    x = float(rng.uniform(24, 232))
    _blot(picture, (x, 26), 15, (238, 234, 206))
    _blot(picture, (x + 8, 22), 13, (34, 38, 74))
    return picture


def _snow(rng: np.random.Generator) -> FloatImage:
    picture = _two_zones(0.45, ((150, 170, 196), (196, 208, 222)), ((228, 234, 242), (204, 216, 232)))
    rows, columns = rng.integers(0, HEIGHT - 1, 90), rng.integers(0, WIDTH - 1, 90)
    picture[rows, columns] = picture[rows + 1, columns] = picture[rows, columns + 1] = 250
    return picture


def _tiled(rng: np.random.Generator, pattern: Pattern) -> FloatImage:
    """Two neighbouring pastel tones, laid out by `pattern`."""
    base = _pastel(rng)
    tones = np.stack((base, np.clip(base - float(rng.uniform(14, 26)), 0, 255)))
    rows, columns = np.arange(HEIGHT)[:, None], np.arange(WIDTH)[None, :]
    return tones[np.broadcast_to(pattern(rows, columns, int(rng.integers(14, 30))), (HEIGHT, WIDTH))]


def _checks(rng: np.random.Generator) -> FloatImage:
    return _tiled(rng, lambda rows, columns, side: (rows // side + columns // side) % 2)


def _stripes(rng: np.random.Generator) -> FloatImage:
    return _tiled(rng, lambda rows, columns, side: columns // side % 2)


def _plain(rng: np.random.Generator) -> FloatImage:
    base = _pastel(rng)
    return np.repeat(_gradient(np.clip(base + 14, 0, 255).tolist(), (base - 14).tolist(), HEIGHT), WIDTH, axis=1)


BACKGROUNDS: tuple[Background, ...] = (
    Background("meadow", 0.46, _meadow),
    Background("room", 0.5, _room),
    Background("beach", 0.44, _beach),
    Background("night", 0.5, _night),
    Background("snow", 0.45, _snow),
    Background("checks", None, _checks),
    Background("stripes", None, _stripes),
    Background("plain", None, _plain),
)
_BACKGROUND_BY_NAME = {background.name: background for background in BACKGROUNDS}


# --- pictures --------------------------------------------------------------------------------------------------------


def draw(background: str, things: Sequence[Drawable], rng: np.random.Generator) -> tuple[Image.Image, NDArray[np.uint8]]:
    """Paints a scene.

    Returns:
        the RGB picture of WIDTH x HEIGHT, and an array [HEIGHT, WIDTH] with k + 1 where thing k is seen and 0 elsewhere.
    """
    backdrop = _BACKGROUND_BY_NAME[background].paint(rng)
    grain = rng.integers(-5, 6, (HEIGHT, WIDTH, 1)).astype(np.float32)
    picture = Image.fromarray(np.clip(backdrop + grain, 0, 255).astype(np.uint8))
    owners = np.zeros((HEIGHT, WIDTH), np.uint8)
    for place, thing in enumerate(things, start=1):
        x, y, width, height = thing.box
        image = sprite(thing.kind, thing.colour)
        if thing.mirrored:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        image = image.resize((width, height), Image.Resampling.BOX)
        alpha = image.getchannel("A")
        shaded = image.convert("RGB").point(lambda value, shade=thing.shade: min(255, round(value * shade)))
        picture.paste(shaded, (x, y), alpha)
        owners[y : y + height, x : x + width][np.asarray(alpha) >= 128] = place
    return picture, owners


def visible_box(owners: NDArray[np.uint8], place: int) -> tuple[float, float, float, float]:
    """The tight x, y, width, height of what is seen of thing `place`, counted from 0; raises IndexError if nothing is."""
    seen = owners == place + 1
    rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    x, y = float(columns[0]), float(rows[0])
    return x, y, float(columns[-1] + 1 - x), float(rows[-1] + 1 - y)
