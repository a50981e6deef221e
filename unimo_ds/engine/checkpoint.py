"""Saves and resumes a run: a checkpoint is whole or not there, readable by any ZeRO stage on any number of ranks.

Everything is written into a hidden folder (`checkpoint_folder` says what is in it) that is renamed when complete, `latest`
last: a kill at any moment leaves the previous checkpoint whole. DeepSpeed's own files are not used: they depend on stage and
world size, hold pickles, and need a conversion for every change of either (unimo_ds keeps full tensors by name instead,
gathered parameter by parameter).
"""

import os
import shutil
from collections.abc import Callable, Set
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from unimo_ds import distributed
from unimo_ds.engine.checkpoint_folder import (
    PREFIX,
    Extras,
    checkpoint_name,
    facts_of,
    fresh,
    read_guards,
    read_weights,
    remove_old,
    sync,
    write_content,
    write_manifest,
)
from unimo_ds.engine.engine import MOMENTS, Engine
from unimo_ds.progress import say


def save_checkpoint(
    engine: Engine, folder: Path, step: int, extras: Extras, keep: int, damaged: Set[Path] = frozenset()
) -> Path | None:
    """Saves after `step` updates; every rank must call it.

    Args:
        engine: holds the state.
        folder: the run's `checkpoints`.
        step: number of updates done.
        extras: what else the checkpoint carries.
        keep: how many checkpoints remain, this one included.
        damaged: those of the run that do not count; rank 0's are taken.

    Returns:
        The checkpoint, or None where the disk refused (full, read-only): the reason is printed, what was there before is
        whole, and training may go on.
    """
    final = folder / checkpoint_name(step)
    temporary = folder / f".saving-{final.name}"
    problem = _try(lambda: fresh(temporary)) if distributed.rank() == 0 else None
    distributed.barrier()
    weights, moments = _collect(engine)
    files: dict[str, dict[str, Any]] = {}
    problem = problem or _try(lambda: files.update(_write_share(temporary, weights, moments, extras)))
    shares = distributed.gather_objects((problem, files))
    problems = [f"rank {rank}: {problem}" for rank, (problem, _) in enumerate(shares) if problem]
    if distributed.rank() == 0 and not problems:
        joined = {name: facts for _, part in shares for name, facts in part.items()}
        problem = _try(lambda: _publish(temporary, final, step, joined))
        problems = [f"rank 0: {problem}"] if problem else []
        left = None if problems else _try(lambda: remove_old(final, keep, damaged))
        if left:
            say(f"WARNING: {final} is saved, but what is older could not be removed: {left}", error=True)
    problems = distributed.from_rank_0(problems)
    if problems:
        if distributed.rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)
            newest = (folder / "latest").read_text() if (folder / "latest").exists() else "none"
            say(
                f"CHECKPOINT NOT SAVED at step {step}: {'; '.join(problems)}. The newest whole checkpoint is still {newest}; "
                "training goes on and the next save will try again. Free some space, or lower training.keep_checkpoints.",
                error=True,
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


def _collect(engine: Engine) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights (on rank 0) and this rank's share of the moments."""
    weights: dict[str, Tensor] = {}
    moments: dict[str, Tensor] = {}
    for number, (name, state) in enumerate(engine.full_state()):
        if distributed.rank() == 0:
            weights[name.removeprefix(PREFIX)] = state["weight"].contiguous().clone()
        if number % distributed.world_size() == distributed.rank():
            moments.update({f"{name}/{moment}": state[moment].contiguous().clone() for moment in MOMENTS})
    return weights, moments


def _write_share(
    folder: Path, weights: dict[str, Tensor], moments: dict[str, Tensor], extras: Extras
) -> dict[str, dict[str, Any]]:
    """Writes what this rank is responsible for; returns size and checksum of each file."""
    name = f"optimizer-{distributed.rank() + 1:05}-of-{distributed.world_size():05}.safetensors"
    save_file(moments, folder / name)
    return facts_of(folder, [folder / name, *(write_content(folder, weights, extras) if distributed.rank() == 0 else [])])


def _publish(temporary: Path, final: Path, step: int, files: dict[str, dict[str, Any]]) -> None:
    """Makes the checkpoint visible."""
    write_manifest(temporary, step, files)
    if final.exists():  # a resumed run saves this step again: the old one goes out of the way first
        old = final.with_name(f".old-{final.name}")
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
        temporary.rename(final)
    else:
        temporary.rename(final)
    pointer = final.parent / ".latest.tmp"
    pointer.write_text(final.name, encoding="utf-8")
    sync(pointer)
    os.replace(pointer, final.parent / "latest")
    sync(final.parent)


def resume(engine: Engine, checkpoint: Path) -> None:
    """Puts the full state of a checkpoint into the engine, whatever stage and world wrote it. Every rank must call it."""
    weights = read_weights(checkpoint)
    opened: list[Any] = [safe_open(path, "pt") for path in sorted(checkpoint.glob("optimizer-*.safetensors"))]
    places = {key: file for file in opened for key in file.keys()}

    def state_of(name: str) -> dict[str, Tensor]:
        moments = {moment: places[f"{name}/{moment}"].get_tensor(f"{name}/{moment}") for moment in MOMENTS}
        return {"weight": weights[name], **moments}

    updates = int(read_guards(checkpoint)["updates"])  # fewer than steps where some were left out
    engine.load_full_state(updates, state_of)
