"""Pictures for pages: read from disk, scaled, and encoded into the page itself."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from unimo_ds.errors import ConfigError
from unimo_ds.regions import Regions
from unimo_ds.vision.extract import ImageError, as_rgb

_SUFFIXES = ("", ".jpg", ".jpeg", ".png", ".webp", ".JPEG")  # tried behind a key: published features name images without
_CANVAS = "#eef1f5"


@dataclass(frozen=True)
class Picture:
    """A picture inside a page; without `source`, `problem` says in its place what is wrong."""

    name: str
    source: str
    problem: str = ""
    width: int = 4
    height: int = 3


def check_folder(images: Path | None) -> None:
    """Raises ConfigError where `--images` is given and is no folder."""
    if images is not None and not images.is_dir():
        raise ConfigError(f"--images {images}: is no folder; expected the one below which the picture files are")


def open_picture(root: Path, key: str) -> Image.Image | Picture:
    """The picture `key` below `root` in RGB, or what to show in its place."""
    path = root / key
    try:
        with Image.open(path) as image:
            return Image.fromarray(as_rgb(image))
    except FileNotFoundError:
        return Picture(key, "", f"missing: {path}")
    except (OSError, ValueError, ImageError, Image.DecompressionBombError) as error:
        return Picture(key, "", f"cannot be read: {path} ({type(error).__name__})")


def picture_of(regions: Regions, key: str, images: Path | None) -> tuple[Image.Image, str]:
    """The picture that regions were found in, or an empty canvas of its size, and a remark on it; no remark: all is well.

    Args:
        regions: of the image.
        key: of the image in its store.
        images: the folder that keys are paths below; None: there are no pictures.
    """
    canvas = Image.new("RGB", (max(regions.width, 1), max(regions.height, 1)), _CANVAS)
    if images is None:
        return canvas, "drawn without its picture: no --images folder was given"
    found = next((key + suffix for suffix in _SUFFIXES if (images / (key + suffix)).is_file()), key)
    picture = open_picture(images, found)
    if isinstance(picture, Picture):
        return canvas, picture.problem
    if picture.size == (regions.width, regions.height):
        return picture, ""
    sizes = f"{picture.width}x{picture.height} pixels, its regions are of {regions.width}x{regions.height}"
    return picture, f"{images / found} has {sizes}: another picture, or resized since"


def fit(image: Image.Image, side: int) -> Image.Image:
    """Scaled, up or down, to `side` pixels on the longer side."""
    scale = side / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.LANCZOS)


def encode(name: str, image: Image.Image) -> Picture:
    """The picture as a JPEG in a `data:` address."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85, optimize=True)
    source = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    return Picture(name, source, "", image.width, image.height)
