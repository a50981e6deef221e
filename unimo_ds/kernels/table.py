"""How each Triton kernel is launched: a static table by architecture, type and width.

No tuning happens at start: a run is the same on its first step and on its thousandth. The rows were chosen without a GPU, by
what the compiler says of them: nothing spills, 16-bit products use the tensor cores of their architecture, and the rows of
sm_80 need at most 99 KB of shared memory, what consumer GPUs (sm_86, sm_89, sm_120) have too. `unimo-ds kernels` prints what
each row compiles to; README.md beside this file says how to add an architecture.
"""

from typing import Literal, NamedTuple

import torch

ARCHITECTURES = (80, 90, 100)  # Ampere (mma.sync), Hopper (wgmma), data-centre Blackwell (tcgen05)
WIDTHS = (32, 64, 128)  # of an attention head

AttentionKernel = Literal["forward", "d_query", "d_key_value"]


class Launch(NamedTuple):
    """One launch configuration.

    Attributes:
        rows, columns: of a tile.
        warps: of a program, 32 threads each.
        stages: loads that are in flight, the software pipeline's depth.
        depth: of a product's step, where the summed axis is walked in steps.
    """

    rows: int
    columns: int
    warps: int
    stages: int
    depth: int = 0


def architecture_for(capability: tuple[int, int]) -> int:
    """The architecture whose rows a device of this compute capability takes.

    Consumer Blackwell (12.x) has neither Hopper's wgmma nor tcgen05, so it takes Ampere's rows, as 8.6 and 8.9 do.

    Raises:
        ValueError: the device is older than sm_80.
    """
    major, minor = capability
    if major < 8:
        raise ValueError(
            f"this GPU is sm_{major}{minor}; the kernels need sm_80 (A100, RTX 30) or newer, which have bf16 tensor cores; "
            "train on the CPU with CUDA_VISIBLE_DEVICES= or use a newer GPU"
        )
    return {9: 90, 10: 100}.get(major, 80)


# The attention kernels by architecture, bytes of an element and head width. The rows of a tile are `attention.TILE_ROWS`; with
# 16 columns all steps are narrow ones. A row serves with and without dropout, whose random words need registers: so the
# gradient of keys and values, with its two sums, has narrower steps or more warps. In 16 bits, 4 warps are the warp group that
# wgmma and tcgen05 multiply 64 rows with. In float32 the three TF32 products of a product need both halves of all operands in
# registers: so 8 warps, and slices of the width where heads are wide.
_ATTENTION = {
    ("forward", 80, 2, 32): Launch(64, 64, warps=4, stages=3),
    ("forward", 80, 2, 64): Launch(64, 64, warps=4, stages=3),
    ("forward", 80, 2, 128): Launch(64, 64, warps=4, stages=2),
    ("forward", 80, 4, 32): Launch(64, 32, warps=4, stages=2),
    ("forward", 80, 4, 64): Launch(64, 32, warps=8, stages=2),
    ("forward", 80, 4, 128): Launch(64, 32, warps=8, stages=2, depth=32),
    ("d_query", 80, 2, 32): Launch(64, 64, warps=4, stages=2),
    ("d_query", 80, 2, 64): Launch(64, 32, warps=4, stages=3),
    ("d_query", 80, 2, 128): Launch(64, 32, warps=4, stages=2),
    ("d_query", 80, 4, 32): Launch(64, 32, warps=8, stages=2),
    ("d_query", 80, 4, 64): Launch(64, 16, warps=8, stages=2, depth=32),
    ("d_query", 80, 4, 128): Launch(64, 16, warps=8, stages=2, depth=32),
    ("d_key_value", 80, 2, 32): Launch(64, 32, warps=4, stages=2),
    ("d_key_value", 80, 2, 64): Launch(64, 32, warps=4, stages=2),
    ("d_key_value", 80, 2, 128): Launch(64, 64, warps=8, stages=2),
    ("d_key_value", 80, 4, 32): Launch(64, 16, warps=8, stages=2),
    ("d_key_value", 80, 4, 64): Launch(64, 16, warps=8, stages=2, depth=32),
    ("d_key_value", 80, 4, 128): Launch(64, 16, warps=8, stages=2, depth=32),
    ("forward", 90, 2, 32): Launch(64, 64, warps=4, stages=3),
    ("forward", 90, 2, 64): Launch(64, 64, warps=4, stages=3),
    ("forward", 90, 2, 128): Launch(64, 64, warps=4, stages=2),
    ("forward", 90, 4, 32): Launch(64, 32, warps=8, stages=2),
    ("forward", 90, 4, 64): Launch(64, 32, warps=8, stages=2),
    ("forward", 90, 4, 128): Launch(64, 16, warps=8, stages=2, depth=32),
    ("d_query", 90, 2, 32): Launch(64, 64, warps=4, stages=3),
    ("d_query", 90, 2, 64): Launch(64, 64, warps=4, stages=3),
    ("d_query", 90, 2, 128): Launch(64, 32, warps=4, stages=2),
    ("d_query", 90, 4, 32): Launch(64, 32, warps=8, stages=2),
    ("d_query", 90, 4, 64): Launch(64, 16, warps=8, stages=2, depth=32),
    ("d_query", 90, 4, 128): Launch(64, 16, warps=8, stages=2, depth=32),
    ("d_key_value", 90, 2, 32): Launch(64, 64, warps=4, stages=2),
    ("d_key_value", 90, 2, 64): Launch(64, 32, warps=4, stages=3),
    ("d_key_value", 90, 2, 128): Launch(64, 32, warps=8, stages=2),
    ("d_key_value", 90, 4, 32): Launch(64, 32, warps=8, stages=2),
    ("d_key_value", 90, 4, 64): Launch(64, 16, warps=8, stages=2, depth=32),
    ("d_key_value", 90, 4, 128): Launch(64, 16, warps=8, stages=1, depth=16),
    ("forward", 100, 2, 32): Launch(64, 64, warps=4, stages=3),
    ("forward", 100, 2, 64): Launch(64, 64, warps=4, stages=3),
    ("forward", 100, 2, 128): Launch(64, 64, warps=4, stages=2),
    ("forward", 100, 4, 32): Launch(64, 32, warps=8, stages=2),
    ("forward", 100, 4, 64): Launch(64, 32, warps=8, stages=2),
    ("forward", 100, 4, 128): Launch(64, 32, warps=8, stages=2, depth=32),
    ("d_query", 100, 2, 32): Launch(64, 64, warps=4, stages=3),
    ("d_query", 100, 2, 64): Launch(64, 64, warps=4, stages=3),
    ("d_query", 100, 2, 128): Launch(64, 64, warps=4, stages=2),
    ("d_query", 100, 4, 32): Launch(64, 32, warps=8, stages=2),
    ("d_query", 100, 4, 64): Launch(64, 32, warps=8, stages=2, depth=32),
    ("d_query", 100, 4, 128): Launch(64, 32, warps=8, stages=2, depth=32),
    ("d_key_value", 100, 2, 32): Launch(64, 64, warps=4, stages=2),
    ("d_key_value", 100, 2, 64): Launch(64, 64, warps=4, stages=2),
    ("d_key_value", 100, 2, 128): Launch(64, 64, warps=4, stages=2),
    ("d_key_value", 100, 4, 32): Launch(64, 32, warps=8, stages=2),
    ("d_key_value", 100, 4, 64): Launch(64, 32, warps=8, stages=2, depth=32),
    ("d_key_value", 100, 4, 128): Launch(64, 32, warps=8, stages=2, depth=32),
}


def attention_launch(kernel: AttentionKernel, architecture: int, dtype: torch.dtype, width: int) -> Launch:
    """The row of a kernel of attention_triton.py."""
    return _ATTENTION[kernel, architecture, dtype.itemsize, width]


# The contrastive kernels by name, architecture and bytes of an element; any width. Tiles are as large as registers allow,
# since a larger one reads less for a product. On Blackwell, where a thread has a run of columns of one row, 128 x 128 spills.
# On Ampere the three TF32 products that stand for one of float32 take so many registers that a step is 16 deep.
_CONTRASTIVE = {
    ("forward", 80, 2): Launch(128, 128, warps=8, stages=4, depth=32),
    ("forward", 80, 4): Launch(64, 128, warps=8, stages=3, depth=16),
    ("forward", 90, 2): Launch(128, 128, warps=8, stages=4, depth=64),
    ("forward", 90, 4): Launch(128, 64, warps=8, stages=3, depth=32),
    ("forward", 100, 2): Launch(128, 64, warps=8, stages=4, depth=64),
    ("forward", 100, 4): Launch(128, 64, warps=8, stages=3, depth=32),
    ("gradient", 80, 2): Launch(128, 128, warps=8, stages=4, depth=32),
    ("gradient", 80, 4): Launch(64, 128, warps=8, stages=3, depth=16),
    ("gradient", 90, 2): Launch(128, 128, warps=8, stages=4, depth=64),
    ("gradient", 90, 4): Launch(128, 64, warps=8, stages=3, depth=32),
    ("gradient", 100, 2): Launch(128, 64, warps=8, stages=4, depth=64),
    ("gradient", 100, 4): Launch(128, 64, warps=8, stages=3, depth=32),
}


def contrastive_launch(kernel: Literal["forward", "gradient"], architecture: int, dtype: torch.dtype) -> Launch:
    """The row of a kernel of contrastive_triton.py."""
    return _CONTRASTIVE[kernel, architecture, dtype.itemsize]


# The cross-entropy of any architecture and type: it is bound by memory. A thread has 8 logits of a step, one wide load in
# 16 bits, and few enough registers that many programs are there at once and their loads overlap. With 8 warps some types spill.
CROSS_ENTROPY = Launch(rows=1, columns=1024, warps=4, stages=2)
