"""The static report of the shipped kernels, as it is kept beside them: `static_report.json`, the golden file.

It was made with one version of Triton, which it names. With that version a new compile must give the same numbers; with
another one they may differ a little, but no kernel may spill or lose the tensor-core instructions it had.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

GOLDEN = Path(__file__).with_name("static_report.json")


@dataclass(frozen=True)
class Compiled:
    """The static facts of one compiled kernel.

    Attributes:
        registers: of a thread.
        spilled: bytes of a thread's stack, where registers are spilled to.
        shared: bytes of shared memory of a program, static and dynamic.
        tensor_cores: number of tensor-core instructions in the code by kind; kinds that do not occur are left out.
    """

    registers: int
    spilled: int
    shared: int
    tensor_cores: dict[str, int]


@dataclass(frozen=True)
class Report:
    """Compiled kernels by name, and the version of Triton that compiled them."""

    triton: str
    kernels: dict[str, Compiled]

    def only(self, architectures: Collection[int]) -> "Report":
        """The kernels of these architectures."""
        prefixes = tuple(f"sm_{architecture} " for architecture in architectures)
        return Report(self.triton, {name: facts for name, facts in self.kernels.items() if name.startswith(prefixes)})


def read_report(path: Path = GOLDEN) -> Report:
    """The report that is kept in the package."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return Report(content["triton"], {name: Compiled(**facts) for name, facts in content["kernels"].items()})


def write_report(report: Report, path: Path = GOLDEN) -> None:
    """Keeps `report`, a line a kernel."""
    lines = [f"  {json.dumps(name)}: {json.dumps(asdict(facts))}" for name, facts in report.kernels.items()]
    kernels = ",\n".join(lines)
    path.write_text(f'{{"triton": {json.dumps(report.triton)}, "kernels": {{\n{kernels}\n}}}}\n', encoding="utf-8")


def in_order(kernels: Mapping[str, Compiled]) -> dict[str, Compiled]:
    """The kernels by architecture and name."""
    return dict(sorted(kernels.items(), key=lambda entry: (int(entry[0].split(" ", 1)[0].removeprefix("sm_")), entry[0])))


def problems(found: Report, golden: Report) -> Iterator[str]:
    """What is wrong with a new compile, a sentence each; nothing where all is well."""
    for name in golden.kernels.keys() - found.kernels.keys():
        yield f"{name}: is in the golden file and was not compiled"
    for name, facts in found.kernels.items():
        if facts.spilled:
            yield f"{name}: spills {facts.spilled} bytes a thread; choose a smaller tile or more warps in kernels/table.py"
        before = golden.kernels.get(name)
        if before is None:
            yield f"{name}: is not in the golden file; look at its numbers and keep them with `unimo-ds kernels --update`"
            continue
        for kind, count in before.tensor_cores.items():
            if facts.tensor_cores.get(kind, 0) < count / 2:  # another version may count a little otherwise
                left = facts.tensor_cores.get(kind, 0)
                yield f"{name}: has lost its {kind} instructions ({count} in the golden file, {left} now)"
        if found.triton == golden.triton and facts != before:
            yield f"{name}: is now {facts}, in the golden file {before}; if it is right, `unimo-ds kernels --update`"


def table(kernels: Mapping[str, Compiled]) -> str:
    """The report in Markdown: a row a kernel."""
    head = "| kernel | registers | spilled | shared KB | tensor-core instructions |\n|---|--:|--:|--:|---|\n"
    rows = [
        f"| {name} | {facts.registers} | {facts.spilled} | {facts.shared / 1024:.0f} | "
        + (", ".join(f"{count} {kind}" for kind, count in facts.tensor_cores.items()) or "none")
        + " |"
        for name, facts in kernels.items()
    ]
    return head + "\n".join(rows)
