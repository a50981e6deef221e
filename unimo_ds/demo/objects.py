"""The things of the demo world: 24 kinds, each a short list of painted parts, and 8 colours.

A kind is data, not code: its parts are drawn in order on a canvas of 100 by 100 units (y grows downwards) by
`drawing.py`, which trims the empty margin afterwards. A part names a role of paint rather than a colour, so one list of
parts serves all eight colours.
"""

import math
from dataclasses import dataclass
from typing import Literal

Shape = Literal["polygon", "ellipse", "rectangle", "line", "arc", "pie"]
Paint = Literal["main", "dark", "light", "shadow", "ink", "pale", "wood", "metal", "leaf", "heart"]
Rgb = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Part:
    """One filled or stroked shape; `first` and `second` are its corner radius, stroke width or angles in degrees."""

    shape: Shape
    paint: Paint
    points: tuple[float, ...]
    first: float = 0.0
    second: float = 0.0
    width: float = 0.0


@dataclass(frozen=True, slots=True)
class Surface:
    """Where a large thing can hold a small one: the span of x and the height of the guest's foot, as fractions of its box."""

    relation: Literal["on", "inside"]
    left: float
    right: float
    foot: float


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of thing: `airy` ones may float above the horizon, `portable` ones may be put on or into another."""

    name: str
    plural: str
    parts: tuple[Part, ...]
    airy: bool = False
    portable: bool = True
    surfaces: tuple[Surface, ...] = ()


@dataclass(frozen=True, slots=True)
class Colour:
    """A colour's three shades and the outline that sets it off from every background."""

    name: str
    main: Rgb
    dark: Rgb
    light: Rgb
    outline: Rgb


def _polygon(paint: Paint, *points: float) -> Part:
    return Part("polygon", paint, points)


def _ellipse(paint: Paint, *box: float) -> Part:
    return Part("ellipse", paint, box)


def _ring(paint: Paint, width: float, *box: float) -> Part:
    return Part("ellipse", paint, box, width=width)


def _rectangle(paint: Paint, *box: float, radius: float = 0.0) -> Part:
    return Part("rectangle", paint, box, radius)


def _line(paint: Paint, width: float, *points: float) -> Part:
    return Part("line", paint, points, width=width)


def _arc(paint: Paint, width: float, start: float, end: float, *box: float) -> Part:
    return Part("arc", paint, box, start, end, width)


def _pie(paint: Paint, start: float, end: float, *box: float) -> Part:
    return Part("pie", paint, box, start, end)


def _star_points(centre: float, outer: float, inner: float) -> tuple[float, ...]:
    """The ten corners of a five-pointed star that stands on two points."""
    points: list[float] = []
    for corner in range(10):
        radius, angle = (inner if corner % 2 else outer), math.pi * (corner / 5 - 0.5)
        points += [centre + radius * math.cos(angle), centre + radius * math.sin(angle)]
    return tuple(points)


def _petals(paint: Paint, x: float, y: float, reach: float, radius: float) -> tuple[Part, ...]:
    """Six round petals about a centre."""
    turns = [math.pi / 3 * petal for petal in range(6)]
    centres = [(x + reach * math.cos(turn), y + reach * math.sin(turn)) for turn in turns]
    return tuple(_ellipse(paint, cx - radius, cy - radius, cx + radius, cy + radius) for cx, cy in centres)


KINDS: tuple[Kind, ...] = (
    Kind(
        "cup",
        "cups",
        (
            _ring("main", 8, 58, 34, 96, 76),
            _rectangle("main", 10, 18, 74, 94, radius=14),
            _rectangle("light", 18, 34, 26, 78, radius=4),
            _ellipse("dark", 10, 10, 74, 28),
        ),
    ),
    Kind(
        "ball",
        "balls",
        (
            _ellipse("main", 4, 4, 96, 96),
            _arc("pale", 6, 0, 360, 32, 4, 68, 96),
            _line("pale", 6, 4, 50, 96, 50),
            _ring("main", 3, 4, 4, 96, 96),
            _ellipse("light", 18, 18, 34, 34),
        ),
        airy=True,
    ),
    Kind(
        "house",
        "houses",
        (
            _rectangle("wood", 70, 10, 80, 36),
            _rectangle("main", 14, 44, 86, 97),
            _polygon("dark", 2, 48, 50, 4, 98, 48),
            _rectangle("wood", 42, 66, 58, 97),
            _rectangle("pale", 20, 57, 35, 72),
            _rectangle("pale", 65, 57, 80, 72),
        ),
        portable=False,
    ),
    Kind(
        "tree",
        "trees",
        (
            _polygon("wood", 44, 55, 56, 55, 60, 97, 40, 97),
            _ellipse("main", 8, 28, 58, 72),
            _ellipse("main", 42, 28, 92, 72),
            _ellipse("main", 22, 3, 78, 56),
            _ellipse("light", 32, 12, 52, 28),
            _ellipse("dark", 60, 44, 78, 60),
            _ellipse("dark", 22, 46, 38, 60),
        ),
        portable=False,
    ),
    Kind(
        "car",
        "cars",
        (
            _polygon("main", 2, 66, 6, 48, 24, 42, 36, 22, 70, 22, 84, 42, 96, 48, 98, 66, 94, 72, 6, 72),
            _polygon("pale", 31, 42, 40, 28, 51, 28, 51, 42),
            _polygon("pale", 55, 42, 55, 28, 67, 28, 76, 42),
            _ellipse("ink", 14, 56, 38, 80),
            _ellipse("ink", 62, 56, 86, 80),
            _ellipse("metal", 21, 63, 31, 73),
            _ellipse("metal", 69, 63, 79, 73),
            _rectangle("dark", 40, 48, 96, 52),
        ),
        portable=False,
    ),
    Kind(
        "boat",
        "boats",
        (
            _rectangle("wood", 46, 4, 50, 68),
            _polygon("pale", 52, 8, 88, 60, 52, 60),
            _polygon("light", 44, 16, 44, 60, 16, 60),
            _polygon("main", 2, 65, 98, 65, 82, 92, 18, 92),
            _polygon("dark", 2, 65, 98, 65, 94, 72, 6, 72),
        ),
        portable=False,
    ),
    Kind(
        "fish",
        "fish",
        (
            _polygon("dark", 30, 32, 46, 12, 60, 30),
            _polygon("main", 66, 50, 98, 22, 90, 50, 98, 78),
            _ellipse("main", 2, 24, 78, 76),
            _polygon("dark", 40, 52, 56, 46, 56, 64),
            _arc("dark", 3, -70, 70, 14, 30, 34, 70),
            _ellipse("pale", 12, 36, 24, 48),
            _ellipse("ink", 14, 39, 20, 45),
        ),
        airy=True,
    ),
    Kind(
        "cat",
        "cats",
        (
            _arc("main", 9, -60, 110, 58, 48, 94, 94),
            _ellipse("main", 22, 42, 76, 98),
            _polygon("main", 22, 36, 22, 2, 46, 18),
            _polygon("main", 78, 36, 78, 2, 54, 18),
            _ellipse("main", 20, 10, 80, 58),
            _ellipse("light", 38, 62, 60, 94),
            _ellipse("pale", 31, 26, 45, 40),
            _ellipse("pale", 55, 26, 69, 40),
            _ellipse("ink", 36, 27, 41, 39),
            _ellipse("ink", 60, 27, 65, 39),
            _polygon("heart", 46, 42, 54, 42, 50, 48),
            _line("ink", 2, 18, 42, 40, 46),
            _line("ink", 2, 82, 42, 60, 46),
        ),
    ),
    Kind(
        "star", "stars", (_polygon("main", *_star_points(50, 48, 21)), _polygon("light", *_star_points(50, 26, 11))), airy=True
    ),
    Kind(
        "hat",
        "hats",
        (
            _ellipse("main", 2, 62, 98, 88),
            _polygon("main", 24, 12, 76, 12, 72, 74, 28, 74),
            _ellipse("dark", 24, 6, 76, 18),
            _polygon("pale", 27, 54, 73, 54, 72, 68, 28, 68),
        ),
    ),
    Kind(
        "book",
        "books",
        (
            _rectangle("dark", 12, 4, 88, 96, radius=4),
            _rectangle("pale", 20, 82, 86, 92),
            _rectangle("main", 22, 4, 88, 82, radius=3),
            _rectangle("pale", 36, 18, 74, 24),
            _rectangle("pale", 36, 30, 74, 36),
            _rectangle("light", 44, 48, 66, 68, radius=6),
        ),
    ),
    Kind(
        "lamp",
        "lamps",
        (
            _rectangle("metal", 45, 40, 55, 90),
            _ellipse("dark", 22, 84, 78, 98),
            _polygon("main", 30, 4, 70, 4, 94, 52, 6, 52),
            _polygon("light", 38, 8, 46, 8, 34, 48, 18, 48),
            _line("metal", 3, 76, 52, 76, 68),
            _ellipse("metal", 73, 66, 79, 72),
        ),
    ),
    Kind(
        "chair",
        "chairs",
        (
            _rectangle("dark", 26, 56, 34, 86),
            _rectangle("dark", 70, 56, 78, 86),
            _rectangle("main", 10, 2, 20, 98, radius=3),
            _rectangle("light", 20, 10, 28, 48),
            _rectangle("main", 10, 50, 92, 61, radius=3),
            _rectangle("main", 82, 54, 92, 98, radius=3),
        ),
        portable=False,
        surfaces=(Surface("on", 0.26, 0.98, 0.53),),
    ),
    Kind(
        "table",
        "tables",
        (
            _rectangle("dark", 20, 44, 27, 78),
            _rectangle("dark", 73, 44, 80, 78),
            _rectangle("main", 6, 44, 15, 94),
            _rectangle("main", 85, 44, 94, 94),
            _polygon("light", 14, 22, 86, 22, 98, 38, 2, 38),
            _rectangle("main", 2, 38, 98, 48),
        ),
        portable=False,
        surfaces=(Surface("on", 0.12, 0.88, 0.15),),
    ),
    Kind(
        "box",
        "boxes",
        (
            _polygon("light", 12, 4, 88, 4, 98, 14, 2, 14),
            _rectangle("main", 2, 14, 98, 97),
            _rectangle("shadow", 12, 24, 88, 88),
            _polygon("dark", 12, 24, 22, 34, 22, 80, 12, 88),
            _polygon("dark", 88, 24, 78, 34, 78, 80, 88, 88),
            _polygon("main", 12, 88, 22, 80, 78, 80, 88, 88),
        ),
        portable=False,
        surfaces=(Surface("inside", 0.14, 0.86, 0.87), Surface("on", 0.1, 0.9, 0.08)),
    ),
    Kind(
        "bottle",
        "bottles",
        (
            _rectangle("main", 40, 10, 60, 44),
            _rectangle("main", 24, 34, 76, 98, radius=14),
            _rectangle("wood", 39, 2, 61, 13),
            _rectangle("pale", 24, 56, 76, 80),
            _rectangle("dark", 32, 64, 68, 71),
            _rectangle("light", 30, 42, 37, 54, radius=3),
        ),
    ),
    Kind(
        "key",
        "keys",
        (
            _ring("main", 13, 2, 26, 50, 74),
            _rectangle("main", 46, 44, 98, 55),
            _rectangle("main", 72, 52, 80, 72),
            _rectangle("main", 88, 52, 96, 68),
            _arc("light", 4, 180, 270, 8, 32, 44, 68),
        ),
        airy=True,
    ),
    Kind(
        "umbrella",
        "umbrellas",
        (
            _line("metal", 4, 50, 4, 50, 84),
            _arc("metal", 5, 0, 180, 34, 74, 52, 96),
            _pie("main", 180, 360, 2, 8, 98, 104),
            _pie("light", 180, 360, 34, 8, 66, 104),
            _ellipse("main", 37, 47, 63, 65),
            _pie("dark", 180, 360, 2, 47, 34, 65),
            _pie("dark", 180, 360, 34, 47, 66, 65),
            _pie("dark", 180, 360, 66, 47, 98, 65),
            _line("metal", 4, 50, 56, 50, 84),
        ),
        airy=True,
    ),
    Kind(
        "flower",
        "flowers",
        (
            _line("leaf", 6, 50, 40, 50, 97),
            _ellipse("leaf", 50, 66, 80, 80),
            _ellipse("leaf", 20, 74, 50, 88),
            *_petals("main", 50, 32, 19, 13),
            _ellipse("heart", 38, 20, 62, 44),
        ),
    ),
    Kind(
        "apple",
        "apples",
        (
            _line("wood", 6, 50, 28, 56, 6),
            _polygon("leaf", 54, 18, 66, 4, 86, 8, 72, 20),
            _ellipse("main", 6, 22, 60, 88),
            _ellipse("main", 40, 22, 94, 88),
            _ellipse("main", 22, 44, 56, 96),
            _ellipse("main", 44, 44, 78, 96),
            _ellipse("light", 16, 36, 32, 54),
        ),
    ),
    Kind(
        "clock",
        "clocks",
        (
            _ellipse("dark", 8, 2, 36, 30),
            _ellipse("dark", 64, 2, 92, 30),
            _line("dark", 9, 26, 84, 18, 97),
            _line("dark", 9, 74, 84, 82, 97),
            _ellipse("main", 6, 8, 94, 96),
            _ellipse("pale", 22, 24, 78, 80),
            _line("ink", 5, 50, 52, 50, 32),
            _line("ink", 5, 50, 52, 64, 60),
        ),
        airy=True,
    ),
    Kind(
        "kite",
        "kites",
        (
            _line("ink", 3, 50, 66, 44, 78, 56, 86, 46, 97),
            _polygon("dark", 40, 74, 50, 80, 38, 84),
            _polygon("dark", 62, 82, 52, 88, 62, 92),
            _polygon("main", 50, 3, 82, 30, 50, 70, 18, 30),
            _polygon("light", 50, 3, 82, 30, 50, 30),
            _polygon("light", 50, 70, 18, 30, 50, 30),
        ),
        airy=True,
    ),
    Kind(
        "bell",
        "bells",
        (
            _ring("dark", 6, 40, 2, 60, 22),
            _ellipse("ink", 40, 78, 60, 97),
            _pie("main", 180, 360, 24, 14, 76, 70),
            _polygon("main", 24, 42, 76, 42, 82, 70, 94, 84, 6, 84, 18, 70),
            _rectangle("dark", 6, 78, 94, 87, radius=4),
            _line("light", 6, 34, 38, 30, 68),
        ),
        airy=True,
    ),
    Kind(
        "drum",
        "drums",
        (
            _ellipse("main", 6, 62, 94, 96),
            _rectangle("main", 6, 24, 94, 79),
            _line("pale", 4, 8, 34, 22, 88, 36, 40, 50, 94, 64, 40, 78, 88, 92, 34),
            _ellipse("dark", 6, 4, 94, 44),
            _ellipse("pale", 12, 7, 88, 39),
        ),
        surfaces=(Surface("on", 0.2, 0.8, 0.24),),
    ),
)

COLOURS: tuple[Colour, ...] = (
    Colour("red", (214, 40, 40), (150, 22, 28), (243, 130, 122), (40, 24, 28)),
    Colour("orange", (247, 138, 22), (196, 92, 8), (255, 196, 122), (48, 30, 20)),
    Colour("yellow", (250, 214, 34), (206, 162, 10), (255, 240, 150), (52, 44, 16)),
    Colour("green", (44, 160, 66), (22, 106, 44), (140, 212, 140), (18, 40, 24)),
    Colour("blue", (38, 98, 212), (22, 58, 146), (134, 178, 246), (18, 24, 48)),
    Colour("purple", (138, 62, 186), (90, 34, 128), (196, 146, 228), (36, 18, 48)),
    Colour("white", (246, 246, 244), (204, 204, 206), (255, 255, 255), (60, 60, 66)),
    Colour("black", (40, 40, 44), (16, 16, 18), (98, 98, 104), (226, 226, 222)),
)

SIZES: dict[str, tuple[int, int]] = {"small": (28, 35), "large": (60, 76)}
"""The range of a thing's mean side (square root of width times height) in pixels."""

KIND_BY_NAME: dict[str, Kind] = {kind.name: kind for kind in KINDS}
COLOUR_BY_NAME: dict[str, Colour] = {colour.name: colour for colour in COLOURS}
