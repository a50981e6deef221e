"""A run opened again: its configuration, its data, and whether they are still what they were."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from unimo_ds.config import RunConfig, load_config
from unimo_ds.data.corpus import Corpus, prepare_corpora
from unimo_ds.data.loader import PretrainingData
from unimo_ds.data.plan import Item
from unimo_ds.errors import ConfigError, DataError, UnimoError
from unimo_ds.tokenizer import Tokenizer

_COMPARED = ("samples", "tokens", "images", "tokenizer")  # of a corpus's manifest: what the data of a step depends on


@dataclass(frozen=True)
class OpenedRun:
    """A run and one of its steps.

    Attributes:
        folder: the run folder.
        config: as resolved at its last start.
        step: counted from 1, as in the log.
        ranks: over how many the step was shared.
        corpora, tokenizer, data: as in training.
        items: the samples of the step.
        notes: what a reader should know before believing the rest.
    """

    folder: Path
    config: RunConfig
    step: int
    ranks: int
    corpora: Sequence[Corpus]
    tokenizer: Tokenizer
    data: PretrainingData
    items: Sequence[Item]
    notes: list[str]


def open_run(folder: Path, step: int, ranks: int | None) -> OpenedRun:
    """Opens the run in `folder` at step `step`.

    Args:
        folder: made by pre-training.
        step: counted from 1.
        ranks: over how many the step is shared; None: over as many as it was in training.

    Raises:
        ConfigError: `folder` is none of a run, or the run has no such step.
        DataError: its data is gone, or is not what it was.
    """
    for name in ("config.yaml", "receipt.json"):
        if not (folder / name).is_file():
            raise ConfigError(f"{folder}: has no {name}: not the folder of a run, or of one that did not start training")
    config = load_config(folder / "config.yaml")
    if not 1 <= step <= config.training.steps:
        raise ConfigError(f"--step {step}: the steps of {folder} are counted from 1 to {config.training.steps}")
    start = _start_of(folder / "receipt.json", step)
    try:
        corpora = prepare_corpora(config.data, config.data.corpora)
    except DataError as error:
        raise DataError(
            f"{folder}: its data is gone, or was moved: {error} (Paths in {folder / 'config.yaml'} that are not absolute are "
            "read from the working directory: call this where the training was started.)"
        ) from error
    _expect_same_corpora(corpora, start["data"], folder)
    tokenizer = Tokenizer(config.data.tokenizer)
    world_size = int(start["world_size"]) if ranks is None else ranks
    data = PretrainingData(config, corpora, tokenizer, config.model.feature_width, 0, world_size)
    items = data.items(step - 1)
    _expect_logged_samples(folder, step, items)
    notes = [*_changed_since(config, start["time"]), *_not_yet_done(folder, step)]
    return OpenedRun(folder, config, step, world_size, corpora, tokenizer, data, items, notes)


def _start_of(receipt: Path, step: int) -> dict[str, Any]:
    """The start of the run that did `step`: the last one that began before it."""
    try:
        starts = json.loads(receipt.read_text(encoding="utf-8"))["starts"]
        start: dict[str, Any] = next(start for start in reversed(starts) if start["from_step"] < step)
        if not {"data", "world_size", "time"} <= start.keys():
            raise ValueError("a start without data, world_size or time")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, StopIteration) as error:
        raise UnimoError(f"{receipt}: is not a receipt of this program ({error!r})") from error
    return start


def _expect_same_corpora(corpora: Sequence[Corpus], receipt: dict[str, Any], folder: Path) -> None:
    """Another number of samples is another order of data.

    Raises:
        DataError: names corpus, and what has changed.
    """
    for corpus in corpora:
        then = receipt.get(corpus.name, {})
        changed = [key for key in _COMPARED if then.get(key) != corpus.manifest.get(key)]
        if changed:
            details = "; ".join(f"{key}: {then.get(key)} then, {corpus.manifest.get(key)} now" for key in changed)
            raise DataError(
                f"{folder}: corpus {corpus.name} is not what it was in training ({details}), so the step cannot "
                f"be made again. Put back {corpus.section.path or corpus.section.regions} and data.tokenizer as they were."
            )


def _expect_logged_samples(folder: Path, step: int, items: Sequence[Item]) -> None:
    """Compares with the log of samples, where the run has one (`training.log_samples`).

    Raises:
        DataError: other samples were trained on.
    """
    planned = {(item.draw.corpus, item.draw.number, item.draw.index) for item in items}
    logged = set(_logged_samples(folder, step))
    if not logged <= planned:
        raise DataError(
            f"{folder}: step {step} was trained on other samples than config.yaml and the data give now "
            f"({len(logged - planned)} of {len(logged)} differ): seed, per_step or a corpus was changed between two starts."
        )


def _logged_samples(folder: Path, step: int) -> Iterator[tuple[int, ...]]:
    for path in sorted(folder.glob("samples-rank*.jsonl")):
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                if line.startswith(f'{{"step": {step},') and line.endswith("}\n"):
                    yield from (tuple(sample) for sample in json.loads(line)["samples"])


def _changed_since(config: RunConfig, started: str) -> list[str]:
    """Input files that were written after the run had started: as many samples as before, but perhaps other ones."""
    start = datetime.strptime(started, "%Y-%m-%dT%H:%M:%S%z").timestamp()
    paths = [
        path
        for corpus in config.data.corpora
        for path in (corpus.path, corpus.regions, corpus.rewrites, corpus.neighbours)
        if path is not None and _written(path) > start + 1  # the receipt has whole seconds
    ]
    named = ", ".join(map(str, paths))
    return [f"written again since the run was started: {named}; what is shown is what they hold now"] if paths else []


def _written(path: Path) -> float:
    """When a file, or a folder's last file (of those that mark it as finished), was written."""
    files = [path] if path.is_file() else [*path.glob("manifest.json"), *path.glob("*.jsonl")]
    return max((file.stat().st_mtime for file in files), default=0.0)


def _not_yet_done(folder: Path, step: int) -> list[str]:
    """A step that the log has not reached: its data is known all the same."""
    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
        done = max((int(json.loads(line)["step"]) for line in lines if line.endswith("}")), default=0)
    except (OSError, ValueError, KeyError):
        return []
    return [f"the log of the run ends at step {done}: step {step} may not have been trained on yet"] if done < step else []
