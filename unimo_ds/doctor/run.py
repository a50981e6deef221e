"""What a rank sees of a run: its configuration, its data, and the disk under its folder."""

import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from time import gmtime, strftime
from typing import Any

import xxhash
import yaml
from pydantic import BaseModel

from unimo_ds import nvidia_apex
from unimo_ds.config import FinetuneConfig, RunConfig, load_config, load_finetune_config
from unimo_ds.data.corpus import prepared_folder
from unimo_ds.data.store import RegionStore
from unimo_ds.doctor.findings import Finding
from unimo_ds.engine.checkpoint_folder import all_checkpoints, best_checkpoint
from unimo_ds.engine.engine import check_settings, deepspeed_config
from unimo_ds.errors import UnimoError
from unimo_ds.planning.plan import checkpoint_bytes, model_size
from unimo_ds.tokenizer import Tokenizer

AnyRun = RunConfig | FinetuneConfig

_WRITTEN = ("folder", "data.prepared", "training.deepspeed")  # paths that are no data
_MARKS = ("manifest.json", "MANIFEST.json", "checkpoints/best", "checkpoints/latest")  # what identifies a folder, if it has one
_PROBE_BYTES = 1 << 20
_NAMED = 4  # unreadable inputs named one by one


def load_any(path: Path, overrides: Sequence[str]) -> AnyRun:
    """Reads a run of pre-training or of fine-tuning, which has a `task`.

    Raises:
        ConfigError: as `read_config`.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        content = None  # reading it again says what is wrong
    if isinstance(content, dict) and "task" in content:
        return load_finetune_config(path, overrides)
    return load_config(path, overrides)


def configuration_of(run: AnyRun) -> dict[str, str]:
    """Every key and its value, those of the DeepSpeed file too.

    Raises:
        ConfigError: the DeepSpeed file cannot be read.
    """
    deepspeed = {f"deepspeed.{key}": value for key, value in _flat(deepspeed_config(run.training))}
    return {**dict(_flat(run.model_dump(mode="json"))), **deepspeed}


def _flat(content: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """The leaves of nested values, each with its dotted key; a list's parts by name, where they have one."""
    if isinstance(content, dict):
        parts = list(content.items())
    elif isinstance(content, list):
        parts = [(_name(part, number), part) for number, part in enumerate(content)]
    else:
        yield key, json.dumps(content)
        return
    for name, part in parts:
        yield from _flat(part, f"{key}.{name}" if key else str(name))


def _name(part: Any, number: int) -> str:
    return str(part.get("name", number)) if isinstance(part, dict) else str(number)


def settings_findings(run: AnyRun) -> list[Finding]:
    """What a run would refuse at its start, whatever its data."""
    layer_norm = run.model.layer_norm if isinstance(run, RunConfig) else "torch"
    try:
        nvidia_apex.check(layer_norm, run.training.optimizer)
        check_settings(run.training)
    except UnimoError as error:
        return [Finding(str(error))]
    return []


def data_of(run: AnyRun, going: Callable[[str], None]) -> tuple[dict[str, str], list[Finding]]:
    """What identifies every input of a run, by key, and what is wrong with them.

    A file is known by size and time of change, as the run itself knows it: inputs may be huge. A folder is known by its
    manifest, where it has one, and a corpus of pre-training also by what it is prepared as.

    Args:
        run: its configuration.
        going: is told what is looked at: a file system may never answer.
    """
    known: dict[str, str] = {}
    unreadable: list[str] = []
    findings: list[Finding] = []
    for key, path in _paths_in(run):
        if key in _WRITTEN:
            continue
        going(f"{key} = {path}")
        try:
            known[key] = _identity(path)
            _try_regions(path)
        except OSError as error:
            known[key] = "unreadable"
            unreadable.append(f"{key} = {path} ({error.strerror})")
        except UnimoError as error:
            findings.append(Finding(f"{key} = {path}: {error}"))
    if not findings and not unreadable and isinstance(run, RunConfig):
        going(f"data.prepared = {run.data.prepared}")
        known.update(_prepared(run))
    if unreadable:
        more = f"; and {len(unreadable) - _NAMED} more" if len(unreadable) > _NAMED else ""
        what = f"cannot be read: {'; '.join(unreadable[:_NAMED])}{more}"
        findings.append(Finding(what, "make it, or mount what it is on; `ls` it on that host"))
    return known, findings


def _prepared(run: RunConfig) -> Iterator[tuple[str, str]]:
    tokenizer = Tokenizer(run.data.tokenizer)
    for corpus in run.data.corpora:
        folder = prepared_folder(corpus, run.data, tokenizer)
        state = _identity(folder) if folder.exists() else "not prepared yet"
        yield f"data.prepared.{corpus.name}", f"{folder.name} ({state})"


def _paths_in(value: Any, key: str = "") -> Iterator[tuple[str, Path]]:
    if isinstance(value, Path):
        yield key, value
        return
    parts: list[tuple[Any, Any]] = []
    if isinstance(value, BaseModel):
        parts = list(value)
    elif isinstance(value, Mapping):
        parts = list(value.items())
    elif isinstance(value, list):
        parts = [(getattr(part, "name", number), part) for number, part in enumerate(value)]
    for name, part in parts:
        yield from _paths_in(part, f"{key}.{name}" if key else str(name))


def _identity(path: Path) -> str:
    if not path.is_dir():
        file = path.stat()
        return f"{file.st_size:,} bytes of {strftime('%Y-%m-%d %H:%M:%S', gmtime(file.st_mtime))}"
    for mark in _MARKS:
        if (path / mark).exists():
            return f"{mark} {xxhash.xxh3_64_hexdigest((path / mark).read_bytes())}"
    files = sorted((file.name, file.stat().st_size) for file in path.iterdir() if file.is_file())
    return f"{len(files)} files {xxhash.xxh3_64_hexdigest(json.dumps(files).encode())}"


def _try_regions(path: Path) -> None:
    """Opens a regions store, which needs a file system that can map its files into memory.

    Raises:
        StoreError: it cannot be read.
    """
    manifest = path / "manifest.json"
    if manifest.exists() and '"unimo_ds regions"' in manifest.read_text(encoding="utf-8", errors="replace"):
        next(RegionStore(path).keys(), None)


class RunDisk:
    """The disk under a run's folder, as this host sees it.

    What is written there to try it is removed by `close`.
    """

    def __init__(self, run: AnyRun) -> None:
        self._run = run
        self.folder = run.folder.absolute()
        while not self.folder.exists():  # the run will make it
            self.folder = self.folder.parent
        self.probe = self.folder / f".doctor-{platform.node()}-{os.getpid()}"
        stat = os.statvfs(self.folder)
        self.free = stat.f_bavail * stat.f_frsize
        self.checkpoint = sum(checkpoint_bytes(_parameters(run)))
        missing = run.training.keep_checkpoints + 1 - len(all_checkpoints(run.folder / "checkpoints"))
        self.needed = max(1, missing) * self.checkpoint

    def findings(self) -> Iterator[Finding]:
        """Writes a little, and compares what is free with what the run will write."""
        kept = self._run.training.keep_checkpoints
        try:
            with self.probe.open("wb") as file:
                file.write(bytes(_PROBE_BYTES))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            yield Finding(
                f"{self.folder}: cannot be written: {error.strerror}", "free space or quota, or give another `folder`"
            )
            return
        free = f"{self.folder}: {self.free / 1e9:,.2f} GB are free"
        if self.free < self.checkpoint:
            yield Finding(
                f"{free}, and a checkpoint needs {self.checkpoint / 1e9:,.2f} GB", "free space, or give another `folder`"
            )
        elif self.free < self.needed:
            yield Finding(
                f"{free}, and training.keep_checkpoints = {kept} with the one that is written will need "
                f"{self.needed / 1e9:,.2f} GB more",
                "free space, or lower training.keep_checkpoints",
                fault=False,
            )

    def close(self) -> None:
        """Removes what was written."""
        with suppress(OSError):  # the disk has been reported
            self.probe.unlink(missing_ok=True)


def _parameters(run: AnyRun) -> int:
    """Of the model that a run trains: counted, or as many as its start has, as far as that can be read."""
    if isinstance(run, RunConfig):
        return model_size(run.model, run.objectives).parameters
    folder = run.init / "checkpoints"
    newest = best_checkpoint(folder) or next(iter(all_checkpoints(folder)), run.init)
    start = run.init if (run.init / "model.safetensors").exists() else newest
    weights = start / "model.safetensors"
    return weights.stat().st_size // 4 if weights.exists() else 0
