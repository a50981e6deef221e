"""A checkpoint as a folder: what is in it, whether it is whole, which of a run is the newest or the best.

    checkpoints/step-00000100/
        model.safetensors                        float32 weights: to fine-tune, export, share
        optimizer-00001-of-00002.safetensors     Adam's moments by parameter name, spread over the ranks that saved
        config.yaml, tokenizer/                  what is needed to use the weights
        state.json                               the step: the data order is a pure function of it
        MANIFEST.json                            size and checksum of every file, written last
    checkpoints/latest                           name of the newest

Free of pickle and of DeepSpeed: whoever only reads weights imports neither. Weights that came from elsewhere are such a folder
too, without moments (`unimo_ds.convert`). A run's own are saved by `unimo_ds.engine.checkpoint`.
"""

import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from unimo_ds import distributed
from unimo_ds.errors import CheckpointError
from unimo_ds.files import replace_text
from unimo_ds.progress import say

# The model inside the module that the engine wraps: stripped in model.safetensors. What a task adds beside it keeps its name.
PREFIX, _HEAD = "unimo.", "head."
_MANIFEST = "MANIFEST.json"


@dataclass(frozen=True)
class Extras:
    """What a checkpoint carries beside tensors.

    Attributes:
        config_yaml: the resolved configuration.
        state: JSON-able facts (step, data position, detector).
        tokenizer: folder whose files are copied.
    """

    config_yaml: str
    state: dict[str, Any]
    tokenizer: Path


def checkpoint_name(step: int) -> str:
    """`step-00000100`."""
    return f"step-{step:08}"


def write_checkpoint(folder: Path, weights: dict[str, Tensor], extras: Extras) -> None:
    """Writes weights that no run of ours made, as a checkpoint without moments: to start from, to use, to export.

    Args:
        folder: the new checkpoint; a kill leaves no half of it.
        weights: float32, by their names in the model; a task's head as `head.*`.
        extras: what else it carries.

    Raises:
        CheckpointError: the folder exists.
    """
    with new_folder(folder) as temporary:
        write_manifest(temporary, int(extras.state["step"]), facts_of(temporary, write_content(temporary, weights, extras)))


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A hidden folder to write into, which becomes `folder` at the end of the block: a kill leaves no half of it.

    Raises:
        CheckpointError: it exists already, or the disk refuses it.
    """
    if folder.exists():
        raise CheckpointError(f"{folder}: exists already; give another folder, or remove it")
    temporary = folder.with_name(f".writing-{folder.name}")
    try:
        fresh(temporary)
        yield temporary
        temporary.rename(folder)
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk by its own error type
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(f"{folder}: cannot be written ({error}); nothing is there") from error


def fresh(folder: Path) -> None:
    """Makes an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def write_content(folder: Path, weights: dict[str, Tensor], extras: Extras) -> list[Path]:
    """Writes all of a checkpoint but moments and manifest; returns the files.

    They are listed as they are written, not found in the folder: other ranks write there at the same time, and safetensors
    begins each file under another name.
    """
    model, config, state = (folder / name for name in ("model.safetensors", "config.yaml", "state.json"))
    save_file(weights, model, metadata={"format": "pt"})
    config.write_text(extras.config_yaml, encoding="utf-8")
    state.write_text(json.dumps(extras.state, indent=1), encoding="utf-8")
    (folder / "tokenizer").mkdir()
    words = [folder / "tokenizer" / name for name in ("vocab.json", "merges.txt")]
    for file in words:
        shutil.copyfile(extras.tokenizer / file.name, file)
    return [model, config, state, *words]


def facts_of(folder: Path, files: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Size and checksum of each of a checkpoint's files, which are on the disk afterwards."""
    for path in files:
        sync(path)
    return {str(path.relative_to(folder)): _facts(path, _read) for path in files}


def write_manifest(folder: Path, step: int, files: dict[str, dict[str, Any]]) -> None:
    """Writes down what `facts_of` found; the checkpoint is whole from then on."""
    (folder / _MANIFEST).write_text(json.dumps({"step": step, "files": files}, indent=1), encoding="utf-8")
    sync(folder / _MANIFEST)
    sync(folder)


def _facts(path: Path, read: Callable[[Path], Iterable[bytes]]) -> dict[str, Any]:
    digest = xxhash.xxh3_128()
    for block in read(path):
        digest.update(block)
    return {"bytes": path.stat().st_size, "xxh3_128": digest.hexdigest()}


def _read(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            yield block


def sync(path: Path) -> None:
    """Waits until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def mark_best(folder: Path, step: int, score: float) -> bool:
    """Remembers the checkpoint of `step` as the best one if its score is higher than the best so far; it is then kept."""
    file = folder / "best"
    if math.isnan(score) or (
        best_checkpoint(folder) is not None and not score > json.loads(file.read_text(encoding="utf-8"))["score"]
    ):
        return False
    replace_text(file, json.dumps({"checkpoint": checkpoint_name(step), "score": score}))
    return True


def best_checkpoint(folder: Path) -> Path | None:
    """The checkpoint that `mark_best` remembers; None if there is none."""
    try:
        found = folder / str(json.loads((folder / "best").read_text(encoding="utf-8"))["checkpoint"])
    except (OSError, ValueError, KeyError):
        return None
    return found if found.exists() else None


def all_checkpoints(folder: Path) -> list[Path]:
    """Those of a run, newest first."""
    return sorted(folder.glob("step-*"), reverse=True)


def remove_old(newest: Path, keep: int, damaged: Set[Path]) -> None:
    """Removes the checkpoints that are older than the `keep` newest whole ones, never the best one; and what saves have left.

    Args:
        newest: the one just saved. Later ones are of a run that this one has gone back from.
        keep: how many remain.
        damaged: those known to be; they do not count, and go when they would have gone anyway.
    """
    found = [path for path in all_checkpoints(newest.parent) if path.name <= newest.name]
    kept = [path for path in found if path not in damaged][:keep]
    best = best_checkpoint(newest.parent)
    for path in found:
        if len(kept) == keep and path.name < kept[-1].name and path != best:
            shutil.rmtree(path)
    for half in (
        *newest.parent.glob(".saving-*"),
        *newest.parent.glob(".old-*"),
    ):  # of this save, and of starts that were killed
        shutil.rmtree(half)


def find_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run; damaged ones are named and passed over. Every rank must call it.

    Returns:
        The checkpoint, or None if the run has none yet.

    Raises:
        CheckpointError: there are checkpoints, and all are damaged: starting anew would lose them silently.
    """
    found: str | None = None
    problems: list[str] = []
    if distributed.rank() == 0:
        for path in all_checkpoints(folder):
            damage = damage_of(path)
            if damage is None:
                found = str(path)
                break
            problems.append(f"{path}: {damage}")
            say(f"WARNING: checkpoint passed over: {problems[-1]}", error=True)
    found, problems = distributed.from_rank_0((found, problems))
    if found is None and problems:
        raise CheckpointError(
            f"no whole checkpoint in {folder}: {'; '.join(problems)}. "
            "Restore one of them, or move the folder away to start anew."
        )
    return Path(found) if found is not None else None


def damage_of(checkpoint: Path, moments: bool = True, read: Callable[[Path], Iterable[bytes]] = _read) -> str | None:
    """What is wrong with a checkpoint, by its manifest; None if it is whole.

    Args:
        checkpoint: its folder.
        moments: look at the optimizer's files too.
        read: gives the content of a file in blocks.
    """
    name = _MANIFEST
    try:
        manifest = json.loads((checkpoint / _MANIFEST).read_text(encoding="utf-8"))
        for name, facts in manifest["files"].items():
            if not moments and name.startswith("optimizer-"):
                continue
            path = checkpoint / name
            if not path.exists():
                return f"{name} is missing"
            if path.stat().st_size != facts["bytes"]:
                return f"{name} has {path.stat().st_size:,} bytes, {facts['bytes']:,} were written"
            if _facts(path, read) != facts:
                return f"{name} does not match its checksum"
    except (OSError, ValueError, KeyError) as error:
        return f"{name} cannot be read ({error})"
    return None


def read_checkpoint_weights(checkpoint: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint as they stand there: by their names in the model, a task's head as `head.*`; float32.

    Raises:
        CheckpointError: there is no readable `model.safetensors`.
    """
    path = checkpoint / "model.safetensors"
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); expected a checkpoint folder of unimo_ds") from error


def read_weights(checkpoint: Path) -> dict[str, Tensor]:
    """The same by their names in the module that the engine wraps (`read_checkpoint_weights`)."""
    found = read_checkpoint_weights(checkpoint)
    return {name if name.startswith(_HEAD) else f"{PREFIX}{name}": tensor for name, tensor in found.items()}


def read_model_weights(checkpoint: Path) -> dict[str, Tensor]:
    """The weights of the model alone by their names in it, without a task's head (`read_checkpoint_weights`)."""
    found = read_checkpoint_weights(checkpoint)
    return {name: tensor for name, tensor in found.items() if not name.startswith(_HEAD)}


def read_state(checkpoint: Path, name: str = "state.json") -> dict[str, Any]:
    """The facts beside the tensors.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = checkpoint / name
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        missing = {"step", "model", "detector"} - state.keys()
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); take another checkpoint") from error
    if missing:
        raise CheckpointError(f"{path}: has no {', '.join(sorted(missing))}: it is damaged; take another checkpoint")
    return dict(state)


def read_guards(checkpoint: Path) -> dict[str, Any]:
    """What `unimo_ds.engine.guards` goes on from; a checkpoint that counts no updates made one in each step."""
    state = read_state(checkpoint)
    return {"updates": int(state["step"]), **state.get("guards", {})}
