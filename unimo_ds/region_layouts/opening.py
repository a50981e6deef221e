"""Which layout a file or folder has."""

import zipfile
from pathlib import Path

from unimo_ds.errors import ConfigError, DataError
from unimo_ds.region_layouts.databases import UniterDatabase, VilbertDatabase, database_kind
from unimo_ds.region_layouts.folders import NpyFolder, NpzFolder, VlBertJson, folder_kind
from unimo_ds.region_layouts.hdf5_files import BottomUpHdf5, CaptioningHdf5, GroupHdf5, NocapsHdf5, hdf5_kind
from unimo_ds.region_layouts.lines import read_lines
from unimo_ds.region_layouts.published import PublishedRegions
from unimo_ds.region_layouts.rows import ReadOptions
from unimo_ds.region_layouts.tables import (
    BottomUpTable,
    LxmertTable,
    UnimoCaptions,
    UnimoEntailment,
    UnimoTable,
    UnimoTableHeightFirst,
    unimo_order,
)
from unimo_ds.region_layouts.vinvl import VinvlFeatures, VinvlPredictions

_KINDS: tuple[type[PublishedRegions], ...] = (
    BottomUpTable,
    LxmertTable,
    UnimoTable,
    UnimoTableHeightFirst,
    UnimoCaptions,
    UnimoEntailment,
    UniterDatabase,
    VilbertDatabase,
    BottomUpHdf5,
    NocapsHdf5,
    GroupHdf5,
    CaptioningHdf5,
    NpzFolder,
    NpyFolder,
    VlBertJson,
    VinvlFeatures,
    VinvlPredictions,
)
LAYOUTS = {kind.layout: kind for kind in _KINDS}

_HDF5 = b"\x89HDF\r\n\x1a\n"


def open_layout(path: Path, layout: str | None = None, options: ReadOptions | None = None) -> PublishedRegions:
    """Published regions, ready to be read.

    Args:
        path: the file, or the folder of a layout that is one.
        layout: a key of `LAYOUTS`; None: told from the content.
        options: what the file does not say of itself.

    Raises:
        DataError: no such file, or its layout cannot be told.
        ConfigError: no such layout.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if layout is not None and layout not in LAYOUTS:
        raise ConfigError(f"layout {layout!r}: not known; allowed are {', '.join(LAYOUTS)}")
    kind = _kind_of(path) if layout is None else LAYOUTS[layout]
    return kind(path, options or ReadOptions())


def _kind_of(path: Path) -> type[PublishedRegions]:
    if path.is_dir():
        if (path / "manifest.json").exists():
            raise DataError(f"{path}: is a regions store already, not a published layout")
        if (path / "data.mdb").exists():
            return database_kind(path)
        return VinvlFeatures if (path / "features.tsv").exists() else folder_kind(path)
    with path.open("rb") as file:
        start = file.read(8)
    if start == _HDF5:
        return hdf5_kind(path)
    if path.suffix == ".npz":
        return NpzFolder
    if path.suffix == ".npy":
        return NpyFolder
    if path.suffix == ".json" or zipfile.is_zipfile(path):
        return VlBertJson
    return _table_kind(path)


def _table_kind(path: Path) -> type[PublishedRegions]:
    """By the number of columns of the first line."""
    first = next(read_lines(path), None)
    if first is None:
        raise DataError(f"{path}: is empty")
    tabs, semicolons = first.content.count(b"\t"), first.content.count(b";")
    if tabs == 6:
        return unimo_order(path)
    kinds: dict[tuple[int, int], type[PublishedRegions]] = {
        (5, 0): BottomUpTable,
        (9, 0): LxmertTable,
        (12, 0): LxmertTable,
        (0, 15): UnimoCaptions,
        (0, 13): UnimoEntailment,
        (2, 0): VinvlFeatures,
    }
    if tabs == 1 and b'"feature"' in first.content:
        return VinvlPredictions
    if (kind := kinds.get((tabs, semicolons))) is None:
        raise DataError(
            f"{path}: its first line has {tabs + 1} columns between tabs and {semicolons + 1} between semicolons, as no known "
            f"layout; say --layout with one of {', '.join(LAYOUTS)}"
        )
    return kind
