"""Triton's interpreter, repaired where it is wrong.

It stores bf16 as the 16 bits of the number and multiplies these bits in `tl.dot` (known upstream: triton#4972, #11584). Here
such operands become float32 before the product, as in a tensor core. All other arithmetic of our kernels is in float32.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import triton.language as tl
from triton.runtime import interpreter

from unimo_ds.kernels.launch_triton import Launcher

INTERPRETED = Launcher(80)  # the rows of any architecture would do: the interpreter knows no hardware


def _exact(handle: Any) -> Any:
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    bits = handle.data.astype(np.uint32) << 16
    return interpreter.TensorHandle(bits.view(np.float32), tl.float32)


@contextmanager
def repaired() -> Iterator[None]:
    """`tl.dot` multiplies the numbers that bf16 operands stand for."""
    create_dot = interpreter.InterpreterBuilder.create_dot

    def create_exact_dot(self: Any, a: Any, b: Any, d: Any, *settings: Any) -> Any:
        return create_dot(self, _exact(a), _exact(b), d, *settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter.InterpreterBuilder, "create_dot", create_exact_dot)
        yield
