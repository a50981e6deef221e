"""What is installed on one machine, tried where that is possible: packages, compilers, Triton, LMDB, programs of the system."""

import importlib
import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import lmdb
import torch

from unimo_ds import nvidia_apex
from unimo_ds.augment.lexicon import Lexicon
from unimo_ds.augment.translation import ApertiumTranslator
from unimo_ds.doctor import machine
from unimo_ds.doctor.findings import Finding
from unimo_ds.engine.engine import import_deepspeed
from unimo_ds.errors import UnimoError
from unimo_ds.processes import cores

_IMPORTED = (
    "deepspeed",
    "torchvision",
    "transformers",
    "h5py",
    "tensorboard",
)  # compiled or large: a version alone says little of them
_EXTRAS = {
    "report": "pages",
    "augment": "rewriting captions, finding neighbours",
    "tasks": "ROUGE of summaries",
    "captions": "METEOR and SPICE",
}


class Check(NamedTuple):
    """One thing that was looked at: what, how it is, and what is wrong with it."""

    what: str
    state: str
    finding: Finding | None = None


def check_installation() -> Iterator[Check]:
    """Everything, in seconds."""
    for check in (_packages, _extras, _torch, _triton, _compilers, _apex, _files, _limits, _programs):
        yield from check()


def _packages() -> Iterator[Check]:
    required = machine.requirements()
    if not required:
        yield Check(
            "packages",
            "unimo_ds is not installed: its requirements are not known",
            Finding("unimo_ds is not installed as a package", "pip install --editable .", fault=False),
        )
    fitting = sum(map(machine.is_installed, required))
    yield Check("packages", f"{fitting} of {len(required)} within the ranges of setup.py")
    for name in _IMPORTED:
        try:
            import_deepspeed() if name == "deepspeed" else importlib.import_module(name)
        except Exception as error:  # whatever a package fails with: it cannot be used
            yield Check(
                name,
                "cannot be imported",
                Finding(
                    f"{name} cannot be imported: {type(error).__name__}: {error}",
                    f"pip install --force-reinstall {name}, for this torch",
                ),
            )


def _extras() -> Iterator[Check]:
    for extra, purpose in _EXTRAS.items():
        missing = [each.name for each in machine.requirements(extra) if not machine.is_installed(each)]
        if missing:
            yield Check(f"extra {extra}", f"without {', '.join(missing)}, for {purpose}: pip install 'unimo_ds[{extra}]'")


def _torch() -> Iterator[Check]:
    cuda = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for CPUs"
    if torch.cuda.is_available():
        devices = f"{torch.cuda.device_count()} GPUs, driver {machine.driver()}"
    else:
        devices = "no GPU: runs on the CPU, with gloo between ranks"
    yield Check("torch", f"{torch.__version__}, {cuda}; {devices}")


def _triton() -> Iterator[Check]:
    """Compiles one kernel, which needs no GPU."""
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        yield Check("Triton", "interprets kernels and compiles none, because TRITON_INTERPRET is set")
        return
    try:
        from unimo_ds.kernels.static_triton import compile_one

        yield Check("Triton", f"compiles ({compile_one()})")
    except Exception as error:  # of the compiler and its tools, or missing
        needed = torch.cuda.is_available()
        reason = f"Triton compiles nothing here: {type(error).__name__}: {error}"
        finding = Finding(reason, "install the CUDA build of torch, which brings Triton") if needed else None
        yield Check("Triton", f"{reason}; needed on GPUs only", finding)


def _compilers() -> Iterator[Check]:
    found = ", ".join(f"{name} {'yes' if place else 'NO'}" for name, place in machine.compilers().items())
    yield Check("compilers", f"{found}; for offloaded optimizers (ds_configs/zero3_offload.json) and apex only")


def _apex() -> Iterator[Check]:
    try:
        nvidia_apex.fused_layer_norm()
    except UnimoError as error:
        state = str(error).removeprefix("model.layer_norm = apex: ").split(";")[0]
        yield Check("apex", f"{state}; torch's LayerNorm and AdamW are used, and nothing needs it")
    else:
        yield Check("apex", "NVIDIA's, with its CUDA extensions")


def _files() -> Iterator[Check]:
    folder = Path.cwd() if os.access(Path.cwd(), os.W_OK) else Path(tempfile.gettempdir())
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".doctor-") as place:
            with lmdb.open(place, map_size=1 << 20) as environment, environment.begin(write=True) as transaction:
                transaction.put(b"key", b"value")
            with lmdb.open(place, readonly=True, lock=False) as environment, environment.begin() as transaction:
                assert transaction.get(b"key") == b"value"
    except (OSError, lmdb.Error) as error:
        yield Check(
            "LMDB", "does not work", Finding(f"LMDB does not work in {folder}: {error}", "keep regions on another disk")
        )
    else:
        yield Check("LMDB", f"writes and reads in {folder}")
    for what, path in (("disk", folder), ("temporary files", Path(tempfile.gettempdir()))):
        yield Check(what, f"{shutil.disk_usage(path).free / 1e9:,.1f} GB free in {path}")


def _limits() -> Iterator[Check]:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    threads = torch.get_num_threads()
    yield Check(
        "limits",
        f"{cores()} cores, {threads} threads a process, {files:,} open files, {machine.shared_memory() / 1e9:,.1f} GB of "
        "shared memory",
    )


def _programs() -> Iterator[Check]:
    try:
        ApertiumTranslator()
        yield Check("Apertium", "translates captions there and back")
    except UnimoError as error:
        yield Check("Apertium", f"{error}; without it captions have no back-translations")
    missing = "not found: fewer words are known as related; apt-get install wordnet-base"
    yield Check("WordNet", "found" if Lexicon.find().has_wordnet else missing)
    yield Check("Java", shutil.which("java") or "not found: no METEOR and SPICE")
