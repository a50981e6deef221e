"""GPUs by their makers' data sheets: nothing here was measured."""

from typing import NamedTuple

from unimo_ds.errors import ConfigError
from unimo_ds.kernels.counts import A100, H100, Machine

_GB = 10**9
_GBIT = 10**9 / 8


class Gpu(NamedTuple):
    """A GPU in a node of its usual kind (DGX or HGX), without sparsity.

    Attributes:
        machine: its products of 16-bit operands and its memory's bandwidth.
        memory: bytes.
        link: to the other GPUs of its node, one way, bytes a second.
        network: its share of the node's network, one way, bytes a second.
    """

    machine: Machine
    memory: float
    link: float
    network: float


# A V100 has no bf16: its figure is that of fp16.
GPUS = {
    "v100-32": Gpu(Machine("V100 SXM 32 GB", 125e12, 0.9e12), 32 * _GB, 150 * _GB, 50 * _GBIT),
    "a100-40": Gpu(Machine("A100 SXM 40 GB", 312e12, 1.555e12), 40 * _GB, 300 * _GB, 200 * _GBIT),
    "a100-80": Gpu(A100, 80 * _GB, 300 * _GB, 200 * _GBIT),
    "h100": Gpu(H100, 80 * _GB, 450 * _GB, 400 * _GBIT),
    "h200": Gpu(Machine("H200 SXM", 989e12, 4.8e12), 141 * _GB, 450 * _GB, 400 * _GBIT),
    "b200": Gpu(Machine("B200 SXM", 2250e12, 8e12), 180 * _GB, 900 * _GB, 400 * _GBIT),
}


def find_gpu(name: str) -> Gpu:
    """The GPU that is called `name`.

    Raises:
        ConfigError: it is not known.
    """
    try:
        return GPUS[name.lower()]
    except KeyError:
        raise ConfigError(f"--gpu {name}: not known; there are {', '.join(GPUS)}. Take the one that is nearest.") from None
