"""Whether a run that was struck by faults is the run that it would have been: pure functions of its logs."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from unimo_ds.errors import DataError

SAME = ("loss", "loss/mlm", "loss/seq2seq", "loss/mrfr", "loss/mrc", "loss/cmcl", "lr", "grad_norm")
"""What of a step must not depend on its past faults."""

Sample = tuple[int, int, int]
"""Corpus, the how-manieth draw from it, and which of its samples that was."""

Lineage = tuple[tuple[int, int], ...]
"""World and stage of every step up to one: two computations of it with the same lineage must have the same bits."""


@dataclass(frozen=True)
class Computed:
    """A step as one start of the run, the how-manieth, has computed it."""

    start: int
    lineage: Lineage
    numbers: dict[str, float]


def read_steps(run: Path) -> dict[int, dict[str, float]]:
    """The numbers `SAME` of every step in a run's metrics; a line that is half written is no line.

    Raises:
        DataError: a step stands there twice.
    """
    path, found = run / "metrics.jsonl", dict[int, dict[str, float]]()
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []:
        content = json.loads(line) if line.endswith("}\n") else {}
        if "loss" in content:
            if content["step"] in found:
                raise DataError(f"{path}: step {content['step']} stands there twice")
            found[content["step"]] = {name: content[name] for name in SAME if name in content}
    return found


def read_samples(run: Path) -> dict[int, list[Sample]]:
    """The samples of every step over the logs of all ranks."""
    found: dict[int, list[Sample]] = {}
    for path in sorted(run.glob("samples-rank*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            content = json.loads(line)
            found.setdefault(content["step"], []).extend((corpus, draw, index) for corpus, draw, index in content["samples"])
    return found


def judge_samples(
    logged: Mapping[int, Sequence[Sample]], steps: int, per_step: Sequence[int], sizes: Sequence[int]
) -> list[str]:
    """What is wrong with a log of samples; nothing, where each sample was seen exactly once in each epoch of its corpus.

    Args:
        logged: the samples of each step, over all ranks.
        steps: that the run has done.
        per_step: samples that each corpus gives a step.
        sizes: samples of each corpus.
    """
    wrong = [f"step {step} is not logged" for step in range(1, steps + 1) if step not in logged]
    wrong += [f"step {step} is logged, but the run ends at {steps}" for step in logged if not 1 <= step <= steps]
    for corpus, (count, size) in enumerate(zip(per_step, sizes, strict=True)):
        for step, samples in sorted(logged.items()):
            draws = sorted(draw for number, draw, _ in samples if number == corpus)
            expected = list(range((step - 1) * count, step * count))
            if draws != expected:
                wrong.append(f"step {step}, corpus {corpus}: draws {_difference(draws, expected)}")
        epochs: dict[int, Counter[int]] = {}
        for samples in logged.values():
            for number, draw, index in samples:
                if number == corpus:
                    epochs.setdefault(draw // size, Counter())[index] += 1
        for epoch, seen in sorted(epochs.items()):
            in_epoch = min(size, steps * count - epoch * size)
            wrong += [
                f"corpus {corpus}, epoch {epoch}: sample {index} {times} times" for index, times in seen.items() if times > 1
            ]
            if len(seen) != in_epoch or not set(seen) <= set(range(size)):
                wrong.append(f"corpus {corpus}, epoch {epoch}: {len(seen)} different samples, expected {in_epoch} of {size}")
    return wrong


def _difference(found: list[int], expected: list[int]) -> str:
    missing, surplus = Counter(expected) - Counter(found), Counter(found) - Counter(expected)
    return f"{sorted(missing.elements())} are missing, {sorted(surplus.elements())} are too many"


def judge_curve(
    found: Mapping[int, Mapping[str, float]], undisturbed: Mapping[int, Mapping[str, float]], tolerance: float
) -> tuple[float, list[str]]:
    """The largest difference of a loss from the undisturbed run's, and what is wrong with the curve.

    Args:
        found, undisturbed: the numbers of each step.
        tolerance: of the loss, in its own unit.
    """
    if found.keys() != undisturbed.keys():
        return math.inf, [f"its steps are not those of the undisturbed run: {sorted(found.keys() ^ undisturbed.keys())[:5]} .."]
    apart = {step: abs(found[step]["loss"] - undisturbed[step]["loss"]) for step in found}
    wrong = [
        f"step {step}: loss {found[step]['loss']:.6f}, undisturbed {undisturbed[step]['loss']:.6f}"
        for step, difference in apart.items()
        if not difference <= tolerance  # nan is no agreement
    ]
    return max(apart.values()), wrong


def judge_again(twice: Mapping[int, tuple[Computed, Computed]], tolerance: float) -> tuple[str, list[str]]:
    """How steps that were done twice compare, in words, and what is wrong with them.

    Args:
        twice: the first and the second computation of each step.
        tolerance: of a number's relative difference, where the two have other lineages; else there is none.
    """
    apart = {step: _difference_of(first.numbers, second.numbers) for step, (first, second) in twice.items()}
    wrong = [
        f"step {step} is not what it was: {second.numbers}, {first.numbers} before"
        for step, (first, second) in twice.items()
        if not apart[step] <= (0.0 if first.lineage == second.lineage else tolerance)
    ]
    largest = max(apart.values(), default=0.0)
    words = "same bits" if largest == 0 else f"within {largest:.0e}"
    return (f"{len(twice)}, {words}" if twice else ""), wrong


def _difference_of(ours: Mapping[str, float], theirs: Mapping[str, float]) -> float:
    """The largest relative difference of two computations of a step; infinite where one lacks a number, or has none."""
    if ours.keys() != theirs.keys():
        return math.inf
    apart = [abs(ours[name] - theirs[name]) / max(1.0, abs(theirs[name])) for name in ours]
    return max(each if math.isfinite(each) else math.inf for each in apart)
