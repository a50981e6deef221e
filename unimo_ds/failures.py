"""What was stepped over, and why: the report that lies beside a store as `failures-*.jsonl`."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Failure:
    """An image that was stepped over.

    Attributes:
        key: the image.
        path: its file, or its place in one.
        reason: a kind (`truncated`, `missing`, ...) and, behind a colon, particulars.
    """

    key: str
    path: str
    reason: str

    @property
    def kind(self) -> str:
        """What failures are counted by."""
        return self.reason.split(":")[0]


def write_failures(failures: Sequence[Failure], path: Path) -> None:
    """One JSON object a line; an older report is replaced, or removed when nothing failed."""
    if failures:
        path.write_text("".join(json.dumps(asdict(failure)) + "\n" for failure in failures), encoding="utf-8")
    else:
        path.unlink(missing_ok=True)


def read_failures(path: Path) -> list[Failure]:
    """What `write_failures` wrote; nothing where there is no report, or one that cannot be read."""
    try:
        return [Failure(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, TypeError):
        return []


def count_kinds(failures: Sequence[Failure]) -> str:
    """`3 truncated, 1 missing`."""
    return ", ".join(f"{count:,} {kind}" for kind, count in Counter(failure.kind for failure in failures).most_common())
