"""Checkpoints: whole or not there, readable by any ZeRO stage on any number of ranks, free of pickle.

    checkpoints/step-00000100/
        model.safetensors                        float32 weights: to fine-tune, export, share
        optimizer-00001-of-00002.safetensors     Adam's moments by parameter name, spread over the ranks that saved
        config.yaml, tokenizer/                  what is needed to use the weights
        state.json                               the step: the data order is a pure function of it
        MANIFEST.json                            size and checksum of every file, written last
    checkpoints/latest                           name of the newest

Everything is written into a hidden folder that is renamed when complete, `latest` last: a kill at any moment leaves the
previous checkpoint whole. DeepSpeed's own files are not used: they depend on stage and world size, hold pickles, and need a
conversion for every change of either (unimo_ds keeps full tensors by name instead, gathered parameter by parameter).
"""

import json
import math
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from unimo_ds import distributed
from unimo_ds.engine.engine import MOMENTS, Engine
from unimo_ds.errors import CheckpointError
from unimo_ds.files import replace_text

# The model inside the module that the engine wraps: stripped in model.safetensors. What a task adds beside it keeps its name.
_PREFIX, _HEAD = "unimo.", "head."
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


def save_checkpoint(engine: Engine, folder: Path, step: int, extras: Extras, keep: int) -> Path | None:
    """Saves after `step` updates; every rank must call it.

    Args:
        engine: holds the state.
        folder: the run's `checkpoints`.
        step: number of updates done.
        extras: what else the checkpoint carries.
        keep: how many checkpoints remain, this one included.

    Returns:
        The checkpoint, or None where the disk refused (full, read-only): the reason is printed, what was there before is
        whole, and training may go on.
    """
    final = folder / checkpoint_name(step)
    temporary = folder / f".saving-{final.name}"
    problem = _try(lambda: _fresh(temporary)) if distributed.rank() == 0 else None
    distributed.barrier()
    weights, moments = _collect(engine)
    files: dict[str, dict[str, Any]] = {}
    problem = problem or _try(lambda: files.update(_write_share(temporary, weights, moments, extras)))
    shares = distributed.gather_objects((problem, files))
    problems = [f"rank {rank}: {problem}" for rank, (problem, _) in enumerate(shares) if problem]
    if distributed.rank() == 0 and not problems:
        joined = {name: facts for _, part in shares for name, facts in part.items()}
        problem = _try(lambda: _publish(temporary, final, step, joined, keep))
        problems = [f"rank 0: {problem}"] if problem else []
    problems = distributed.from_rank_0(problems)
    if problems:
        if distributed.rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)
            newest = (folder / "latest").read_text() if (folder / "latest").exists() else "none"
            print(
                f"CHECKPOINT NOT SAVED at step {step}: {'; '.join(problems)}. The newest whole checkpoint is still {newest}; "
                "training goes on and the next save will try again. Free some space, or lower training.keep_checkpoints.",
                file=sys.stderr,
                flush=True,
            )
        return None
    return final


def _try(write: Callable[[], None]) -> str | None:
    """Runs `write`; the reason if the disk refused. safetensors reports a full disk by its own error type."""
    try:
        write()
    except (OSError, SafetensorError) as error:
        return str(error)
    return None


def _fresh(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _collect(engine: Engine) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights (on rank 0) and this rank's share of the moments."""
    weights: dict[str, Tensor] = {}
    moments: dict[str, Tensor] = {}
    for number, (name, state) in enumerate(engine.full_state()):
        if distributed.rank() == 0:
            weights[name.removeprefix(_PREFIX)] = state["weight"].contiguous().clone()
        if number % distributed.world_size() == distributed.rank():
            moments.update({f"{name}/{moment}": state[moment].contiguous().clone() for moment in MOMENTS})
    return weights, moments


def _write_share(
    folder: Path, weights: dict[str, Tensor], moments: dict[str, Tensor], extras: Extras
) -> dict[str, dict[str, Any]]:
    """Writes what this rank is responsible for; returns size and checksum of each file."""
    name = f"optimizer-{distributed.rank() + 1:05}-of-{distributed.world_size():05}.safetensors"
    save_file(moments, folder / name)
    written = [folder / name]
    if distributed.rank() == 0:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.yaml").write_text(extras.config_yaml, encoding="utf-8")
        (folder / "state.json").write_text(json.dumps(extras.state, indent=1), encoding="utf-8")
        (folder / "tokenizer").mkdir()
        for file in ("vocab.json", "merges.txt"):
            shutil.copyfile(extras.tokenizer / file, folder / "tokenizer" / file)
        written += [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("optimizer-")]
    for path in written:
        _sync(path)
    return {str(path.relative_to(folder)): _facts(path) for path in written}


def _facts(path: Path) -> dict[str, Any]:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return {"bytes": path.stat().st_size, "xxh3_128": digest.hexdigest()}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _publish(temporary: Path, final: Path, step: int, files: dict[str, dict[str, Any]], keep: int) -> None:
    """Makes the checkpoint visible, then removes the oldest ones."""
    (temporary / _MANIFEST).write_text(json.dumps({"step": step, "files": files}, indent=1), encoding="utf-8")
    _sync(temporary / _MANIFEST)
    _sync(temporary)
    if final.exists():  # a resumed run saves this step again: the old one goes out of the way first
        old = final.with_name(f".old-{final.name}")
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
        temporary.rename(final)
        shutil.rmtree(old)
    else:
        temporary.rename(final)
    pointer = final.parent / ".latest.tmp"
    pointer.write_text(final.name, encoding="utf-8")
    _sync(pointer)
    os.replace(pointer, final.parent / "latest")
    _sync(final.parent)
    best = best_checkpoint(final.parent)
    for old in _all_checkpoints(final.parent)[keep:]:
        if old != best:
            shutil.rmtree(old)


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


def _all_checkpoints(folder: Path) -> list[Path]:
    """Newest first."""
    return sorted(folder.glob("step-*"), reverse=True)


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
        for path in _all_checkpoints(folder):
            damage = damage_of(path)
            if damage is None:
                found = str(path)
                break
            problems.append(f"{path}: {damage}")
            print(f"WARNING: checkpoint passed over: {problems[-1]}", file=sys.stderr, flush=True)
    found, problems = distributed.from_rank_0((found, problems))
    if found is None and problems:
        raise CheckpointError(
            f"no whole checkpoint in {folder}: {'; '.join(problems)}. "
            "Restore one of them, or move the folder away to start anew."
        )
    return Path(found) if found is not None else None


def damage_of(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, by its manifest; None if it is whole."""
    try:
        manifest = json.loads((checkpoint / _MANIFEST).read_text(encoding="utf-8"))
        for name, facts in manifest["files"].items():
            path = checkpoint / name
            if not path.exists():
                return f"{name} is missing"
            if path.stat().st_size != facts["bytes"]:
                return f"{name} has {path.stat().st_size:,} bytes, {facts['bytes']:,} were written"
            if _facts(path) != facts:
                return f"{name} does not match its checksum"
    except (OSError, ValueError, KeyError) as error:
        return f"{_MANIFEST} cannot be read ({error})"
    return None


def read_weights(checkpoint: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint by parameter name in the module that the engine wraps, float32.

    Raises:
        CheckpointError: there is no readable `model.safetensors`.
    """
    path = checkpoint / "model.safetensors"
    try:
        return {name if name.startswith(_HEAD) else f"{_PREFIX}{name}": tensor for name, tensor in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); expected a checkpoint folder of unimo_ds") from error


def read_model_weights(checkpoint: Path) -> dict[str, Tensor]:
    """The weights of the model alone by their names in it, without a task's head (`read_weights`)."""
    weights = read_weights(checkpoint)
    return {name.removeprefix(_PREFIX): tensor for name, tensor in weights.items() if name.startswith(_PREFIX)}


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The facts beside the tensors."""
    state: dict[str, Any] = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    return state


def resume(engine: Engine, checkpoint: Path) -> None:
    """Puts the full state of a checkpoint into the engine, whatever stage and world wrote it. Every rank must call it."""
    weights = read_weights(checkpoint)
    opened: list[Any] = [safe_open(path, "pt") for path in sorted(checkpoint.glob("optimizer-*.safetensors"))]
    places = {key: file for file in opened for key in file.keys()}

    def state_of(name: str) -> dict[str, Tensor]:
        moments = {moment: places[f"{name}/{moment}"].get_tensor(f"{name}/{moment}") for moment in MOMENTS}
        return {"weight": weights[name], **moments}

    engine.load_full_state(int(read_state(checkpoint)["step"]), state_of)
