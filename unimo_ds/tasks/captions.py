"""Captioned images, in every form that they are published in."""

from collections.abc import Iterator
from typing import NamedTuple

from unimo_ds.config import CaptionFiles
from unimo_ds.data.prepared import Rejects
from unimo_ds.errors import DataError
from unimo_ds.files import read_json, text_of
from unimo_ds.tasks.files import opening
from unimo_ds.tasks.id_files import is_id_sentences, read_id_captions, read_id_sentences
from unimo_ds.tokenizer import Tokenizer


class Captioned(NamedTuple):
    """The number and the file name of an image, and what is said of it: nothing where it is to be predicted.

    The original release's captions know an image by its number alone, its retrieval files by its file name alone: there the
    one stands for both.
    """

    number: str
    file_name: str
    captions: list[str]


def captioned(files: CaptionFiles, tokenizer: Tokenizer, rejects: Rejects) -> Iterator[Captioned]:
    """The images of a set: of COCO captions, of Karpathy's split of COCO or Flickr30k, or of the original release's ids.

    Raises:
        DataError: the file is of none of these forms, ids are of another vocabulary, or its splits are not chosen.
    """
    start = opening(files.path)
    if start.startswith("{"):
        return _json(files, rejects)
    return (_id_sentences if is_id_sentences(start) else _id_captions)(files, tokenizer, rejects)


def _id_captions(files: CaptionFiles, tokenizer: Tokenizer, rejects: Rejects) -> Iterator[Captioned]:
    told: dict[str, list[str]] = {}
    for row in read_id_captions(files.path, tokenizer, rejects):
        if row.image.isdecimal():
            told.setdefault(row.image, []).extend([row.text] if row.text else [])
        else:
            rejects(f"{row.place}: image {row.image!r}; expected its number")
    yield from (Captioned(str(int(image)), image, captions) for image, captions in told.items())


def _id_sentences(files: CaptionFiles, tokenizer: Tokenizer, rejects: Rejects) -> Iterator[Captioned]:
    told: dict[str, list[str]] = {}
    for row in read_id_sentences(files.path, tokenizer, rejects):
        told.setdefault(row.image_name, []).append(row.text)
    yield from (Captioned(image, image, captions) for image, captions in told.items())


def _json(files: CaptionFiles, rejects: Rejects) -> Iterator[Captioned]:
    images = read_json(files.path, "images")["images"]
    if files.splits:
        for place, image in enumerate(images):
            try:
                if image["split"] in files.splits:
                    number = image["cocoid"] if "cocoid" in image else image["imgid"]  # of COCO; of Flickr30k
                    sentences = [text_of(each, "raw") for each in image["sentences"]]
                    yield Captioned(str(number), image["filename"], sentences)
            except (KeyError, TypeError, ValueError) as error:
                rejects(f"{files.path}: images[{place}]: {error}")
        there = sorted({str(image.get("split")) for image in images if isinstance(image, dict)})
        if not set(there) & set(files.splits):
            rejects(f"{files.path}: has no image of the splits {', '.join(files.splits)}; there are: {', '.join(there)}")
        return
    if any(isinstance(image, dict) and "split" in image for image in images[:1]):
        raise DataError(f"{files.path}: holds several splits; say with `splits` which of them the set is: [train], say")
    captions: dict[int, list[str]] = {}
    for place, annotation in enumerate(read_json(files.path, "annotations")["annotations"]):
        try:
            captions.setdefault(annotation["image_id"], []).append(text_of(annotation, "caption"))
        except (KeyError, TypeError, ValueError) as error:
            rejects(f"{files.path}: annotations[{place}]: {error}")
    for place, image in enumerate(images):
        try:
            yield Captioned(str(image["id"]), image["file_name"], captions.get(image["id"], []))
        except (KeyError, TypeError) as error:
            rejects(f"{files.path}: images[{place}]: {error}")
