"""Regions drawn on their picture, for reports and for a look at what a detector sees."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from unimo_ds.regions import BACKGROUND, Regions

COLOURS = ("#e6194b", "#0082c8", "#3cb44b", "#f58231", "#911eb4", "#008080", "#aa6e28", "#800000", "#808000", "#000080")
SURE = 0.3
"""A region less probable is not drawn by `draw_surest`: stores keep a minimum of regions, however doubtful."""
_MOST_SURE = 8
_LARGEST_LETTER = 48  # pixels; posters need no larger ones
# Tried in this order, where the system has them, for letters that Pillow's own font lacks (it has Latin ones only).
_OTHER_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "Arial Unicode.ttf",
    "arial.ttf",
    "NotoSansCJK-Regular.ttc",
    "wqy-microhei.ttc",
    "msyh.ttc",
    "PingFang.ttc",
)
_NARROWEST = 240  # pixels: what is written under a picture must be read
_NO_LETTER = "\U0010ffff"  # drawn as what a font shows in place of letters it lacks

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont
Size = tuple[float, float]


def name_of(number: int, names: Sequence[str], kind: str) -> str:
    """The name of class or attribute `number` (counted from 1); `class 17` where it has none, `background` or `none` for 0."""
    if number == BACKGROUND:
        return "background" if kind == "class" else "none"
    return names[number - 1] if number <= len(names) else f"{kind} {number}"


def best_class(regions: Regions, index: int) -> tuple[int, float]:
    """The most probable class that is not the background, and its probability; the background's if no other was kept.

    Without kept classes: the background at 0.
    """
    ids, probabilities = regions.class_ids_RK[index], regions.class_probabilities_RK[index]
    if not len(ids):
        return BACKGROUND, 0.0
    rank = int((ids != BACKGROUND).argmax())
    return int(ids[rank]), float(probabilities[rank])


def describe_region(regions: Regions, index: int, class_names: Sequence[str], attribute_names: Sequence[str]) -> str:
    """`red cup 0.97`: the best class that is not the background, its probability, and the attribute if there is one."""
    attribute = int(regions.attribute_ids_R[index])
    words = [name_of(attribute, attribute_names, "attribute")] if attribute else []
    if regions.class_ids_RK.shape[1]:
        number, probability = best_class(regions, index)
        words += [name_of(number, class_names, "class"), f"{probability:.2f}"]
    return " ".join(words) or f"region {index + 1}"


def resize_regions(regions: Regions, width: int, height: int) -> Regions:
    """The same regions on the picture resized to `width` by `height` pixels."""
    across, down = width / regions.width, height / regions.height
    boxes_R4 = (regions.boxes_R4 * [across, down, across, down]).astype(np.float32)
    return replace(regions, width=width, height=height, boxes_R4=boxes_R4)


def place_labels(boxes: Sequence[Sequence[float]], sizes: Sequence[Size], width: float, height: float) -> list[Size]:
    """The left upper corner of each box's label: at the box, inside the picture, and over no earlier label if that can be.

    Args:
        boxes: `x1, y1, x2, y2` of each, the most important first.
        sizes: width and height of each label.
        width, height: of the picture.
    """
    placed: list[tuple[float, float, float, float]] = []
    for (x1, y1, x2, y2), (across, down) in zip(boxes, sizes, strict=True):
        lefts, tops = (x1, x2 - across, (x1 + x2 - across) / 2), (y1 - down, y1, y2, y2 - down)
        best, least = (0.0, 0.0), float("inf")
        for top in tops:
            for left in lefts:
                x, y = max(0.0, min(left, width - across)), max(0.0, min(top, height - down))
                covered = sum(_shared((x, y, x + across, y + down), other) for other in placed)
                if covered < least:
                    best, least = (x, y), covered
        placed.append((*best, best[0] + across, best[1] + down))
    return [(x, y) for x, y, _, _ in placed]


def _shared(one: Sequence[float], other: Sequence[float]) -> float:
    """The area that two boxes share."""
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, across) * max(0.0, down)


def draw_regions(
    image: Image.Image,
    regions: Regions,
    class_names: Sequence[str],
    attribute_names: Sequence[str],
    most: int = 10,
) -> Image.Image:
    """A copy of `image` with the `most` best regions' boxes and descriptions; the best is drawn last, on top.

    Args:
        image: the picture on disk that `regions` belong to.
        class_names, attribute_names: without background and "none", as a detector has them; where there is none, numbers.
    """
    drawn = image.convert("RGB")
    if drawn is image:
        drawn = image.copy()
    canvas = ImageDraw.Draw(drawn)
    size = min(_LARGEST_LETTER, max(9, min(image.size) // 20))
    line = max(1, min(image.size) // 150)
    shown = range(min(most, len(regions)))
    boxes = [_visible_box(regions.boxes_R4[index], image) for index in shown]
    texts = [describe_region(regions, index, class_names, attribute_names) for index in shown]
    fonts = [font_for(text, size) for text in texts]
    texts = [_shorten(canvas, text, font, image.width - 4) for text, font in zip(texts, fonts, strict=True)]
    outlines = [canvas.textbbox((0, 0), text, font=font) for text, font in zip(texts, fonts, strict=True)]
    sizes = [(right - left + 4, bottom - top + 4) for left, top, right, bottom in outlines]
    corners = place_labels(boxes, sizes, image.width, image.height)
    for index in reversed(shown):
        x1, y1, x2, y2 = boxes[index]
        # A light seam on both sides: a line of any colour is then seen on a ground of any colour.
        canvas.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline="white", width=line + 2)
        canvas.rectangle((x1, y1, x2, y2), outline=COLOURS[index % len(COLOURS)], width=line)
    for index in reversed(shown):
        colour, (x, y), (left, top, _, _) = COLOURS[index % len(COLOURS)], corners[index], outlines[index]
        canvas.rectangle((x, y, x + sizes[index][0] - 1, y + sizes[index][1] - 1), fill=colour)
        canvas.text((x + 2 - left, y + 2 - top), texts[index], fill=letters_on(colour), font=fonts[index])
    return drawn


def draw_surest(
    image: Image.Image, regions: Regions, class_names: Sequence[str], attribute_names: Sequence[str]
) -> tuple[Image.Image, str]:
    """As `draw_regions`, the best regions of those that are sure enough, and in words how many they are.

    The very best one if none is; without classes, nobody can say.

    Args:
        image: of any size; regions are resized to it.
        regions: of the picture on disk.
        class_names, attribute_names: as in `draw_regions`.
    """
    probability_R = np.where(regions.class_ids_RK != BACKGROUND, regions.class_probabilities_RK, 0).max(axis=1, initial=0)
    sure = np.flatnonzero(probability_R >= SURE)[:_MOST_SURE]
    classless = regions.class_ids_RK.shape[1] == 0
    shown = regions.only(sure if len(sure) else slice(_MOST_SURE if classless else 1))
    placed = resize_regions(shown, image.width, image.height)
    drawn = draw_regions(image, placed, class_names, attribute_names, most=len(shown))
    return drawn, f"{len(shown)} of {len(regions)} regions drawn"


def write_under(image: Image.Image, lines: Sequence[str]) -> Image.Image:
    """The picture with `lines` beneath it on white, each broken where it is wider than the picture, which may be widened."""
    width = max(image.width, _NARROWEST)
    size = min(_LARGEST_LETTER, max(12, width // 28))
    margin, height = size // 2, size * 3 // 2
    canvas = ImageDraw.Draw(image)
    rows = [(row, font) for line in lines for font in [font_for(line, size)] for row in _rows(canvas, line, font, width - size)]
    sheet = Image.new("RGB", (width, image.height + height * len(rows) + margin), "white")
    sheet.paste(image)
    canvas = ImageDraw.Draw(sheet)
    for number, (row, font) in enumerate(rows):
        canvas.text((margin, image.height + margin // 2 + height * number), row, fill="black", font=font)
    return sheet


def _rows(canvas: ImageDraw.ImageDraw, line: str, font: Font, width: float) -> list[str]:
    """`line` in rows that are not wider than `width`, broken at spaces; a longer word is cut."""
    rows: list[str] = []
    for word in line.split():
        longer = f"{rows[-1]} {word}" if rows else word
        if rows and canvas.textlength(longer, font=font) <= width:
            rows[-1] = longer
        else:
            rows.append(_shorten(canvas, word, font, width))
    return rows


def letters_on(colour: str) -> str:
    """White, or black where white has less than the contrast of 3 that large letters need (relative luminance, WCAG 2.1)."""
    linear = [
        value / 3294.6 if value <= 10 else ((value / 255 + 0.055) / 1.055) ** 2.4 for value in ImageColor.getrgb(colour)[:3]
    ]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "white" if 1.05 / (luminance + 0.05) >= 3 else "black"


def _visible_box(box_4: np.ndarray, image: Image.Image) -> tuple[float, float, float, float]:
    """With all four sides on the picture: a box that ends at its edge would be drawn beside it."""
    x1, x2 = sorted(min(max(float(x), 0.0), image.width - 1.0) for x in box_4[::2])
    y1, y2 = sorted(min(max(float(y), 0.0), image.height - 1.0) for y in box_4[1::2])
    return x1, y1, x2, y2


def font_for(text: str, size: int) -> Font:
    """The first font that has all letters of `text`; if the system has none, Pillow's own."""
    own = _font("", size)
    if own is None or text.isascii():
        return own or ImageFont.load_default()
    for name in ("", *_OTHER_FONTS):
        font = _font(name, size)
        if font is not None and all(_has(name, letter) for letter in set(text) - {" "}):
            return font
    return own


@cache
def _font(name: str, size: int) -> Font | None:
    try:
        return ImageFont.truetype(name, size) if name else ImageFont.load_default(size)
    except OSError:
        return None


@cache
def _has(name: str, letter: str) -> bool:
    """Whether a font draws `letter` in another way than one that no font has."""
    font = _font(name, 20)
    return font is not None and bytes(font.getmask(letter)) != bytes(font.getmask(_NO_LETTER))


def _shorten(canvas: ImageDraw.ImageDraw, text: str, font: Font, width: float) -> str:
    """`text`, cut where it is wider than `width` pixels."""
    if canvas.textlength(text, font=font) <= width:
        return text
    kept = len(text) - 1
    while kept > 1 and canvas.textlength(text[:kept] + "…", font=font) > width:
        kept -= 1
    return text[:kept] + "…"
