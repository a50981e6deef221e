"""What is wrong with a job, from what its ranks have said: which rank is missing, and which is not like the others."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from unimo_ds.doctor.findings import Facts, Finding

SLOW_SHARE = 0.25  # of what was expected of a link, below which it is reported
_CLOCK_WARNING, _CLOCK_FAULT = 2.0, 60.0  # seconds; Slurm's credentials, for one, are worth nothing after five minutes
_NAMED = 3  # differences named one by one

_MEND = {
    "code": "start all ranks from one folder that every host sees, or from a snapshot (slurm/submit.sh)",
    "configuration": "give every rank the same file and the same key.path=value words",
    "data": "let every host see one copy, or copy it again with its times (rsync -a), and prepare it again",
    "versions": "use one environment on all hosts",
    "hardware": "the slowest sets the pace: take one kind of node (--constraint, --exclude)",
}
_WARNINGS = ("hardware",)  # unlike ranks can train nevertheless


@dataclass(frozen=True)
class View:
    """What a rank saw of rank 0.

    Attributes:
        skew: seconds that its clock is ahead of rank 0's.
        shared: whether it sees what rank 0 has written into the run's folder; None where it did not look.
    """

    skew: float = 0.0
    shared: bool | None = None


@dataclass(frozen=True)
class Job:
    """All that the ranks have said.

    Attributes:
        world_size: ranks that should be there.
        waited: seconds for those that did not join.
        joined: hosts of those that did, by rank.
        facts: of those that have said what they are.
        views: of those that answered rank 0.
        links: rates of the collectives, or an `error`, of those that took part; empty where they were not measured.
        expected: rate of a link, where it is known.
        places: where those that did not join should be, in words.
    """

    world_size: int
    waited: float
    joined: Mapping[int, str]
    facts: Mapping[int, Facts]
    views: Mapping[int, View] = field(default_factory=dict)
    links: Mapping[int, dict[str, Any]] = field(default_factory=dict)
    expected: float | None = None
    places: Mapping[int, str] = field(default_factory=dict)


def diagnose(job: Job) -> dict[Finding, list[int]]:
    """All findings, faults first, each with the ranks that it is of."""
    found: dict[Finding, list[int]] = {}
    for part in (_missing, _unlike, _own, _doubled, _clocks, _shared, _slow):
        for rank, finding in part(job):
            found.setdefault(finding, []).append(rank)
    return dict(sorted(found.items(), key=lambda item: not item[0].fault))


def _missing(job: Job) -> Iterator[tuple[int, Finding]]:
    for rank in range(job.world_size):
        if rank not in job.joined:
            yield (
                rank,
                Finding(
                    f"did not join within {job.waited:.0f} s",
                    "look into that host's log and at its state (`scontrol show node`); leave it out with --exclude",
                ),
            )
        elif rank not in job.facts:
            yield (
                rank,
                Finding("joined, and then said nothing more", "look at that host: `ps`, `dmesg`, file systems that hang"),
            )


def _unlike(job: Job) -> Iterator[tuple[int, Finding]]:
    """Ranks that differ from most; of two kinds of the same number, from rank 0."""
    for topic, mend in _MEND.items():
        said = {rank: facts.alike[topic] for rank, facts in job.facts.items() if topic in facts.alike}
        if not said:
            continue
        kinds = {rank: tuple(sorted(content.items())) for rank, content in said.items()}
        usual, _ = Counter(kinds.values()).most_common(1)[0]
        like = next(rank for rank, kind in kinds.items() if kind == usual)
        for rank, kind in kinds.items():
            if kind != usual:
                different = _difference(said[like], said[rank], values=topic != "code")
                yield rank, Finding(f"another {topic} than on rank {like}: {different}", mend, fault=topic not in _WARNINGS)


def _difference(usual: dict[str, str], theirs: dict[str, str], values: bool) -> str:
    """The first keys that differ, in words; `values`: with what they are here and there."""
    keys = [key for key in {**usual, **theirs} if usual.get(key) != theirs.get(key)]
    shown = [f"{key} is {theirs.get(key)}, there {usual.get(key)}" if values else key for key in keys[:_NAMED]]
    return "; ".join(shown) + (f"; and {len(keys) - _NAMED} more" if len(keys) > _NAMED else "")


def _own(job: Job) -> Iterator[tuple[int, Finding]]:
    for rank, facts in job.facts.items():
        for finding in facts.findings:
            yield rank, finding


def _doubled(job: Job) -> Iterator[tuple[int, Finding]]:
    """Ranks that share a GPU."""
    holders: dict[tuple[str, str], list[int]] = {}
    for rank, facts in job.facts.items():
        if facts.unit:
            holders.setdefault((facts.host, facts.unit), []).append(rank)
    for ranks in holders.values():
        for rank in ranks[1:]:
            yield rank, Finding(f"has the same GPU as rank {ranks[0]}", "start one rank a GPU, each with its own LOCAL_RANK")


def _clocks(job: Job) -> Iterator[tuple[int, Finding]]:
    """Clocks that are away from those of most; of two, from rank 0's."""
    skews = {rank: view.skew for rank, view in job.views.items()}
    if not skews:
        return
    minutes = {rank: round(skew / _CLOCK_FAULT) for rank, skew in skews.items()}
    usual, _ = Counter(minutes.values()).most_common(1)[0]
    reference = next(rank for rank, minute in minutes.items() if minute == usual)
    for rank, skew in skews.items():
        away = skew - skews[reference]
        if abs(away) > _CLOCK_WARNING:
            words = f"{abs(away):,.0f} s {'ahead of' if away > 0 else 'behind'} that of rank {reference}"
            yield rank, Finding(f"its clock is {words}", "start chrony or ntpd on that host", fault=abs(away) > _CLOCK_FAULT)


def _shared(job: Job) -> Iterator[tuple[int, Finding]]:
    for rank, view in job.views.items():
        if view.shared is False:
            yield (
                rank,
                Finding(
                    "does not see what rank 0 writes into the run's folder",
                    "put `folder` on a file system that all hosts share: all ranks write parts of a checkpoint",
                ),
            )


def _slow(job: Job) -> Iterator[tuple[int, Finding]]:
    if not job.links:
        return
    for rank in job.facts:
        error = job.links.get(rank, {"error": "gave no result"}).get("error")
        if error:
            yield (
                rank,
                Finding(
                    f"all-reduce and all-gather: {error}",
                    "look at firewalls between hosts, at NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME; NCCL_DEBUG=INFO says more",
                ),
            )
    rates = job.links.get(0, {})
    if job.expected is None or "error" in rates:
        return
    for name, rate in rates.items():
        if rate < SLOW_SHARE * job.expected:
            yield (
                0,
                Finding(
                    f"{name} runs at {rate / 1e9:.2f} GB/s, of which {job.expected / 1e9:.0f} are expected",
                    "`nvidia-smi topo -m`; does NCCL use NVLink and InfiniBand, or sockets (NCCL_DEBUG=INFO)?",
                    fault=False,
                ),
            )
