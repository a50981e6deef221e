"""What a rank is made of: code, packages, device, and the limits of its host."""

import os
import platform
import re
import resource
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import torch
import xxhash
from packaging.requirements import Requirement

from unimo_ds.config import FinetuneConfig, RunConfig
from unimo_ds.distributed import Environment
from unimo_ds.doctor.findings import Finding
from unimo_ds.engine.engine import deepspeed_config
from unimo_ds.engine.run_log import git_state, package_versions
from unimo_ds.kernels.table import architecture_for
from unimo_ds.planning.memory import Zero
from unimo_ds.processes import cores

_PACKAGE = Path(__file__).parents[1]
_DRIVER = Path("/proc/driver/nvidia/version")
_SHARED = Path("/dev/shm")
_OPEN_FILES = 4096  # shards, loader processes and connections of a rank; usual limits are 1,024 and 65,536
_FREE_SHARE = 0.9  # of a GPU's memory, before anything but this process's own context is there


def code() -> dict[str, str]:
    """A digest of every file of this package."""
    files = [path for path in sorted(_PACKAGE.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
    return {str(path.relative_to(_PACKAGE)): xxhash.xxh3_64_hexdigest(path.read_bytes())[:8] for path in files}


def commit() -> str:
    """Of the repository that the code stands in, as a part of a sentence; empty outside of one."""
    state = git_state()
    if state is None:
        return ""
    changed = len(state["changed"].splitlines())
    return f", commit {state['commit'][:12]}{f' and {changed} changed files' if changed else ''}"


def versions() -> dict[str, str]:
    """Of what must be one environment on all hosts."""
    found = {"python": platform.python_version(), **package_versions(), "CUDA": torch.version.cuda}
    if torch.cuda.is_available():
        found["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
    return {name: version or "none" for name, version in found.items()}


def driver() -> str | None:
    """The version of NVIDIA's driver; None without one."""
    try:
        found = re.search(r"Module\s+(?:for \S+\s+)?([\d.]+)", _DRIVER.read_text(encoding="utf-8"))
    except OSError:
        return None
    return found[1] if found else "unknown"


class Device:
    """What a rank computes on.

    Attributes:
        name: of the device.
        unit: which one of the host's; empty for a CPU.
        free, total: bytes of memory.
    """

    def __init__(self, here: Environment) -> None:
        self.name, self.unit = "CPU", ""
        pages = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in Path("/proc/meminfo").read_text().splitlines()}
        self.free, self.total = pages["MemAvailable"], pages["MemTotal"]
        self._number = here.local_rank
        if torch.cuda.is_available() and here.local_rank < torch.cuda.device_count():
            properties = torch.cuda.get_device_properties(here.local_rank)
            self.name, self.unit = properties.name, str(properties.uuid)
            self.free, self.total = torch.cuda.mem_get_info(here.local_rank)

    def findings(self) -> Iterator[Finding]:
        """What would keep this rank from its GPU."""
        if not torch.cuda.is_available():
            if driver() is not None:
                yield Finding(
                    f"there is a GPU (driver {driver()}), and torch {torch.__version__} cannot use it",
                    "install a torch for a CUDA that this driver supports; look at CUDA_VISIBLE_DEVICES and --gres",
                )
            return
        if not self.unit:
            yield Finding(
                f"local rank {self._number} has no GPU of its own: {torch.cuda.device_count()} are visible",
                "start one rank a GPU (--ntasks-per-node, --nproc_per_node), and leave all of a node's GPUs visible to each",
            )
            return
        try:
            architecture_for(torch.cuda.get_device_capability(self._number))
        except ValueError as error:
            yield Finding(str(error))
        if self.free < _FREE_SHARE * self.total:
            yield Finding(
                f"only {self.free / 1e9:.1f} of {self.total / 1e9:.1f} GB of its GPU are free",
                "another process holds the rest: `nvidia-smi` on that host names it",
                fault=False,
            )


def package_findings() -> Iterator[Finding]:
    """Packages that are missing, or not of a version that setup.py allows."""
    for requirement in requirements():
        unmet = _unmet(requirement)
        if unmet:
            yield Finding(unmet, f"pip install '{requirement.name}{requirement.specifier}'")


def requirements(extra: str = "") -> list[Requirement]:
    """What setup.py asks for, as it was when this package was installed; of an extra, only what that adds."""
    try:
        lines = metadata.requires("unimo_ds") or []
    except metadata.PackageNotFoundError:
        return []
    parsed = [Requirement(line) for line in lines]
    if not extra:
        return [each for each in parsed if each.marker is None]
    return [each for each in parsed if each.marker is not None and each.marker.evaluate({"extra": extra})]


def _unmet(requirement: Requirement) -> str | None:
    """How a requirement is not met, in words."""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"the package {requirement.name} is not installed"
    if requirement.specifier.contains(version, prereleases=True):
        return None
    return f"the package {requirement.name} is {version}, and setup.py wants {requirement.specifier}"


def is_installed(requirement: Requirement) -> bool:
    """Whether a package is there in a version that is asked for."""
    return _unmet(requirement) is None


def shared_memory() -> int:
    """Bytes that are free in /dev/shm; 0 without one."""
    if not _SHARED.exists():
        return 0
    stat = os.statvfs(_SHARED)
    return stat.f_bavail * stat.f_frsize


def host_findings(run: RunConfig | FinetuneConfig | None, here: Environment) -> Iterator[Finding]:
    """Limits of the host that stop runs, or make them slow."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files < _OPEN_FILES:
        yield Finding(f"a process may open {files:,} files", f"ulimit -n {_OPEN_FILES} before the start", fault=False)
    if Path("/sys/class/infiniband").exists() and resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] != resource.RLIM_INFINITY:
        yield Finding("memory may not be locked without limit, and InfiniBand needs it", "ulimit -l unlimited", fault=False)
    threads = torch.get_num_threads() * here.local_world_size
    bound = cores() < (os.cpu_count() or 1)  # as by srun: what a rank may use, it does not share
    if here.local_world_size > 1 and threads > cores() and not bound:
        yield Finding(
            f"{here.local_world_size} ranks of {torch.get_num_threads()} threads share {cores()} cores",
            f"OMP_NUM_THREADS={max(1, cores() // here.local_world_size)}, or --cpus-per-task",
            fault=False,
        )
    if run is not None:
        yield from _run_findings(run, here)


def _run_findings(run: RunConfig | FinetuneConfig, here: Environment) -> Iterator[Finding]:
    data = run.data
    width = run.model.feature_width if isinstance(run, RunConfig) else 2048
    needed = here.local_world_size * data.workers * data.prefetch_steps * data.positions_per_micro_batch * width * 2
    if shared_memory() < needed:
        yield Finding(
            f"{_SHARED} has {shared_memory() / 1e9:.2f} GB, and batches on their way from the loaders may need "
            f"{needed / 1e9:.2f} GB",
            "docker run --shm-size, or lower data.prefetch_steps, or data.workers=0",
            fault=False,
        )

    missing = [name for name in ("g++", "ninja") if compilers()[name] is None]
    if Zero.read(deepspeed_config(run.training)).optimizer_at != "none" and missing:
        yield Finding(
            f"training.deepspeed = {run.training.deepspeed} offloads the optimizer, and DeepSpeedCPUAdam is compiled at the "
            f"start: {', '.join(missing)} not found",
            "apt-get install g++ ninja-build, or a module of the cluster; or a DeepSpeed file without offload",
        )


def compilers() -> dict[str, str | None]:
    """Where the programs are that DeepSpeed's and apex's ops are compiled with."""
    return {name: shutil.which(name) for name in ("g++", "ninja", "nvcc")}
