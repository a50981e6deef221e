"""What a run folder holds, read back for people: configuration, receipt, metrics, evaluation.

The folder is described in `unimo_ds.engine.run_log`.
"""

import json
import math
import shlex
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unimo_ds.config import RunConfig, load_config
from unimo_ds.errors import UnimoError

Numbers = dict[str, float]


@dataclass(frozen=True)
class Run:
    """What a run folder says.

    Attributes:
        starts: entries of the receipt, one a start.
        steps: the logged steps in order, at least one.
        evaluations: the evaluations in the log, in order.
        evaluation: `evaluation.json`: `numbers`, `retrieval`, `captions`.
    """

    folder: Path
    config: RunConfig
    starts: list[dict[str, Any]]
    steps: list[Numbers]
    evaluations: list[Numbers]
    evaluation: dict[str, Any]


def read_run(folder: Path) -> Run:
    for name in ("config.yaml", "receipt.json", "metrics.jsonl"):
        if not (folder / name).exists():
            raise UnimoError(f"{folder}: has no {name}: not the folder of a run, or of one that did not start training")
    lines = _read_metrics(folder / "metrics.jsonl")
    steps = _by_step(line for line in lines if "loss" in line)
    if not steps:
        raise UnimoError(f"{folder / 'metrics.jsonl'}: holds no logged step; let the run go on past training.log_every")
    return Run(
        folder,
        load_config(folder / "config.yaml"),
        _read_json(folder / "receipt.json", "starts")["starts"],
        steps,
        _by_step(line for line in lines if "eval/candidates" in line),
        _read_evaluation(folder),
    )


def _read_metrics(path: Path) -> list[Numbers]:
    """The whole lines of a log: a run that is going on, or was killed, may have half a line."""
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if isinstance(values, dict) and "step" in values:
            lines.append(values)
    return lines


def _by_step(lines: Iterable[Numbers]) -> list[Numbers]:
    """In order of steps; of two lines of one step the later counts."""
    last = {line["step"]: line for line in lines}
    return [last[step] for step in sorted(last)]


def _read_json(path: Path, *keys: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnimoError(f"{path}: cannot be read ({error}); make it again") from error
    if not isinstance(content, dict) or any(key not in content for key in keys):
        raise UnimoError(f"{path}: was not written by this program, which writes an object with {', '.join(keys)}")
    return content


def _read_evaluation(folder: Path) -> dict[str, Any]:
    """The run's own evaluation, or the one that `unimo-ds evaluate` has put beside the newest checkpoint."""
    newest = _newest_checkpoint(folder)
    for place in (folder, *([newest] if newest else [])):
        if (place / "evaluation.json").exists():
            return _read_json(place / "evaluation.json", "numbers", "retrieval", "captions")
    raise UnimoError(
        f"{folder}: was never evaluated (no evaluation.json there or in its newest checkpoint). "
        f"Run `unimo-ds evaluate {shlex.quote(str(folder))}`; a run without a section evaluation needs evaluation.pairs.* too."
    )


def _newest_checkpoint(folder: Path) -> Path | None:
    pointer = folder / "checkpoints" / "latest"
    return pointer.with_name(pointer.read_text(encoding="utf-8").strip()) if pointer.exists() else None


def parameter_count(folder: Path) -> int | None:
    """Parameters in the newest checkpoint, from the header of its file alone."""
    checkpoint = _newest_checkpoint(folder)
    path = checkpoint / "model.safetensors" if checkpoint else None
    if path is None or not path.exists():
        return None
    with path.open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    count: int = sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
    return count


def training_seconds(folder: Path) -> float | None:
    """Time between the first and the last TensorBoard event, summed over starts: waits in a queue do not count."""
    spans = []
    for path in sorted(folder.glob("tensorboard/events.out.tfevents.*")):
        times = list(event_times(path))
        if times:
            spans.append(times[-1] - times[0])
    return sum(spans) if spans else None


def event_times(path: Path) -> Iterator[float]:
    """Wall times of an event file: TFRecords of protobufs whose first field is the time, a double with tag 0x09."""
    with path.open("rb") as file:
        while len(head := file.read(12)) == 12:
            length = struct.unpack_from("<Q", head)[0]
            event = file.read(length + 4)
            if len(event) < length + 4:
                return  # half written
            if event[:1] == b"\x09" and length >= 9:
                yield struct.unpack_from("<d", event, 1)[0]
