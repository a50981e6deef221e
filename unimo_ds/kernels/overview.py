"""What `unimo-ds kernels` says: which implementation runs on this machine and why, and what the kernels compile to."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch

from unimo_ds.errors import ConfigError
from unimo_ds.kernels import linear, static_report
from unimo_ds.kernels.table import ARCHITECTURES, WIDTHS, architecture_for

_CPU = {
    "attention": "sequences of one padded length together, batched products",
    "contrastive statistics": "chunks that stay in the cache, one sweep for both directions",
    "linear cross-entropy": "chunks of targets, logits become gradients in place",
}


@dataclass(frozen=True)
class CompileReport:
    """What a new compile of the kernels gave: the text to show, and what is wrong."""

    text: str
    problems: list[str]


def overview(architectures: Sequence[int] | None) -> str:
    """What would run here, and the golden report of these architectures (all by default)."""
    golden = static_report.read_report().only(_wanted(architectures))
    return "\n".join(
        [
            f"torch {torch.__version__}, Triton {_triton_version() or 'not installed'}",
            *_devices(),
            "",
            f"What the kernels compile to (Triton {golden.triton}, no GPU needed; `--compile` makes it again):",
            "",
            static_report.table(golden.kernels),
        ]
    )


def _devices() -> Iterator[str]:
    if not torch.cuda.is_available():
        yield "no CUDA device is visible: every op runs its CPU implementation"
        for op, how in {**_CPU, **linear.choices()}.items():
            yield f"  {op}: {how}"
        return
    for number in range(torch.cuda.device_count()):
        name, capability = torch.cuda.get_device_name(number), torch.cuda.get_device_capability(number)
        device = f"cuda:{number} {name}, sm_{capability[0]}{capability[1]}"
        try:
            rows = architecture_for(capability)
        except ValueError as error:
            yield f"{device}: {error}"
            continue
        if _triton_version() is None:
            yield f"{device}: Triton is missing, so no kernel can run: install a CUDA build of torch, which brings it"
        else:
            yield f"{device}: Triton kernels by the table's rows of sm_{rows}; head widths {', '.join(map(str, WIDTHS))}"


def _triton_version() -> str | None:
    for name in ("triton", "pytorch-triton"):
        try:
            return version(name)
        except PackageNotFoundError:
            pass
    return None


def _wanted(architectures: Sequence[int] | None) -> list[int]:
    for architecture in architectures or ():
        if architecture not in ARCHITECTURES:
            allowed = ", ".join(map(str, ARCHITECTURES))
            raise ConfigError(f"--architecture {architecture}: the table has rows for {allowed}")
    return sorted(set(architectures or ARCHITECTURES))


def check_compiled(architectures: Sequence[int] | None, processes: int, update: bool) -> CompileReport:
    """Compiles the shipped kernels and compares with the golden file, or makes what was compiled the golden file.

    Raises:
        ConfigError: an architecture is unknown, nothing can be compiled here, or a part of the golden file would be kept of
            another version of Triton than the rest.
    """
    chosen = _wanted(architectures)
    if _triton_version() is None:
        raise ConfigError("Triton is not installed, so nothing can be compiled: it comes with torch's CUDA build")
    from unimo_ds.kernels.static_triton import compile_shipped

    found = compile_shipped(chosen, processes)
    if update and not any(facts.spilled for facts in found.kernels.values()):
        _keep(found, chosen)
    wrong = list(static_report.problems(found, static_report.read_report().only(chosen)))
    verdict = wrong or [f"{len(found.kernels)} kernels: nothing spills, nothing has lost its tensor-core instructions"]
    return CompileReport("\n".join([static_report.table(found.kernels), "", *verdict]), wrong)


def _keep(found: static_report.Report, chosen: Sequence[int]) -> None:
    rest = [architecture for architecture in ARCHITECTURES if architecture not in chosen]
    golden = static_report.read_report()
    kept = golden.only(rest).kernels
    if kept and golden.triton != found.triton:
        raise ConfigError(
            f"--update: the golden file was made with Triton {golden.triton}, this is {found.triton}; compile all "
            "architectures, so that one version made all of it"
        )
    static_report.write_report(static_report.Report(found.triton, static_report.in_order({**kept, **found.kernels})))
