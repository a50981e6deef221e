"""Published region features to a regions store, and a store to files for other tools.

A conversion goes on where an earlier one stopped: images that are in the store are stepped over by their key, undecoded.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import xxhash
from PIL import Image

from unimo_ds.data.store import (
    LONGEST_KEY,
    RegionStore,
    RegionStoreWriter,
    describe_difference,
    finish_store,
    shard_name,
)
from unimo_ds.errors import ConfigError, DataError, StoreError
from unimo_ds.failures import Failure, write_failures
from unimo_ds.names import read_names
from unimo_ds.progress import Progress
from unimo_ds.region_layouts import Damage, PublishedRegions, ReadOptions, open_layout
from unimo_ds.region_layouts.hdf5_files import BottomUpHdf5, described_detector
from unimo_ds.region_layouts.rows import CANVAS
from unimo_ds.region_layouts.writing import WRITERS, Extent
from unimo_ds.regions import Regions

_FAILURES = "failures-00000.jsonl"
_MEGABYTE = 1_000_000

_Names = tuple[Sequence[str], Sequence[str]]  # of classes and of attributes


@dataclass(frozen=True)
class ConversionPlan:
    """What to convert, to where, and what the files do not say of themselves.

    Attributes:
        sources: files or folders of one kind, converted into one store.
        out: the store's folder; an unfinished store is continued.
        layout: a key of `region_layouts.LAYOUTS`; None: told from each source.
        detector: what made the features, for the store's identity; None: what usually makes such files.
        sizes: image sizes, for layouts without them: see `read_sizes`.
        nominal_canvas, kept_classes, key_format: see `ReadOptions`.
        class_names, attribute_names: text files, one name a line, without background and "none".
    """

    sources: Sequence[Path]
    out: Path
    layout: str | None = None
    detector: str | None = None
    sizes: Path | None = None
    nominal_canvas: bool = False
    kept_classes: int = 16
    class_names: Path | None = None
    attribute_names: Path | None = None
    key_format: str = "{}"


@dataclass(frozen=True)
class ConversionResult:
    """What a conversion did.

    Attributes:
        layouts: of the sources, without repetition.
        converted: images written by this call.
        present: images that were in the store before.
        failures: rows that were stepped over, all of them in the report beside the store.
        lost: keys of failures for which the store has no regions from another row either.
    """

    layouts: tuple[str, ...]
    converted: int
    present: int
    failures: tuple[Failure, ...]
    lost: tuple[str, ...]


def convert_regions(plan: ConversionPlan, show_progress: bool = True) -> ConversionResult:
    """Converts all sources into one store and finishes it.

    Raises:
        DataError: a source is missing, of an unknown or another layout, or wholly unreadable; a sizes file is.
        StoreError: the store holds regions of another detector or layout.
        ConfigError: a wrong option.
    """
    options = _options(plan)
    sources = [open_layout(source, plan.layout, options) for source in plan.sources]
    for source in sources[1:]:
        if source.source != sources[0].source:
            raise DataError(
                f"{source.path}: is of {source.layout}, {sources[0].path} of {sources[0].layout}; one store takes one layout. "
                "Convert each into a store of its own."
            )
    total = sum(source.total_bytes for source in sources)
    with (
        _Conversion(plan) as conversion,
        Progress("converting regions", max(total // _MEGABYTE, 1), "MB", show_progress) as progress,
    ):
        before = 0
        for source in sources:
            conversion.add(source, partial(_report, progress, conversion, before))
            before += source.total_bytes
        return conversion.result(tuple(dict.fromkeys(source.layout for source in sources)))


def _report(progress: Progress, conversion: "_Conversion", before: int, position: int) -> None:
    failed = f", {len(conversion.failures):,} rows stepped over" if conversion.failures else ""
    count = conversion.converted + conversion.present
    progress.advance((before + position) // _MEGABYTE - progress.done, f"{count:,} images{failed}")


def _options(plan: ConversionPlan) -> ReadOptions:
    if plan.kept_classes < 1:
        raise ConfigError(f"kept_classes {plan.kept_classes}: at least 1 class is kept")
    try:
        if plan.key_format.format("1") == plan.key_format.format("2"):
            raise ValueError("it makes one key of all images")
    except (ValueError, IndexError, KeyError) as error:
        raise ConfigError(
            f"key_format {plan.key_format!r}: {error}; expected the image's name as {{}}, or with zeros before it as {{:0>12}}"
        ) from error
    return ReadOptions(
        kept_classes=plan.kept_classes,
        sizes=read_sizes(plan.sizes) if plan.sizes else {},
        nominal_canvas=plan.nominal_canvas,
        class_names=read_names(plan.class_names) if plan.class_names else (),
        attribute_names=read_names(plan.attribute_names) if plan.attribute_names else (),
        key_format=plan.key_format,
    )


class _Conversion:
    """The store that is being written, and what happened so far.

    The writer is opened with the first image: the store's identity has its feature width.
    """

    def __init__(self, plan: ConversionPlan) -> None:
        self.plan = plan
        self.converted = self.present = 0
        self.failures: list[Failure] = []
        self._writer: RegionStoreWriter | None = None
        self._met: set[int] = set()  # hashes of keys of images that were written or found to be there

    def __enter__(self) -> "_Conversion":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._writer is not None:  # `result` was not reached: what was converted stays, the store is unfinished
            self._writer.flush()
            self._writer.__exit__(kind, error, trace)
            write_failures(self.failures, self.plan.out / _FAILURES)

    def add(self, source: PublishedRegions, advance: Callable[[int], None]) -> None:
        """Converts one source.

        Raises:
            DataError: see `PublishedRegions.read`.
            StoreError: its identity is not that of the sources before, or of what is in the store already.
        """
        expected: tuple[int, int] | None = None
        for key, regions in source.read(self._reject, partial(self._skip, source.repeats), advance):
            shape = regions.features_RF.shape[1], regions.class_ids_RK.shape[1]
            if expected is None:
                expected = shape
                self._open(source, regions)
                if self._skip(source.repeats, key, ""):
                    continue
            assert self._writer is not None
            if (length := len(key.encode())) > LONGEST_KEY:
                self._reject(Damage(key[:80], str(source.path), f"a key of {length} bytes; at most {LONGEST_KEY}"))
            elif shape != expected:
                said = "{} numbers a feature and {} classes"
                self._reject(
                    Damage(key, str(source.path), f"{said.format(*shape)}; the first image has {said.format(*expected)}")
                )
            else:
                self._writer.write(key, regions)
                self._met.add(xxhash.xxh3_64_intdigest(key.encode()))
                self.converted += 1

    def _open(self, source: PublishedRegions, regions: Regions) -> None:
        """Opens the writer with the first image of the first source; checks that of any other to have the same identity."""
        identity, names = _identity(source, regions, self.plan.detector)
        if self._writer is None:
            if others := sorted({path.name for path in self.plan.out.glob("shard-*[0-9]")} - {shard_name(0)}):
                raise StoreError(
                    f"{self.plan.out}: has shards that no conversion wrote ({others[0]}, ...). Choose another --out, then join "
                    "both with `unimo-ds regions merge`."
                )
            self._writer = RegionStoreWriter(self.plan.out, identity, class_names=names[0], attribute_names=names[1])
        elif self._writer.detector != identity:
            raise StoreError(
                f"{source.path}: cannot join what was converted before it; "
                f"{describe_difference(self._writer.detector, identity)}. Convert it into a store of its own."
            )

    def _skip(self, repeats: bool, key: str, where: str) -> bool:
        """Whether `key` is in the store; a key that comes twice is reported, unless its layout repeats images."""
        if self._writer is None or key not in self._writer:
            return False
        digest = xxhash.xxh3_64_intdigest(key.encode())
        if digest not in self._met:
            self._met.add(digest)
            self.present += 1
        elif not repeats:
            self._reject(Damage(key, where, "the same key came before; the first of its rows that is whole was kept"))
        return True

    def _reject(self, damage: Damage) -> None:
        self.failures.append(Failure(damage.key, damage.where, damage.reason))

    def result(self, layouts: tuple[str, ...]) -> ConversionResult:
        """Finishes the store. Every source had an image that could be read, or `read` would have raised."""
        assert self._writer is not None
        writer, self._writer = self._writer, None
        lost = tuple(dict.fromkeys(failure.key for failure in self.failures if failure.key not in writer))
        writer.close()
        write_failures(self.failures, self.plan.out / _FAILURES)
        finish_store(self.plan.out)
        return ConversionResult(layouts, self.converted, self.present, tuple(self.failures), lost)


def _identity(source: PublishedRegions, regions: Regions, detector: str | None) -> tuple[dict[str, Any], _Names]:
    """The identity of a store of these regions, and the names that go with it; those of our own HDF5 are in the file."""
    options = source.options
    kept = regions.class_ids_RK.shape[1]
    identity: dict[str, Any] = {
        "architecture": detector or source.detector,
        "source": source.source,
        "classes": options.class_count if kept else 0,
        "attributes": options.attribute_count if source.has_attributes else 0,
        "feature_width": regions.features_RF.shape[1],
        "kept_classes": kept,
    }
    if options.nominal_canvas and not source.has_sizes:
        identity["image_size"] = f"where it is not known, {CANVAS}x{CANVAS} stands for it"
    names: _Names = (options.class_names, options.attribute_names)
    if isinstance(source, BottomUpHdf5):
        described = described_detector(source.path)
        names = names[0] or described.get("class_names", ()), names[1] or described.get("attribute_names", ())
        if detector is None:
            identity = described.get("detector", identity)
    return identity, names


def read_sizes(path: Path) -> Mapping[str, tuple[int, int]]:
    """Sizes of images by key: (width, height).

    Args:
        path: a COCO JSON file (by file name, by its stem in lower case too, and by id), a JSON object `{key: [width, height]}`,
            a table with lines of key, width and height between tabs, or the folder of the images (keys are paths below it).

    Raises:
        DataError: none of these.
    """
    path = Path(path)
    if path.is_dir():
        return _SizesOfImages(path)
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            return _sizes_in_json(json.loads(text))
        rows = (line.split("\t") for line in text.splitlines() if line.strip())
        return {key: _pair(width, height) for key, width, height in rows}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path}: cannot be read as sizes of images ({type(error).__name__}: {error}); expected COCO's JSON, a JSON object "
            "{key: [width, height]}, lines of key, width and height between tabs, or the folder of the images"
        ) from error


def _pair(width: Any, height: Any) -> tuple[int, int]:
    return int(width), int(height)


def _sizes_in_json(content: Any) -> dict[str, tuple[int, int]]:
    if not isinstance(content.get("images"), list):
        return {str(key): _pair(*size) for key, size in content.items()}
    sizes = {}
    for image in content["images"]:
        size = _pair(image["width"], image["height"])
        name = str(image["file_name"])
        # UNITER has the file names of COCO in lower case and without extension
        for key in (name, Path(name).stem.lower(), str(image.get("id", name))):
            sizes[key] = size
    return sizes


class _SizesOfImages(Mapping[str, tuple[int, int]]):
    """The sizes of the images in a folder, read from their headers when they are asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getitem__(self, key: str) -> tuple[int, int]:
        try:
            with Image.open(self.folder / key) as picture:
                return picture.size
        except (OSError, ValueError) as error:
            raise KeyError(key) from error

    def __iter__(self) -> Iterator[str]:
        return (path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())

    def __len__(self) -> int:
        return sum(1 for _ in self)


def export_regions(store_folder: Path, kind: str, out: Path, show_progress: bool = True) -> int:
    """Writes a finished store to one file for other tools; returns the number of images.

    Args:
        kind: a key of `WRITERS`: `tsv` (bottom-up attention), `lxmert` or `hdf5`.

    Raises:
        StoreError: not a finished store.
        DataError: a record does not go into such a file.
    """
    store = RegionStore(store_folder)
    boxes = sum(store.count(key) for key in store.keys())
    first = next((store.get(key) for key in store.keys()), None)
    if first is None:
        raise DataError(f"{store_folder}: an empty store; there is nothing to write")
    names = {"class_names": list(store.class_names), "attribute_names": list(store.attribute_names)}
    extent = Extent(len(store), boxes, store.feature_width, first.class_ids_RK.shape[1], {"detector": store.detector, **names})
    with Progress(f"writing {out}", len(store), "images", show_progress) as progress:
        WRITERS[kind](_each(store, progress), Path(out), extent)
    return len(store)


def _each(store: RegionStore, progress: Progress) -> Iterator[tuple[str, Regions]]:
    for key in store.keys():
        yield key, store.get(key)
        progress.advance()
