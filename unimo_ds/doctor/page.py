"""The examination on one page: equal hosts in one line, what is alike in one line, then what is wrong and what to do."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence

import xxhash

from unimo_ds.doctor.diagnosis import Job
from unimo_ds.doctor.findings import Facts, Finding

_WIDTH = 120
_HOSTS = 4  # named in one line
_MOST = 15  # findings on a page


def make_page(
    job: Job, what: str, findings: Mapping[Finding, Sequence[int]], seconds: float, installation: Sequence[str] = ()
) -> str:
    """The page of a job.

    Args:
        job: what its ranks have said.
        what: is examined.
        findings: `diagnose(job)`.
        seconds: that it took.
        installation: what was looked at on one machine.
    """
    hosts = list(dict.fromkeys(facts.host for facts in job.facts.values()))
    lines = [f"unimo-ds doctor: {what}, {len(job.facts)} of {job.world_size} ranks on {_named(hosts)}, {seconds:.1f} s", ""]
    lines += _groups(job.facts)
    lines += ["", *_alike(job.facts), *_disk(job.facts), *_clocks(job), *_rates(job), *installation]
    return "\n".join([*lines, "", *_verdict(findings, job)])


def _groups(facts: Mapping[int, Facts]) -> list[str]:
    """A line for each kind of host."""
    kinds: dict[tuple[str, str, int], list[int]] = {}
    for rank, each in facts.items():
        key = (each.device, each.alike.get("hardware", {}).get("driver", ""), round(each.memory_total / 1e9))
        kinds.setdefault(key, []).append(rank)
    rows = [["ranks", "hosts", "device", "driver", "memory free, GB"]]
    for (device, driver, total), ranks in kinds.items():
        free = [facts[rank].memory_free / 1e9 for rank in ranks]
        shown = f"{min(free):.1f}" if len(free) == 1 else f"{min(free):.1f} to {max(free):.1f}"
        hosts = list(dict.fromkeys(facts[rank].host for rank in ranks))
        rows.append([_ranges(ranks), _named(hosts), device, driver, f"{shown} of {total}"])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _alike(facts: Mapping[int, Facts]) -> list[str]:
    """What should be the same everywhere, and whether it is."""
    lines = []
    for topic in ("versions", "code", "configuration", "data"):
        said = [each.alike[topic] for each in facts.values() if topic in each.alike]
        if not said:
            continue
        digests = [xxhash.xxh3_64_hexdigest(repr(sorted(content.items())).encode())[:12] for content in said]
        kinds = len(set(digests))
        same = "" if len(said) == 1 else " the same on all ranks" if kinds == 1 else f" {kinds} DIFFERENT ONES"
        if topic == "versions":
            words = ", ".join(f"{name} {version}" for name, version in said[0].items())
        else:
            commit = "".join(each.commit for each in facts.values()) if topic == "code" else ""
            words = f"{digests[0]}, {len(said[0])} {'files' if topic == 'code' else 'keys'}{commit}"
        lines += textwrap.wrap(f"{topic}:{same + ';' if same else ''} {words}", _WIDTH, subsequent_indent="  ")
    return lines


def _disk(facts: Mapping[int, Facts]) -> list[str]:
    looked = [each for each in facts.values() if each.disk_needed]
    if not looked:
        return []
    least = min(looked, key=lambda each: each.disk_free)
    return [f"disk: {least.disk_free / 1e9:,.2f} GB free, {least.disk_needed / 1e9:,.2f} GB for checkpoints to come"]


def _clocks(job: Job) -> list[str]:
    if not job.views:
        return []
    furthest = max((abs(view.skew), rank) for rank, view in job.views.items())
    return [f"clocks: at most {furthest[0]:,.2f} s from that of rank 0 (rank {furthest[1]})"]


def _rates(job: Job) -> list[str]:
    rates = job.links.get(0, {})
    shown = ", ".join(f"{name} {rate / 1e9:.2f} GB/s" for name, rate in rates.items() if name != "error")
    if not shown:
        return ["links: not measured"] if job.world_size > 1 else []
    wanted = "" if job.expected is None else f" (the plan expects {job.expected / 1e9:.0f})"
    return [f"links, each rank: {shown}{wanted}"]


def _verdict(findings: Mapping[Finding, Sequence[int]], job: Job) -> list[str]:
    """What is wrong, of which ranks, and what to do."""
    if not findings:
        return ["WELL: nothing stands in the way"]
    lines = []
    for finding, ranks in list(findings.items())[:_MOST]:
        who = f"{_who(ranks, job)}: " if job.world_size > 1 else ""
        first = f"{'FAULT' if finding.fault else 'warning'}  {who}{finding.what}"
        lines += textwrap.wrap(first, _WIDTH, subsequent_indent=" " * 9, break_on_hyphens=False)
        if finding.mend:
            lines += textwrap.wrap(f"do: {finding.mend}", _WIDTH, initial_indent=" " * 9, subsequent_indent=" " * 13)
    if len(findings) > _MOST:
        lines.append(f"and {len(findings) - _MOST} more")
    faults = sum(finding.fault for finding in findings)
    return [*lines, f"ILL: {faults} to be mended before a start" if faults else "WELL, but for these warnings"]


def _who(ranks: Sequence[int], job: Job) -> str:
    """Ranks with their hosts: `rank 17 (gpu03)`, `ranks 0-63 (8 hosts, gpu01 ..)`."""
    hosts = {rank: job.joined[rank] for rank in ranks if rank in job.joined}
    if len(ranks) == 1:
        return f"rank {ranks[0]} ({hosts[ranks[0]]})" if hosts else job.places[ranks[0]]
    if not hosts:
        return "; ".join(job.places[rank] for rank in ranks[:_HOSTS]) + (
            f"; and {len(ranks) - _HOSTS} more" if len(ranks) > _HOSTS else ""
        )
    return f"ranks {_ranges(ranks)} ({_named(list(dict.fromkeys(hosts.values())))})"


def _ranges(ranks: Iterable[int]) -> str:
    """`0-7, 9`."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], rank]
        else:
            runs.append([rank, rank])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _named(hosts: Sequence[str]) -> str:
    if len(hosts) <= _HOSTS:
        return ", ".join(hosts)
    return f"{len(hosts)} hosts, {hosts[0]} .. {hosts[-1]}"
