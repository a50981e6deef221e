"""What a rank says of itself, and what is found wrong: plain values that travel as JSON."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be.

    Attributes:
        what: in one sentence.
        mend: what to do; empty where `what` says it.
        fault: whether it must be mended before a start; else it is a warning.
    """

    what: str
    mend: str = ""
    fault: bool = True


@dataclass(frozen=True)
class Facts:
    """Of one rank.

    Attributes:
        host: its name.
        device: what it computes on.
        unit: which one of the host's; empty for a CPU.
        memory_free, memory_total: of the device, bytes.
        alike: what should be the same on all ranks, by topic: code, configuration, data, versions, hardware.
        findings: what is wrong on this rank.
        disk_free, disk_needed: at the run folder, bytes; 0 where nobody looked: one rank a host does.
        commit: of the code, where rank 0 knows it.
    """

    host: str
    device: str
    unit: str
    memory_free: int
    memory_total: int
    alike: dict[str, dict[str, str]]
    findings: list[Finding] = field(default_factory=list)
    disk_free: int = 0
    disk_needed: int = 0
    commit: str = ""

    def as_values(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def of_values(cls, values: dict[str, Any]) -> "Facts":
        """Back from JSON."""
        return cls(**{**values, "findings": [Finding(**finding) for finding in values["findings"]]})
