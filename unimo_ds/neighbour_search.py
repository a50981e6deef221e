"""For each image-text pair, images that show the same objects and sentences that speak of the same things.

UNIMO takes them into its contrastive learning as positives of one modality (its section 2.3; unimo-spec, 5). Images are
compared by their detected objects, texts by BM25 or by sentence vectors (`unimo_ds.augment.retrieval`); both searches go block
by block (`unimo_ds.augment.nearest`), and the result is a folder of `unimo_ds.neighbours`.

Memory, with N pairs of M distinct images, I images and Q sentences that can be found, K images and J sentences a pair, o
objects an image and c content words a text; features are not kept, so a terabyte of regions passes through:

    images   (16 o + 200) (M + I) + 16 K M                    and 4 I C with FAISS, C classes
    texts    (length + 200) (N + Q) + 24 c (N + Q) + 16 J N   and 4 D for 24 c with sentence vectors of D numbers

in bytes, and for each core at most 200 MB of blocks. LMDB's pages count as used by the process, but the system takes them back.
"""

import hashlib
import importlib.util
import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import xxhash

from unimo_ds.augment.nearest import INDEXES, Exclusions, Index, Nearest, nearest
from unimo_ds.augment.retrieval import (
    ObjectRows,
    fingerprint,
    image_vectors,
    iterate_sentences,
    object_weights,
    text_vectors,
    words,
)
from unimo_ds.augment.similarity import SentenceSimilarity
from unimo_ds.data.prepared import Rejects, file_state
from unimo_ds.data.records import read_records
from unimo_ds.data.store import RegionStore
from unimo_ds.errors import ConfigError, DamagedRecordError, DataError, UnimoError
from unimo_ds.neighbours import open_neighbours, write_neighbours
from unimo_ds.progress import Progress, track
from unimo_ds.regions import Regions
from unimo_ds.rewrites import pair_digest
from unimo_ds.vision.detector_file import load_detector

T = TypeVar("T")

_METHOD = 1  # raised when the same input gives another result
_FORMATS = {".json": "coco_captions", ".jsonl": "json_lines", ".txt": "plain_text"}
_PAIR_FORMATS = {suffix: _FORMATS[suffix] for suffix in (".json", ".jsonl")}
_ENCODED_AT_ONCE = 4096
_SHOWN_PAIRS, _SHOWN_NEIGHBOURS, _SHOWN_OBJECTS = 3, 3, 6


@dataclass(frozen=True)
class NeighbourPlan:
    """What to search, and how.

    Attributes:
        pairs: captions with their images, COCO JSON or JSON Lines.
        regions: the store of the pairs' images.
        images: stores of the images that can be found.
        texts: files of the sentences that can be found: plain text, JSON Lines or COCO captions.
        out: the folder that is written.
        images_per_pair, texts_per_pair: K and J, how many are found at most.
        image_score_above, text_score_above: found are only those of a higher score.
        index: `exact` or `faiss`; with BM25 texts are always searched exactly.
        text_vectors: a sentence-transformers model, whose vectors are compared instead of words.
        detector: packaged detector or detector file, of which only the names of the classes are used, in the summary.
    """

    pairs: Path
    regions: Path
    images: tuple[Path, ...]
    texts: tuple[Path, ...]
    out: Path
    images_per_pair: int = 100
    texts_per_pair: int = 100
    image_score_above: float = 0.5
    text_score_above: float = 0.0
    index: Index = "exact"
    text_vectors: Path | None = None
    detector: str = "world"


@dataclass(frozen=True)
class SearchResult:
    """What was found.

    Attributes:
        out: the folder.
        counts: how many there were of everything, as in the manifest.
        examples: some pairs with their best neighbours, in words; none where an earlier run had done the same.
    """

    out: Path
    counts: dict[str, int]
    examples: tuple[str, ...] = ()


def find_neighbours(plan: NeighbourPlan) -> SearchResult:
    """Searches and writes; a folder that the same search had written is left as it is.

    Raises:
        ConfigError: a number that makes no sense, `out` is a folder of something else, FAISS or the model is missing.
        DataError: an input file cannot be read, has an unknown suffix, or there is nothing in it to search.
        StoreError: a store is not finished, or the stores are of different detectors.
    """
    _check(plan)
    similarity = SentenceSimilarity(plan.text_vectors) if plan.text_vectors is not None else None
    stores = [RegionStore(folder) for folder in dict.fromkeys(plan.images)]
    own = RegionStore(plan.regions)
    for store in stores:
        store.expect_detector(own.detector, f"{plan.regions}, the store of the pairs' images")
    digest = _digest(plan)
    if (counts := _counts_of_earlier_run(plan.out, digest)) is not None:
        return SearchResult(plan.out, counts)
    pairs, rejected_pairs = _read_pairs(plan.pairs)
    sentences, numbers, rejected_texts = _read_sentences(plan.texts)
    keys = list(dict.fromkeys(pair.image for pair in pairs))
    images = _search_images(plan, own, keys, stores)
    if images.queries_not_read == len(keys):
        raise DataError(
            f"{plan.regions}: has regions of not one of the {len(keys):,} images in {plan.pairs} (the first is {keys[0]!r}). "
            "Give the store of these captions' own images."
        )
    texts = _search_texts(plan, similarity, [pair.text for pair in pairs], sentences, numbers)
    counts = {
        "pairs": len(pairs),
        "pairs_left_out": rejected_pairs,
        "images_of_pairs": len(keys),
        "images_of_pairs_not_read": images.queries_not_read,
        "images_of_pairs_with_neighbours": _rows_with_any(images.nearest),
        "images": len(images.listed),
        "images_not_read": images.not_read,
        "images_found": _found(images.nearest),
        "sentences": len(sentences),
        "texts_left_out": rejected_texts,
        "pairs_with_sentences": _rows_with_any(texts),
        "sentences_found": _found(texts),
    }
    number_of = {key: number for number, key in enumerate(keys)}
    arrays: dict[str, npt.NDArray[Any]] = {
        "pairs": np.array([pair_digest(pair.image, pair.text) for pair in pairs], np.uint64),
        "pair_images": np.array([number_of[pair.image] for pair in pairs], np.int32),
        "image_rows": images.nearest.numbers_QK,
        "image_scores": images.nearest.scores_QK,
        "text_rows": texts.numbers_QK,
        "text_scores": texts.scores_QK,
    }
    manifest = {"stores": [str(store.folder) for store in stores], "digest": digest, "counts": counts, "plan": _plain(plan)}
    write_neighbours(Path(os.path.abspath(plan.out)), manifest, arrays, images.listed, sentences)
    names = _class_names(plan.detector, own.detector)

    def example(row: int) -> str:
        pair = pairs[row]
        shown = f"{pair.image}: {_describe_objects(own, pair.image, names)}"
        best = _best(images.nearest, number_of[pair.image], images.listed)
        found = [(f"{key}: {_describe_objects(stores[store], key, names)}", score) for (store, key), score in best]
        return _describe_pair(shown, pair.text, found, _best(texts, row, sentences))

    rows = sorted({len(pairs) * step // _SHOWN_PAIRS for step in range(_SHOWN_PAIRS)})
    return SearchResult(plan.out, counts, tuple(example(row) for row in rows))


def describe(result: SearchResult) -> str:
    """The result as text for a terminal."""
    if not result.examples:
        return f"{result.out}: done before from the same input, nothing is changed: {_summary(result.counts)}"
    return "\n\n".join([f"{result.out}: {_summary(result.counts)}", *result.examples])


def _summary(counts: dict[str, int]) -> str:
    images, pairs = counts["images_of_pairs"], counts["pairs"]
    return (
        f"{pairs:,} pairs of {images:,} images; "
        f"{counts['images_found'] / images:.1f} of {counts['images']:,} images found for each image "
        f"({images - counts['images_of_pairs_with_neighbours']:,} have none), "
        f"{counts['sentences_found'] / pairs:.1f} of {counts['sentences']:,} sentences for each pair "
        f"({pairs - counts['pairs_with_sentences']:,} have none); left out: {counts['pairs_left_out']:,} pairs, "
        f"{counts['texts_left_out']:,} texts, {counts['images_of_pairs_not_read'] + counts['images_not_read']:,} images"
    )


def _check(plan: NeighbourPlan) -> None:
    for name in ("images_per_pair", "texts_per_pair", "image_score_above", "text_score_above"):
        if getattr(plan, name) < 0:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(plan, name)}: expected 0 or more")
    if plan.index not in INDEXES:
        raise ConfigError(f"--index {plan.index!r}: expected one of {', '.join(INDEXES)}")
    _format(plan.pairs, _PAIR_FORMATS, "pairs")
    for path in plan.texts:
        _format(path, _FORMATS, "texts")
    if plan.out.is_file() or (plan.out.is_dir() and any(plan.out.iterdir()) and not _is_ours(plan.out)):
        raise ConfigError(f"--out {plan.out}: is there already and holds no neighbours; choose a new folder")
    if plan.index == "faiss" and importlib.util.find_spec("faiss") is None:
        raise ConfigError("--index faiss: FAISS is not installed: `pip install faiss-cpu`, or leave the option out")
    try:  # before hours of work, not after them
        plan.out.absolute().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=plan.out.absolute().parent):
            pass
    except OSError as error:
        raise ConfigError(f"--out {plan.out}: cannot be written: {error.strerror}. Choose another folder.") from error


def _is_ours(out: Path) -> bool:
    """Whether a folder was written by this tool, and so may be replaced."""
    try:
        manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and manifest.get("format") == "unimo_ds neighbours"


def _format(path: Path, formats: dict[str, str], what: str) -> str:
    """The format of a file, by its suffix."""
    if path.suffix not in formats:
        allowed = ", ".join(f"{suffix} ({name})" for suffix, name in formats.items())
        raise DataError(f"{path}: unknown suffix {path.suffix!r} for {what}; allowed: {allowed}. Rename or convert the file.")
    return formats[path.suffix]


def _plain(plan: NeighbourPlan) -> dict[str, Any]:
    """The plan as JSON can hold it."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(plan), default=str))
    return plain


def _digest(plan: NeighbourPlan) -> str:
    """Names the search: its settings and the place, size and time of all that it reads; files may be huge."""
    model = sorted(plan.text_vectors.iterdir()) if plan.text_vectors is not None and plan.text_vectors.is_dir() else []
    manifests = [store / "manifest.json" for store in (plan.regions, *plan.images)]
    states = [file_state(path) for path in (plan.pairs, *plan.texts, *manifests, *model)]
    settings = {name: value for name, value in _plain(plan).items() if name not in ("out", "detector")}
    return hashlib.sha256(json.dumps([_METHOD, settings, states]).encode()).hexdigest()


def _counts_of_earlier_run(out: Path, digest: str) -> dict[str, int] | None:
    """What the same search found before, if it did."""
    try:
        manifest = open_neighbours(out).manifest
    except DataError:
        return None
    return manifest["counts"] if manifest.get("digest") == digest else None


# Reading


@dataclass(frozen=True, slots=True)
class _Pair:
    text: str
    image: str


def _read_pairs(path: Path) -> tuple[list[_Pair], int]:
    """The pairs, and how many records are none.

    Raises:
        DataError: not one can be used.
    """
    rejects = Rejects()
    records = read_records(path, _format(path, _PAIR_FORMATS, "pairs"), True, rejects)
    pairs = [_Pair(record.text, record.image or "") for record in track(records, f"reading {path.name}", unit="pairs")]
    rejects.report(str(path), len(pairs))
    if not pairs:
        raise DataError(f"{path}: holds no pair that can be used ({rejects.count} were left out)")
    return pairs, rejects.count


def _read_sentences(paths: Sequence[Path]) -> tuple[list[str], dict[int, int], int]:
    """The distinct sentences of 5 to 50 words, the number of each by `_identity`, and how many records cannot be used.

    Raises:
        DataError: there is no such sentence.
    """
    sentences: list[str] = []
    numbers: dict[int, int] = {}
    rejected = 0
    for path in paths:
        rejects, before = Rejects(), len(sentences)
        records = read_records(path, _format(path, _FORMATS, "texts"), False, rejects)
        texts = (record.text for record in track(records, f"reading {path.name}", unit="texts"))
        for sentence in iterate_sentences(texts):
            if numbers.setdefault(_identity(sentence), len(sentences)) == len(sentences):
                sentences.append(sentence)
        rejects.report(str(path), len(sentences) - before)
        rejected += rejects.count
    if not sentences:
        raise DataError(
            f"{', '.join(map(str, paths))}: no sentence of 5 to 50 words in there ({rejected} records were left out)"
        )
    return sentences, numbers, rejected


def _identity(sentence: str) -> int:
    """Equal for sentences that differ in capitals and punctuation only."""
    return xxhash.xxh3_64_intdigest(" ".join(words(sentence)).encode())


def _read_objects(
    stores: Sequence[RegionStore], listed: Sequence[tuple[int, str]], what: str, seen: Callable[[int, int], None]
) -> tuple[ObjectRows, int]:
    """The objects of each listed image, (number of the store, key), and how many cannot be read; those show nothing.

    `seen` is told the number and the fingerprint of each image that can be read.
    """
    rows, rejects = ObjectRows(), Rejects()
    for store, key in track(listed, f"reading {what}", len(listed), "images"):
        regions: Regions | None = None
        try:
            regions = stores[store].get(key)
            seen(len(rows), fingerprint(regions))
        except KeyError:
            rejects(f"{stores[store].folder}: there is no image {key!r}; its pairs get no images")
        except DamagedRecordError as error:
            rejects(str(error))
        rows.append(regions)
    rejects.report(what, len(rows) - rejects.count)
    return rows, rejects.count


# Searching


@dataclass(frozen=True)
class _FoundImages:
    """What was found for each image of a pair; (store, key) of all that can be found; and how many cannot be read."""

    nearest: Nearest
    listed: list[tuple[int, str]]
    queries_not_read: int
    not_read: int


def _search_images(plan: NeighbourPlan, own: RegionStore, keys: Sequence[str], stores: Sequence[RegionStore]) -> _FoundImages:
    """Images for each of `keys`, but never itself: no image of its key, in whatever store, and no copy of its record."""
    by_print: defaultdict[int, list[int]] = defaultdict(list)

    def remember(query: int, print_: int) -> None:
        by_print[print_].append(query)

    queries, queries_not_read = _read_objects([own], [(0, key) for key in keys], "images of pairs", remember)
    listed = [(number, key) for number, store in enumerate(stores) for key in store.keys()]
    by_key = {key: number for number, key in enumerate(keys)}
    same = [(by_key[key], image) for image, (_, key) in enumerate(listed) if key in by_key]

    def compare(image: int, print_: int) -> None:
        same.extend((query, image) for query in by_print.get(print_, ()))

    images, not_read = _read_objects(stores, listed, "images that can be found", compare)
    queries_QC, images_IC = image_vectors(queries, images)
    found = nearest(
        queries_QC,
        images_IC,
        plan.images_per_pair,
        Exclusions(same, len(listed)),
        plan.index,
        plan.image_score_above,
        "finding images",
    )
    return _FoundImages(found, listed, queries_not_read, not_read)


def _search_texts(
    plan: NeighbourPlan,
    similarity: SentenceSimilarity | None,
    captions: Sequence[str],
    sentences: Sequence[str],
    numbers: dict[int, int],
) -> Nearest:
    """Sentences for each caption, never the caption itself."""
    own = ((query, numbers.get(_identity(caption))) for query, caption in enumerate(captions))
    equal = [(query, number) for query, number in own if number is not None]
    index: Index = "exact"
    if similarity is None:
        queries, items = text_vectors(captions, sentences)
    else:
        index = plan.index
        queries, items = _encode(similarity, captions, "captions"), _encode(similarity, sentences, "sentences")
    exclusions = Exclusions(equal, len(sentences))
    return nearest(queries, items, plan.texts_per_pair, exclusions, index, plan.text_score_above, "finding sentences")


def _encode(similarity: SentenceSimilarity, texts: Sequence[str], what: str) -> npt.NDArray[np.float32]:
    vectors = np.zeros((len(texts), similarity.width), np.float32)
    with Progress(f"encoding {what}", len(texts), what) as progress:
        for first in range(0, len(texts), _ENCODED_AT_ONCE):
            batch = texts[first : first + _ENCODED_AT_ONCE]
            vectors[first : first + len(batch)] = similarity.encode(batch)
            progress.advance(len(batch))
    return vectors


def _found(nearest: Nearest) -> int:
    return int((nearest.numbers_QK >= 0).sum())


def _rows_with_any(nearest: Nearest) -> int:
    return int((nearest.numbers_QK >= 0).any(axis=1).sum())


# Showing


def _best(nearest: Nearest, row: int, items: Sequence[T]) -> list[tuple[T, float]]:
    """The first few that were found, with their scores."""
    numbers, scores = (matrix[row, :_SHOWN_NEIGHBOURS].tolist() for matrix in (nearest.numbers_QK, nearest.scores_QK))
    return [(items[number], score) for number, score in zip(numbers, scores, strict=True) if number >= 0]


def _describe_pair(
    image: str, caption: str, images: Sequence[tuple[str, float]], sentences: Sequence[tuple[str, float]]
) -> str:
    lines = [image, f"  {caption}"]
    for name, found in (("images", images), ("sentences", sentences)):
        lines += [f"  {name}:", *(f"    {score:5.2f}  {item}" for item, score in found)]
    return "\n".join(lines)


def _class_names(detector: str, identity: dict[str, Any]) -> Sequence[str]:
    """The names of classes 1, 2, ..., or none where the named detector is not the one that made the store."""
    try:
        named = load_detector(detector)
    except UnimoError:
        return ()
    return named.class_names if named.identity()["weights_sha256"] == identity.get("weights_sha256") else ()


def _describe_objects(store: RegionStore, key: str, names: Sequence[str]) -> str:
    """The likeliest objects of an image and how likely they are; by number where no name is known."""
    try:
        classes, weights = object_weights(store.get(key))
    except (KeyError, DamagedRecordError):
        return "cannot be read"
    found = sorted(zip(-weights, classes.tolist(), strict=True))[:_SHOWN_OBJECTS]
    return ", ".join(
        f"{names[number - 1] if number <= len(names) else f'class {number}'} {-weight:.2f}" for weight, number in found
    )
