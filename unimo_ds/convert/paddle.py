"""Parameter files of Paddle 1.8, read without Paddle: one file a parameter, its name the parameter's (unimo-spec, 9.1).

    uint32   version of the stream, 0
    uint64   LoD levels, and for each uint64 bytes and so many bytes: parameters have none
    uint32   version of the tensor, 0
    int32    length of the description
    protobuf the description: field 1 the type of a number, field 2 the dimensions
    raw      the numbers, little-endian

Paddle's own files have these bytes (unimo-spec, 12.7).
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from unimo_ds.errors import CheckpointError

_TYPES = {3: "<i8", 4: "<f2", 5: "<f4", 6: "<f8"}  # Paddle's VarType: INT64, FP16, FP32, FP64
_LONGEST_DESCRIPTION = 1024  # bytes; a matrix takes about ten
_VARINT, _LENGTH_DELIMITED = 0, 2  # wire types of protobuf


@dataclass(frozen=True)
class PaddleParameter:
    """A parameter in its file; the numbers are not read yet.

    Attributes:
        path: the file.
        shape: of the tensor; weights of linear layers are [in, out].
        dtype: of its numbers.
        offset: bytes before the first of them.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    offset: int

    def read(self) -> npt.NDArray[np.float32]:
        """The numbers as float32.

        Raises:
            CheckpointError: they are no floats, or not all of them are finite.
        """
        if self.dtype.kind != "f":
            raise CheckpointError(
                f"{self.path}: holds {self.dtype} where a weight's floats are expected; unpack the archive again"
            )
        numbers = np.memmap(self.path, self.dtype, "r", self.offset, self.shape).astype(np.float32)
        if not np.isfinite(numbers).all():
            raise CheckpointError(
                f"{self.path}: {np.count_nonzero(~np.isfinite(numbers)):,} of its {numbers.size:,} numbers are not finite: it "
                "is damaged, or its training had diverged; unpack the archive again"
            )
        return numbers


def open_parameter(path: Path) -> PaddleParameter:
    """Reads the header of a parameter file and holds it against the file's size.

    Raises:
        CheckpointError: it is no such file, it is cut, or it is longer than its header says.
    """
    try:
        with path.open("rb") as file:
            shape, dtype = _read_header(file)
            offset = file.tell()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, struct.error) as error:
        raise CheckpointError(
            f"{path}: is no parameter file of Paddle ({error}); expected a LoDTensor stream as fluid.io.save_vars writes it. "
            "Unpack the archive again."
        ) from error
    expected, found = offset + math.prod(shape) * dtype.itemsize, path.stat().st_size
    if expected != found:
        raise CheckpointError(
            f"{path}: has {found:,} bytes, and its header says {expected:,} (shape {list(shape)} of {dtype}): it "
            f"{'was cut' if found < expected else 'is too long'}; unpack the archive again"
        )
    return PaddleParameter(path, shape, dtype, offset)


def _read_header(file: BinaryIO) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    _expect_version(file, "stream")
    (levels,) = _read(file, "<Q")
    if levels:
        raise ValueError(f"it has {levels} LoD levels, and a parameter has none")
    _expect_version(file, "tensor")
    (length,) = _read(file, "<i")
    if not 0 < length <= _LONGEST_DESCRIPTION:
        raise ValueError(f"a description of {length} bytes")
    description = file.read(length)
    if len(description) < length:
        raise ValueError("it ends within its header")
    fields = list(_protobuf_fields(description))
    types = [value for number, value in fields if number == 1]
    shape = tuple(value for number, value in fields if number == 2)
    if len(types) != 1 or types[0] not in _TYPES:
        raise ValueError(f"numbers of type {types}; known are {', '.join(f'{k}: {np.dtype(v)}' for k, v in _TYPES.items())}")
    if not shape or not all(0 < size < 1 << 40 for size in shape):
        raise ValueError(f"a tensor of shape {list(shape)}")
    return shape, np.dtype(_TYPES[types[0]])


def _read(file: BinaryIO, form: str) -> tuple[int, ...]:
    return struct.unpack(form, file.read(struct.calcsize(form)))


def _expect_version(file: BinaryIO, what: str) -> None:
    (version,) = _read(file, "<I")
    if version:
        raise ValueError(f"version {version} of the {what}, and only 0 is known")


def _protobuf_fields(message: bytes) -> Iterator[tuple[int, int]]:
    """Number and value of each field; of a packed one, of each value."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, place = _varint(message, place)
            yield number, value
        elif kind == _LENGTH_DELIMITED:
            length, place = _varint(message, place)
            end = place + length
            while place < end:
                value, place = _varint(message, place)
                yield number, value
        else:
            raise ValueError(f"field {number} of its description has wire type {kind}")


def _varint(message: bytes, place: int) -> tuple[int, int]:
    """The number that begins at `place`, and where the next one begins."""
    value = shift = 0
    while True:
        if place >= len(message):
            raise ValueError("its description ends within a number")
        byte = message[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
