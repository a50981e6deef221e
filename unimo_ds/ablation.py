"""Ablations: the same run with one thing changed, over several seeds, in one table.

A plan is a YAML file: a base run, what all runs change of it, the variants as `key: value` overrides, which numbers of
`evaluation.json` become columns, and if wanted a start, a run of each seed from whose weights all its variants go on. Every
variant and seed is an ordinary run in a folder of its own, started by the command that a user would type; what is finished is
reused, and a changed variant gets another folder.
"""

import hashlib
import json
import re
import statistics
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError, model_validator

from unimo_ds.config import Section, load_config
from unimo_ds.errors import ConfigError, UnimoError
from unimo_ds.processes import cores, is_finished, run_to_end
from unimo_ds.progress import Progress

Overrides = dict[str, Any]


class Column(Section):
    """A column of the table: a number of `evaluation.json`."""

    key: str
    title: str


class AblationPlan(Section):
    """A table of runs."""

    base: Path
    folder: Path  # the runs, ablations.md and ablations.json
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (1, 2, 3)
    overrides: Annotated[Overrides, Field(default_factory=dict)]  # of every run
    start: Overrides | None = None  # a run made first, whose last checkpoint every variant begins with
    variants: Annotated[dict[str, Overrides], Field(min_length=1)]  # the first is what the others are compared with
    columns: Annotated[list[Column], Field(min_length=1)]

    @model_validator(mode="after")
    def _runs_differ(self) -> "AblationPlan":
        for name, changes in {"overrides": self.overrides, "start": self.start or {}, **self.variants}.items():
            for key in {"seed", "folder", "init"} & changes.keys():
                raise ValueError(f"{name}: {key} is given by the plan itself; leave it out")
        names = [_slug(variant) for variant in self.variants]
        if len(set(names)) != len(names) or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"variants and seeds must differ in their folders' names, got {names} and seeds {self.seeds}")
        return self


@dataclass(frozen=True)
class _Job:
    variant: str
    seed: int
    folder: Path
    words: tuple[str, ...]


def run_ablations(path: Path, parallel: int | None = None, only: list[str] | None = None) -> Path:
    """Runs what is not finished of a plan and writes the table, which is printed too.

    Args:
        path: the plan.
        parallel: runs at the same time, one thread each; None: one a core.
        only: names of variants; None: all.

    Returns:
        The table, `ablations.md` in the plan's folder.

    Raises:
        ConfigError: the plan, or what it makes of the base run, is wrong; before anything is started.
        UnimoError: a run failed; names its log. The other runs are finished first.
    """
    plan = load_plan(path)
    unknown = [name for name in only or [] if name not in plan.variants]
    if unknown:
        raise ConfigError(f"{path}: no variant {unknown[0]!r}; there are: {', '.join(plan.variants)}")
    jobs = [job for job in _jobs(plan) if not only or job.variant in only]
    for job in jobs:
        if load_config(plan.base, job.words).evaluation is None:
            raise ConfigError(f"{plan.base}: has no section evaluation, so there is nothing to compare; add evaluation.pairs")
    failed = _run_all(plan, jobs, parallel or cores())
    table = write_table(plan)
    if failed:
        raise UnimoError(
            f"{len(failed)} of {len(jobs)} runs failed, the first: {failed[0].variant}, seed {failed[0].seed}; "
            f"see {failed[0].folder / 'log.txt'}. The table has the others; start the same command again to go on."
        )
    return table


def _run_all(plan: AblationPlan, jobs: list[_Job], workers: int) -> list[_Job]:
    """Runs those of `jobs` that are not finished, each when its start is; returns the ones that failed."""
    todo = [job for job in jobs if not is_finished(job.folder)]
    begun = [_start_of(plan, seed) for seed in dict.fromkeys(job.seed for job in todo)] if plan.start is not None else []
    starts = [start for start in begun if not is_finished(start.folder)]
    failed: list[_Job] = []
    with Progress("ablations", len(todo) + len(starts), "runs") as progress, ThreadPoolExecutor(workers) as pool:
        # Jobs are taken up in this order, so one that waits for a start waits for a worker that is at it.
        waited_for = {start.seed: pool.submit(_run, plan.base, start, None) for start in starts}
        others = [pool.submit(_run, plan.base, job, waited_for.get(job.seed)) for job in todo]
        for future in as_completed([*waited_for.values(), *others]):
            job, done = future.result()
            progress.advance(note=f"{job.variant}, seed {job.seed}")
            if not done:
                failed.append(job)
    return failed


def load_plan(path: Path) -> AblationPlan:
    """Reads a plan.

    Raises:
        ConfigError: names the key that is wrong.
    """
    try:
        plan = AblationPlan.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
        plan.base.read_bytes()
        return plan
    except OSError as error:
        raise ConfigError(f"{error.filename}: cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not valid YAML: {error}") from error
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()]
        raise ConfigError(f"{path}: {'; '.join(lines)}") from error


def _jobs(plan: AblationPlan) -> Iterator[_Job]:
    for seed in plan.seeds:  # seed by seed: a table that is looked at early has all its rows
        for variant, changes in plan.variants.items():
            overrides = {**plan.overrides, **changes}
            if plan.start is not None:
                start = _start_of(plan, seed)
                steps = load_config(plan.base, start.words).training.steps
                overrides["init"] = str(start.folder / "checkpoints" / f"step-{steps:08}")
            yield _job(plan, variant, overrides, seed)


def _start_of(plan: AblationPlan, seed: int) -> _Job:
    return _job(plan, "start", {**plan.overrides, **(plan.start or {})}, seed)


def _job(plan: AblationPlan, variant: str, overrides: Overrides, seed: int) -> _Job:
    words = tuple(f"{key}={json.dumps(value)}" for key, value in overrides.items())
    named = re.sub(r"/seed-\d+/", "/", repr(words))  # a variant has one folder, whichever start it begins with
    digest = hashlib.sha256(repr((plan.base.read_bytes(), named)).encode()).hexdigest()[:6]
    name = _slug(variant)
    folder = plan.folder / f"{name}-{digest}" / f"seed-{seed}"
    return _Job(variant, seed, folder, (*words, f"seed={seed}", f"folder={folder}"))


def _slug(variant: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", variant.lower()).strip("-")


def _run(base: Path, job: _Job, start: "Future[tuple[_Job, bool]] | None") -> tuple[_Job, bool]:
    """Runs a job to its end, after its start; whether it got there."""
    if start is not None and not start.result()[1]:
        return job, False
    return job, run_to_end("unimo_ds.pretrain", [str(base), *job.words], job.folder)


def write_table(plan: AblationPlan) -> Path:
    """Writes `ablations.md` and `ablations.json` of all runs of the plan that are finished, and prints the table."""
    numbers: dict[str, dict[int, dict[str, float]]] = {}
    for job in _jobs(plan):
        if is_finished(job.folder):
            evaluation = json.loads((job.folder / "evaluation.json").read_text(encoding="utf-8"))
            numbers.setdefault(job.variant, {})[job.seed] = evaluation["numbers"]
    plan.folder.mkdir(parents=True, exist_ok=True)
    (plan.folder / "ablations.json").write_text(json.dumps(numbers, indent=1), encoding="utf-8")
    table = format_table(plan, numbers)
    (plan.folder / "ablations.md").write_text(table, encoding="utf-8")
    print(table)
    return plan.folder / "ablations.md"


def format_table(plan: AblationPlan, numbers: Mapping[str, Mapping[int, Mapping[str, float]]]) -> str:
    """Means over seeds with their standard deviations, in per cent, as Markdown; and what each row differs from the first.

    The differences are taken seed by seed: runs of one seed share its start and its data, so what all of them gain or lose by
    the seed falls out.
    """
    first, *others = plan.variants
    means = {variant: numbers[variant] for variant in plan.variants if variant in numbers}
    tables = [_table(plan, "", means)]
    if first in means:
        differences = {
            variant: {
                seed: {key: value - means[first][seed][key] for key, value in found.items() if key in means[first][seed]}
                for seed, found in means[variant].items()
                if seed in means[first]
            }
            for variant in others
            if variant in means
        }
        tables.append(_table(plan, f"difference from {first}, seed by seed", differences, signed=True))
    return "\n".join(tables)


def _table(plan: AblationPlan, corner: str, rows: Mapping[str, Mapping[int, Mapping[str, float]]], signed: bool = False) -> str:
    lines = [[corner, *(column.title for column in plan.columns), "seeds"]]
    for variant, seeds in rows.items():
        cells = [
            _cell([found[column.key] for found in seeds.values() if column.key in found], signed) for column in plan.columns
        ]
        lines.append([variant, *cells, str(len(seeds))])
    joined = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([joined[0], "|---|" + "---:|" * (len(plan.columns) + 1), *joined[1:]]) + "\n"


def _cell(values: list[float], signed: bool) -> str:
    if not values:
        return "–"
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    mean = 100 * statistics.fmean(values)
    return (f"{mean:+.1f}" if signed else f"{mean:.1f}") + spread
