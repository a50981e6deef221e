"""Files of arrays, npy and npz, and pickles of them: read without running what a pickle may contain."""

import io
import zipfile
from typing import Any

import numpy as np

from unimo_ds.plain_pickle import load_plain
from unimo_ds.region_layouts.rows import RowError


def unpickled(content: bytes | memoryview, what: str) -> Any:
    """Raises RowError: damaged, or more than data."""
    try:
        return load_plain(content, "bytes")
    except RowError:
        raise
    except Exception as error:  # a damaged pickle raises almost anything
        raise RowError(f"{what}: not a readable pickle of arrays ({type(error).__name__}: {error})") from error


def npy_array(content: bytes, what: str) -> Any:
    """The array of an npy file; one of objects is unpickled as data only.

    Raises:
        RowError: no npy file, or a damaged one.
    """
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        _, _, dtype = read_header(stream)
        if dtype.hasobject:
            array = unpickled(memoryview(content)[stream.tell() :], what)
            return array.item() if isinstance(array, np.ndarray) and array.ndim == 0 else array
        stream.seek(0)
        return np.lib.format.read_array(stream, allow_pickle=False)
    except RowError:
        raise
    except Exception as error:  # a damaged header is Python source, to numpy, and fails in as many ways
        raise RowError(f"{what}: not a readable npy array ({type(error).__name__}: {error})") from error


def npz_arrays(content: bytes, what: str) -> dict[str, Any]:
    """Every array of an npz file, by name.

    Raises:
        RowError: no npz file, or a damaged one.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = {name: archive.read(name) for name in archive.namelist() if name.endswith(".npy")}
    except Exception as error:  # zipfile and its decompressors raise many kinds on damage
        raise RowError(f"{what}: not a readable npz file ({type(error).__name__}: {error})") from error
    return {name[:-4]: npy_array(member, f"{what}, {name}") for name, member in members.items()}


def plain_names(record: Any) -> dict[str, Any]:
    """A record with names as text: Python 2 pickles have them as bytes.

    Raises:
        RowError: not a dictionary.
    """
    if not isinstance(record, dict):
        raise RowError(f"holds {type(record).__name__}; expected named fields")
    return {name.decode("latin1") if isinstance(name, bytes) else str(name): value for name, value in record.items()}
