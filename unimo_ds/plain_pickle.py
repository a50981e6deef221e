"""Pickles that hold data and nothing else: numpy arrays and plain containers. Anything else is refused before it runs.

Some published files are pickles; an ordinary unpickler would run whatever code such a file names.
"""

import io
import pickle
import re
from typing import Any

_NUMPY = re.compile(r"numpy(\.\w+)*")
_BUILDERS = ("_reconstruct", "scalar", "_frombuffer")
_TYPES = {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode"), ("collections", "OrderedDict")}


class _DataOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _TYPES or (_NUMPY.fullmatch(module) and name in _BUILDERS):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which data does not need: nothing of it was run")


def load_plain(content: bytes | memoryview, encoding: str) -> Any:
    """What the pickle holds.

    Args:
        encoding: of Python 2's texts: `latin1`, or `bytes` to leave them as they are.

    Raises:
        Exception: of almost any kind, where it is damaged; UnpicklingError, where it holds more than data.
    """
    return _DataOnly(io.BytesIO(content), encoding=encoding).load()
