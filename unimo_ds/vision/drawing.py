"""Regions drawn on their picture, for reports and for a look at what a detector sees."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from unimo_ds.regions import BACKGROUND, Regions

_COLOURS = ("#e6194b", "#0082c8", "#3cb44b", "#f58231", "#911eb4", "#008080", "#aa6e28", "#800000", "#808000", "#000080")


def describe_region(regions: Regions, index: int, class_names: Sequence[str], attribute_names: Sequence[str]) -> str:
    """`red cup 0.97`: the best class that is not the background, its probability, and the attribute if there is one."""
    ids, probabilities = regions.class_ids_RK[index], regions.class_probabilities_RK[index]
    rank = int((ids != BACKGROUND).argmax())
    attribute = int(regions.attribute_ids_R[index])
    words = [attribute_names[attribute - 1]] if attribute else []
    return " ".join([*words, class_names[int(ids[rank]) - 1], f"{float(probabilities[rank]):.2f}"])


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
        class_names, attribute_names: without background and "none", as a detector has them.
    """
    drawn = image.convert("RGB")
    if drawn is image:
        drawn = image.copy()
    canvas = ImageDraw.Draw(drawn)
    font = ImageFont.load_default(size=max(9, min(image.size) // 20))
    line = max(1, min(image.size) // 150)
    for index in reversed(range(min(most, len(regions)))):
        colour = _COLOURS[index % len(_COLOURS)]
        x1, y1, x2, y2 = (float(value) for value in regions.boxes_R4[index])
        canvas.rectangle((x1, y1, x2, y2), outline=colour, width=line)
        text = describe_region(regions, index, class_names, attribute_names)
        left, top, right, bottom = canvas.textbbox((0, 0), text, font=font)
        x = max(0.0, min(x1, image.width - (right - left) - 2))
        y = y1 - (bottom - top) - 3 if y1 > bottom - top + 3 else y1
        canvas.rectangle((x, y, x + right - left + 2, y + bottom - top + 3), fill=colour)
        canvas.text((x + 1 - left, y + 1 - top), text, fill="white", font=font)
    return drawn
