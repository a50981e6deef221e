"""Compiles a noted launch with no GPU, and reads what became of it: registers, spills, shared memory, tensor-core instructions.

The compiler, the assembler and the disassembler are those in Triton's wheel; no toolkit is needed.
"""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from unimo_ds.kernels.launch_triton import Noted
from unimo_ds.kernels.static_report import Compiled

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
# Names in the disassembly: HMMA is mma.sync, HGMMA is wgmma, UTC*MMA is tcgen05.mma.
_TENSOR_CORES = {"mma.sync": r"\bHMMA\b", "wgmma": r"\bHGMMA\b", "tcgen05": r"\bUTC\w*MMA\b"}


def compile_noted(noted: Noted, architecture: int) -> Compiled:
    """Compiles one noted launch for an architecture."""
    target = GPUTarget("cuda", architecture, 32)
    backend: Any = make_backend(target)
    options = {"num_warps": noted.launch.warps, "num_stages": noted.launch.stages}
    kernel = noted.kernel
    # What Triton's own launch does, up to the point where it asks for a device.
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, given = bind(*noted.args, **noted.constants, **options)
    settings, signature, constants, attributes = kernel._pack_args(backend, given, bound, specialization, given)
    source = ASTSource(kernel, signature, constants, attributes)
    binary = triton.compile(source, target=target, options=settings.__dict__)
    return _read(binary.asm["cubin"], binary.metadata.shared)


def _read(cubin: bytes, shared: int) -> Compiled:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _run("cuobjdump", "-res-usage", file.name)
        code = _run("nvdisasm", "-c", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", usage)
    assert found is not None, usage
    counts = {name: len(re.findall(pattern, code)) for name, pattern in _TENSOR_CORES.items()}
    return Compiled(
        registers=int(found[1]),
        spilled=int(found[2]),
        shared=max(shared, int(found[3])),
        tensor_cores={name: count for name, count in counts.items() if count},
    )


def _run(tool: str, *words: str) -> str:
    return subprocess.run([_TOOLS / tool, *words], capture_output=True, text=True, check=True).stdout
