"""A corpus made ready for training: token ids, image keys and region counts in memory-mapped arrays.

Tokenising happens once, not in every epoch of every rank, and lengths are known without touching a record: that is what
lets every rank compute the same plan of a step. The folder's name holds a fingerprint of all that went in, so a changed
input makes a new folder and an unchanged one is reused. It is written under another name and renamed when whole.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from unimo_ds.config import CorpusSection, DataSection
from unimo_ds.data.candidates import FoundNeighbours, Rewrites, prepare_neighbours, prepare_rewrites
from unimo_ds.data.prepared import (
    Keys,
    Rejects,
    TokenFile,
    batched,
    open_tokens,
    prepare_once,
    read_manifest,
    write_keys,
    write_manifest,
)
from unimo_ds.data.records import Record, read_records
from unimo_ds.data.store import RegionStore
from unimo_ds.errors import DamagedRecordError, DataError
from unimo_ds.progress import track
from unimo_ds.rewrites import pair_digest
from unimo_ds.tokenizer import Tokenizer

_VERSION = 3
_NO_IMAGE = -1


def can_be_read(store: RegionStore, key: str, rejects: Rejects, where: str) -> bool:
    """Whether the regions of image `key` are there and whole; if not, `rejects` is told why, and that `where` wants them."""
    try:
        store.get(key)
    except KeyError:
        rejects(f"{where}: image {key!r} has no regions in {store.folder}")
    except DamagedRecordError as error:
        rejects(f"{where}: {error}")
    else:
        return True
    return False


class Corpus:
    """A prepared corpus: N samples, each a text, an image, or both.

    Args:
        folder: what `prepare_corpus` returned.
        section: the corpus's configuration.

    Attributes:
        store: the regions of its images, or None.
        rewrites, neighbours: the candidates of its pairs for CMCL, or None.
    """

    def __init__(self, folder: Path, section: CorpusSection) -> None:
        self.section = section
        self.name = section.name
        self.manifest = read_manifest(folder)
        self._tokens = open_tokens(folder / "tokens.bin", self.manifest["narrow"])
        self._offsets = np.load(folder / "token_offsets.npy", mmap_mode="r")
        self._images = np.load(folder / "images.npy", mmap_mode="r")
        self._region_counts = np.load(folder / "region_counts.npy", mmap_mode="r")
        self._keys = Keys(folder)
        self.digests: npt.NDArray[np.uint64] = np.load(folder / "digests.npy", mmap_mode="r")
        self.store = RegionStore(section.regions) if section.regions is not None else None
        self.rewrites: Rewrites | None = None
        self.neighbours: FoundNeighbours | None = None

    def __len__(self) -> int:
        return len(self._images)

    def tokens(self, index: int) -> npt.NDArray[np.int64]:
        """Token ids of sample `index`, without special tokens."""
        return self._tokens[self._offsets[index] : self._offsets[index + 1]].astype(np.int64)

    def token_count(self, index: int) -> int:
        """Number of tokens of sample `index`."""
        return int(self._offsets[index + 1] - self._offsets[index])

    def region_count(self, index: int) -> int:
        """Number of regions of the image of sample `index`, as stored."""
        return int(self._region_counts[self._images[index]])

    def image_key(self, index: int) -> str:
        """Key, in the regions store, of the image of sample `index`."""
        return self._keys[int(self._images[index])]

    def image_group(self, index: int) -> int:
        """A number that samples of one image share, whichever corpora they are from: positives of the similarity matrix.

        An image is known by its store, as the configuration names it (the same on all ranks), and its key there.
        """
        return xxhash.xxh3_64_intdigest(f"{self.section.regions}/{self.image_key(index)}".encode()) >> 1


def prepare_corpora(data: DataSection, corpora: list[CorpusSection], show: bool = True) -> list[Corpus]:
    """Prepares those of `corpora` that are not ready, and opens all, with their rewrites and neighbours."""
    tokenizer = Tokenizer(data.tokenizer)
    opened = [Corpus(prepare_corpus(section, data, tokenizer, show), section) for section in corpora]
    longest = data.max_text_tokens - 2
    for corpus in opened:
        name, section = corpus.name, corpus.section
        if section.rewrites is not None:
            corpus.rewrites = prepare_rewrites(name, section.rewrites, corpus.digests, tokenizer, data.prepared, longest, show)
        if section.neighbours is not None:
            corpus.neighbours = prepare_neighbours(
                name, section.neighbours, corpus.digests, tokenizer, data.prepared, longest, show
            )
    return opened


def prepare_corpus(section: CorpusSection, data: DataSection, tokenizer: Tokenizer, show: bool = True) -> Path:
    """Tokenises one corpus into `data.prepared`, unless that was done before from the same input.

    Args:
        section: the corpus.
        data: says where prepared corpora are kept and how long a text may be.
        tokenizer: the run's tokenizer.
        show: report progress and rejected records.

    Returns:
        The prepared folder.

    Raises:
        DataError: the corpus cannot be read, or has not one usable record.
    """
    store = RegionStore(section.regions) if section.regions is not None else None
    return prepare_once(
        prepared_folder(section, data, tokenizer), lambda folder: _write_corpus(folder, section, data, tokenizer, store, show)
    )


def prepared_folder(section: CorpusSection, data: DataSection, tokenizer: Tokenizer) -> Path:
    """Where a corpus is, or will be, prepared: the name stands for all that decides its content.

    Raises:
        DataError: the corpus, or its regions store, cannot be read.
    """
    store = RegionStore(section.regions) if section.regions is not None else None
    return data.prepared / f"{section.name}-{_fingerprint(section, data, tokenizer, store)}"


def _fingerprint(section: CorpusSection, data: DataSection, tokenizer: Tokenizer, store: RegionStore | None) -> str:
    """Hash of all that decides the prepared arrays; files and stores count by place and time of change, they may be huge."""
    source: Any = None
    if section.path is not None:
        try:
            status = section.path.stat()
        except OSError as error:
            raise DataError(f"corpus {section.name}: {section.path}: cannot be read: {error.strerror}") from error
        source = (str(section.path.resolve()), status.st_size, status.st_mtime_ns)
    parts = (_VERSION, section.kind, section.format, source, tokenizer.fingerprint, data.max_text_tokens)
    regions: Any = None
    if store is not None:
        finished = (store.folder / "manifest.json").stat().st_mtime_ns
        regions = (str(store.folder.resolve()), finished, json.dumps(store.manifest, sort_keys=True))
    return hashlib.sha256(repr((*parts, regions)).encode()).hexdigest()[:12]


def _records(section: CorpusSection, store: RegionStore | None, rejects: Rejects) -> Iterator[Record]:
    if section.format == "regions":
        assert store is not None  # by the section's own validation
        yield from (Record("", key) for key in store.keys())
        return
    assert section.path is not None
    pairs = section.kind == "pairs"
    for record in read_records(section.path, section.format, pairs, rejects):
        if store is not None and record.image is not None and record.image not in store:
            rejects(f"{section.path}: image {record.image!r} has no regions in {store.folder}")
        else:
            yield record


class _Writer:
    """Collects what becomes the arrays of a corpus; tokens go to disk as they come."""

    def __init__(self, folder: Path, store: RegionStore | None, narrow: bool, longest: int) -> None:
        self.folder, self.store, self.longest = folder, store, longest
        self.narrow = narrow
        self._tokens = TokenFile(folder / "tokens.bin", narrow)
        self._offsets = [0]
        self._images: list[int] = []
        self._digests: list[int] = []
        self._image_numbers: dict[str, int] = {}
        self._region_counts: list[int] = []

    def add(self, record: Record, ids: list[int]) -> None:
        """A long text becomes several samples; a pair's caption is cut."""
        if record.image is not None:
            self._append(ids[: self.longest], self._image_number(record.image))
            self._digests.append(pair_digest(record.image, record.text))
            return
        pieces = -(-len(ids) // self.longest)  # pieces of equal length: no tiny remainder
        size = -(-len(ids) // max(pieces, 1))
        for start in range(0, len(ids), max(size, 1)):
            self._append(ids[start : start + size], _NO_IMAGE)

    def _append(self, ids: list[int], image: int) -> None:
        self._tokens.append(ids)
        self._offsets.append(self._tokens.tokens)
        self._images.append(image)

    def _image_number(self, key: str) -> int:
        if key not in self._image_numbers:
            assert self.store is not None
            self._image_numbers[key] = len(self._region_counts)
            self._region_counts.append(self.store.count(key))
        return self._image_numbers[key]

    def finish(self, manifest: dict[str, Any]) -> int:
        """Writes the arrays and the manifest; returns the number of samples."""
        self._tokens.close()
        write_keys(self.folder, list(self._image_numbers))
        np.save(self.folder / "digests.npy", np.asarray(self._digests, np.uint64))
        np.save(self.folder / "token_offsets.npy", np.asarray(self._offsets, np.int64))
        np.save(self.folder / "images.npy", np.asarray(self._images, np.int32))
        np.save(self.folder / "region_counts.npy", np.asarray(self._region_counts, np.int32))
        images = len(self._image_numbers)
        totals = {"samples": len(self._images), "tokens": self._offsets[-1], "images": images, "narrow": self.narrow}
        write_manifest(self.folder, {**manifest, **totals})
        return len(self._images)


def _write_corpus(
    folder: Path,
    section: CorpusSection,
    data: DataSection,
    tokenizer: Tokenizer,
    store: RegionStore | None,
    show: bool,
) -> None:
    rejects = Rejects()
    writer = _Writer(folder, store, tokenizer.size <= 1 << 16, data.max_text_tokens - 2)
    records = track(_records(section, store, rejects), f"preparing {section.name}", unit="records", enabled=show)
    for batch in batched(records):
        texts = [record.text for record in batch]
        encoded = tokenizer.encode(texts) if section.kind != "images" else [[] for _ in texts]
        for record, ids in zip(batch, encoded, strict=True):
            writer.add(record, ids)
    manifest = {
        "name": section.name,
        "source": str(section.path),
        "regions": str(section.regions),
        "tokenizer": tokenizer.fingerprint,
        "rejected": rejects.count,
        "rejected_first": rejects.reasons,
    }
    used = writer.finish(manifest)
    if show:
        rejects.report(f"corpus {section.name}", used)
    if used == 0:
        reasons = "; ".join(rejects.reasons) or "it is empty"
        raise DataError(f"corpus {section.name}: not one usable record in {section.path or section.regions}: {reasons}")
