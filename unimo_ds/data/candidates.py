"""Rewritten captions and retrieved neighbours made ready for training: memory-mapped arrays, aligned with a corpus.

A rewrite belongs to a sample by what the sample is, its image and its caption, not by its place in a file. So a file of
rewrites may be filtered, shuffled or joined, and captions without rewrites simply have none.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from unimo_ds.batch import Source
from unimo_ds.data.prepared import (
    Keys,
    Rejects,
    TokenFile,
    batched,
    file_state,
    open_tokens,
    prepare_once,
    read_manifest,
    write_keys,
    write_manifest,
)
from unimo_ds.data.store import RegionStore
from unimo_ds.errors import DataError
from unimo_ds.neighbours import Neighbours, open_neighbours
from unimo_ds.progress import track
from unimo_ds.regions import Regions
from unimo_ds.rewrites import RewrittenCaption, pair_digest, read_rewrites, rewrite_files
from unimo_ds.tokenizer import Tokenizer

_VERSION = 1
_NONE = -1

# A sample's rewrites lie in this order: the true ones, then the false ones by level.
GROUPS = (Source.OWN, Source.SENTENCE, Source.PHRASE, Source.WORD)
_GROUP_OF_LEVEL = {"sentence": 1, "phrase": 2, "word": 3}

Digests = npt.NDArray[np.uint64]


class Rewrites:
    """The rewritten captions of a corpus, by sample and source.

    Args:
        folder: what `prepare_rewrites` returned.
    """

    def __init__(self, folder: Path) -> None:
        self.manifest = read_manifest(folder)
        self._tokens = open_tokens(folder / "tokens.bin", self.manifest["narrow"])
        self._lengths = np.load(folder / "lengths.npy", mmap_mode="r")
        self._first_row = np.load(folder / "first_row.npy", mmap_mode="r")
        self._first_token = np.load(folder / "first_token.npy", mmap_mode="r")
        self._counts = np.load(folder / "counts.npy", mmap_mode="r")

    def count(self, sample: int, source: Source) -> int:
        """How many rewrites sample `sample` has of `source`; of `Source.OWN` they are true, of the others false."""
        return int(self._counts[sample, GROUPS.index(source)])

    def length(self, sample: int, source: Source, number: int) -> int:
        """Tokens of a rewrite, without special ones."""
        return int(self._lengths[self._row(sample, source, number)])

    def tokens(self, sample: int, source: Source, number: int) -> npt.NDArray[np.int64]:
        """Token ids of a rewrite, without special ones."""
        row, first = self._row(sample, source, number), int(self._first_row[sample])
        start = int(self._first_token[sample]) + int(self._lengths[first:row].sum())
        return self._tokens[start : start + int(self._lengths[row])].astype(np.int64)

    def _row(self, sample: int, source: Source, number: int) -> int:
        return int(self._first_row[sample]) + int(self._counts[sample, : GROUPS.index(source)].sum()) + number


class FoundNeighbours:
    """The retrieved images and texts of a corpus, by sample.

    Args:
        folder: what `prepare_neighbours` returned.
        source: the folder that `tools/find_neighbours.py` wrote.
    """

    def __init__(self, folder: Path, source: Neighbours) -> None:
        self.manifest = read_manifest(folder)
        self._source = source
        self.stores = [RegionStore(store) for store in source.stores]
        self._pairs = np.load(folder / "pairs.npy", mmap_mode="r")
        self._keys = Keys(folder)
        self._store_numbers = np.load(folder / "stores.npy", mmap_mode="r")
        self._region_counts = np.load(folder / "region_counts.npy", mmap_mode="r")
        self._tokens = open_tokens(folder / "tokens.bin", self.manifest["narrow"])
        self._offsets = np.load(folder / "token_offsets.npy", mmap_mode="r")

    def images(self, sample: int) -> npt.NDArray[np.int64]:
        """Numbers of the images found for a sample, best first; those that no store has are left out."""
        pair = int(self._pairs[sample])
        if pair == _NONE:
            return np.zeros(0, np.int64)
        rows = self._source.image_rows[int(self._source.pair_images[pair])].astype(np.int64)
        rows = rows[rows != _NONE]
        held: npt.NDArray[np.int64] = rows[self._region_counts[rows] > 0]
        return held

    def texts(self, sample: int) -> npt.NDArray[np.int64]:
        """Numbers of the sentences found for a sample, best first."""
        pair = int(self._pairs[sample])
        if pair == _NONE:
            return np.zeros(0, np.int64)
        rows = self._source.text_rows[pair].astype(np.int64)
        found: npt.NDArray[np.int64] = rows[rows != _NONE]
        return found

    def region_count(self, image: int) -> int:
        """Number of regions of image `image`, as stored."""
        return int(self._region_counts[image])

    def image_name(self, image: int) -> tuple[Path, str]:
        """The store of image `image`, and its key there."""
        return self.stores[int(self._store_numbers[image])].folder, self._keys[image]

    def regions(self, image: int) -> Regions:
        """The regions of image `image`.

        Raises:
            KeyError: its store has lost it since the neighbours were prepared.
            DamagedRecordError: its record is damaged.
        """
        return self.stores[int(self._store_numbers[image])].get(self._keys[image])

    def length(self, text: int) -> int:
        """Tokens of sentence `text`, without special ones."""
        return int(self._offsets[text + 1] - self._offsets[text])

    def tokens(self, text: int) -> npt.NDArray[np.int64]:
        """Token ids of sentence `text`, without special ones."""
        return self._tokens[self._offsets[text] : self._offsets[text + 1]].astype(np.int64)


def prepare_rewrites(
    name: str, path: Path, digests: Digests, tokenizer: Tokenizer, prepared: Path, longest: int, show: bool
) -> Rewrites:
    """Tokenises a corpus's rewritten captions, unless that was done before from the same input.

    Args:
        name: the corpus.
        path: a file or folder of `unimo_ds.rewrites`.
        digests: `pair_digest` of each sample of the corpus.
        tokenizer: the run's tokenizer.
        prepared: where prepared folders are kept.
        longest: most tokens of a caption, without special ones.
        show: report progress and what was left out.

    Raises:
        DataError: the rewrites cannot be read, or not one belongs to a sample of the corpus.
    """
    sources = [file_state(file) for file in rewrite_files(path)]
    key = _digest("rewrites", sources, digests.tobytes(), tokenizer.fingerprint, longest)
    return Rewrites(
        prepare_once(
            prepared / f"{name}-rewrites-{key}",
            lambda folder: _write_rewrites(folder, name, path, digests, tokenizer, longest, show),
        )
    )


def _write_rewrites(
    folder: Path, name: str, path: Path, digests: Digests, tokenizer: Tokenizer, longest: int, show: bool
) -> None:
    samples = _SamplesOf(digests)
    narrow = tokenizer.size <= 1 << 16
    tokens, rejects = TokenFile(folder / "tokens.bin", narrow), Rejects()
    first_row, first_token = (np.zeros(len(digests), np.int64) for _ in range(2))
    counts = np.zeros((len(digests), len(GROUPS)), np.uint16)
    lengths: list[npt.NDArray[np.uint16]] = []
    rows = used = 0
    captions = track(read_rewrites(path, rejects), f"preparing rewrites of {name}", unit="captions", enabled=show)
    for batch in batched(captions, 100):
        texts = [
            text for caption in batch for text in (caption.text, *(text for group in _groups_of(caption) for text in group))
        ]
        encoded = iter(tokenizer.encode(texts))
        for caption in batch:
            own = next(encoded)[:longest]
            groups = [[next(encoded)[:longest] for _ in group] for group in _groups_of(caption)]
            mine = samples.find(pair_digest(caption.image, caption.text))
            if not len(mine):
                rejects(f"{path}: {caption.text!r} of image {caption.image!r} is no sample of corpus {name}")
                continue
            # A caption cut at max_text_tokens can lose the words that were changed; then it would be its own negative.
            kept = [[ids for ids in group if ids != own] for group in groups]
            first_row[mine], first_token[mine] = rows, tokens.tokens
            counts[mine] = [len(group) for group in kept]
            flat = [ids for group in kept for ids in group]
            lengths.append(np.array([len(ids) for ids in flat], np.uint16))
            for ids in flat:
                tokens.append(ids)
            rows, used = rows + len(flat), used + 1
    tokens.close()
    if not used:
        raise DataError(
            f"{path}: not one rewritten caption belongs to corpus {name}: {'; '.join(rejects.reasons) or 'it is empty'}. "
            "Rewrite the captions of this corpus with tools/rewrite_captions.py."
        )
    np.save(folder / "lengths.npy", np.concatenate(lengths))
    np.save(folder / "first_row.npy", first_row)
    np.save(folder / "first_token.npy", first_token)
    np.save(folder / "counts.npy", counts)
    totals = dict(zip(("positives", "sentence", "phrase", "word"), counts.sum(0, dtype=np.int64).tolist(), strict=True))
    without = int((counts.sum(1) == 0).sum())
    write_manifest(
        folder,
        {
            "corpus": name,
            "source": str(path),
            "narrow": narrow,
            "captions": used,
            "rewrites": totals,
            "samples_without": without,
        },
    )
    if show:
        rejects.report(f"rewrites of {name}", used)


def _groups_of(caption: RewrittenCaption) -> list[list[str]]:
    groups: list[list[str]] = [[rewrite.text for rewrite in caption.positives], [], [], []]
    for rewrite in caption.negatives:
        groups[_GROUP_OF_LEVEL[rewrite.level]].append(rewrite.text)
    return groups


class _SamplesOf:
    """Which samples a pair is: one, or several where a corpus holds a pair twice."""

    def __init__(self, digests: Digests) -> None:
        self._order = np.argsort(digests, kind="stable")
        self._sorted = digests[self._order]

    def find(self, digest: int) -> npt.NDArray[np.int64]:
        wanted = np.uint64(digest)
        first, last = np.searchsorted(self._sorted, wanted, "left"), np.searchsorted(self._sorted, wanted, "right")
        return self._order[first:last]


def prepare_neighbours(
    name: str, path: Path, digests: Digests, tokenizer: Tokenizer, prepared: Path, longest: int, show: bool
) -> FoundNeighbours:
    """Tokenises the sentences and looks up the images that were found for a corpus, unless that was done before.

    Args: as `prepare_rewrites`; `path` is a folder of `unimo_ds.neighbours`.

    Raises:
        DataError: the neighbours are not finished, or not one belongs to a sample of the corpus.
    """
    source = open_neighbours(path)
    for store in source.stores:
        if not (store / "manifest.json").exists():
            raise DataError(
                f"{path / 'manifest.json'}: the found images are in the regions store {store}, which is not there (seen from "
                f"{Path.cwd()}). Start the run in the folder where tools/find_neighbours.py ran, or run it again."
            )
    states = [file_state(path / "manifest.json"), *(file_state(store / "manifest.json") for store in source.stores)]
    key = _digest("neighbours", states, digests.tobytes(), tokenizer.fingerprint, longest)
    folder = prepare_once(
        prepared / f"{name}-neighbours-{key}",
        lambda folder: _write_neighbours(folder, name, source, digests, tokenizer, longest, show),
    )
    return FoundNeighbours(folder, source)


def _write_neighbours(
    folder: Path, name: str, source: Neighbours, digests: Digests, tokenizer: Tokenizer, longest: int, show: bool
) -> None:
    rejects = Rejects()
    rows = {int(digest): row for row, digest in enumerate(source.pairs)}
    pairs = np.array([rows.get(int(digest), _NONE) for digest in digests], np.int32)
    if (pairs == _NONE).all():
        raise DataError(
            f"{source.folder}: holds neighbours of no sample of corpus {name}. "
            "Find the neighbours of this corpus with tools/find_neighbours.py."
        )
    stores = [RegionStore(store) for store in source.stores]
    found = list(source.found_images())
    _expect_numbers_below(len(found), source, "image_rows")
    counts = np.array([_count_regions(stores, store, key, rejects) for store, key in found], np.int32)
    write_keys(folder, [key for _, key in found])
    np.save(folder / "pairs.npy", pairs)
    np.save(folder / "stores.npy", np.array([store for store, _ in found], np.int16))
    np.save(folder / "region_counts.npy", counts)
    narrow = tokenizer.size <= 1 << 16
    tokens, offsets = TokenFile(folder / "tokens.bin", narrow), [0]
    sentences = track(source.sentences(), f"preparing neighbours of {name}", unit="sentences", enabled=show)
    for batch in batched(sentences):
        for ids in tokenizer.encode(batch):
            tokens.append(ids[:longest])
            offsets.append(tokens.tokens)
    tokens.close()
    _expect_numbers_below(len(offsets) - 1, source, "text_rows")
    np.save(folder / "token_offsets.npy", np.asarray(offsets, np.int64))
    used = int((counts > 0).sum())
    without = int((pairs == _NONE).sum())
    write_manifest(
        folder,
        {"corpus": name, "source": str(source.folder), "narrow": narrow, "images": used, "texts": len(offsets) - 1}
        | {"samples_without": without},
    )
    if show:
        rejects.report(f"neighbours of {name}", used)


def _expect_numbers_below(there: int, source: Neighbours, array: str) -> None:
    rows = getattr(source, array)
    if rows.size and int(rows.max()) >= there:
        raise DataError(
            f"{source.folder}/{array}.npy: points to number {int(rows.max())}, and there are {there}. "
            "The folder is damaged: run tools/find_neighbours.py again."
        )


def _count_regions(stores: Sequence[RegionStore], store: int, key: str, rejects: Rejects) -> int:
    """Regions of an image; 0, and a word in the report, where the neighbour points to no image."""
    try:
        return stores[store].count(key)
    except (IndexError, KeyError):
        where = stores[store].folder if 0 <= store < len(stores) else f"store number {store} of {len(stores)}"
        rejects(f"the found image {key!r} is not in {where}; its pairs keep their other neighbours")
        return 0


def _digest(*parts: object) -> str:
    hashed = hashlib.sha256()
    for part in (_VERSION, *parts):
        hashed.update(part if isinstance(part, bytes) else repr(part).encode())
    return hashed.hexdigest()[:12]
