"""Parameter files of Paddle: what is whole is read, and whatever is not says why."""

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.convert.original_files import parameter_bytes
from unimo_ds.convert.paddle import open_parameter
from unimo_ds.errors import CheckpointError

NUMBERS = np.arange(6, dtype=np.float32).reshape(2, 3)
WHOLE = parameter_bytes(NUMBERS)


def written(folder: Path, content: bytes) -> Path:
    path = folder / "pooled_fc_text.w_0"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("packed", [False, True], ids=["dimensions one by one", "packed"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(1,), (300,), (2, 150), (3, 5, 7)], ids=str)
def test_numbers_come_back_as_float32(tmp_path: Path, shape: tuple[int, ...], dtype: str, packed: bool) -> None:
    numbers = np.random.default_rng(0).normal(size=shape).astype(dtype)
    found = open_parameter(written(tmp_path, parameter_bytes(numbers, packed)))
    assert found.shape == shape and found.dtype == np.dtype(dtype)
    assert found.read().dtype == np.float32
    np.testing.assert_array_equal(found.read(), numbers.astype(np.float32))


def test_the_bytes_are_those_that_are_documented() -> None:
    """Of a float32 tensor of 2 x 3, by hand: the test's writer and the reader must not share a mistake."""
    header = "00000000" + "0000000000000000" + "00000000" + "06000000" + "0805" + "1002" + "1003"
    assert bytes.fromhex(header) + struct.pack("<6f", *range(6)) == WHOLE


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no parameter file of Paddle"),
        (b"a text that is long enough", "is no parameter file of Paddle .version .* of the stream"),
        (WHOLE[:10], "is no parameter file of Paddle"),
        (WHOLE[:22], "ends within its header"),
        (WHOLE[:-1], "has 49 bytes, and its header says 50 .*it was cut; unpack"),
        (WHOLE + b"\0", "has 51 bytes, and its header says 50 .*it is too long; unpack"),
        (struct.pack("<IQ", 0, 1) + WHOLE[12:], "1 LoD levels"),
        (WHOLE[:12] + struct.pack("<I", 7) + WHOLE[16:], "version 7 of the tensor"),
        (WHOLE[:16] + struct.pack("<i", -1) + WHOLE[20:], "description of -1 bytes"),
        (WHOLE[:16] + struct.pack("<i", 5) + WHOLE[20:], "ends within a number"),
        (WHOLE.replace(b"\x08\x05", b"\x08\x14"), "numbers of type .20.; known are 3: int64, 4: float16, 5: float32"),
        (WHOLE.replace(b"\x10\x02", b"\x10\x00"), r"shape \[0, 3\]"),
        (WHOLE.replace(b"\x08\x05", b"\x0d\x05"), "wire type 5"),
    ],
)
def test_a_file_that_is_not_whole_says_why(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=f"pooled_fc_text.w_0: .*{message}"):
        open_parameter(written(tmp_path, content))


def test_a_folder_in_a_file_s_place(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read: Is a directory"):
        open_parameter(tmp_path)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (np.arange(3), "holds int64 where a weight's floats are expected"),
        (np.array([1.0, np.nan, np.inf], np.float32), "2 of its 3 numbers are not finite"),
    ],
)
def test_numbers_that_are_no_weights(tmp_path: Path, numbers: np.ndarray, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_parameter(written(tmp_path, parameter_bytes(numbers))).read()


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.integers(0, 25), st.integers(0, 255))
def test_a_wrong_byte_in_the_header_is_an_error_of_ours_or_no_error(
    tmp_path_factory: pytest.TempPathFactory, place: int, value: int
) -> None:
    content = bytearray(WHOLE)
    content[place] = value
    try:
        found = open_parameter(written(tmp_path_factory.mktemp("damage"), bytes(content)))
        assert np.prod(found.shape) * found.dtype.itemsize == 24
    except CheckpointError as error:
        assert "pooled_fc_text.w_0" in str(error)
