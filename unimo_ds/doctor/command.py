"""`unimo-ds doctor`: every rank looks, rank 0 compares and prints one page."""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import TimeoutError as TookTooLong
from functools import lru_cache
from pathlib import Path
from typing import Any

from unimo_ds import distributed
from unimo_ds.distributed import Environment
from unimo_ds.doctor import machine
from unimo_ds.doctor.diagnosis import Job, View, diagnose
from unimo_ds.doctor.findings import Facts, Finding
from unimo_ds.doctor.links import expected_rate, measure
from unimo_ds.doctor.meeting import Meeting, within
from unimo_ds.doctor.page import make_page
from unimo_ds.doctor.run import AnyRun, RunDisk, configuration_of, data_of, load_any, settings_findings
from unimo_ds.errors import UnimoError
from unimo_ds.processes import without_local_rank

# Seconds since a rank has started to look. Whoever is missing is named by rank 0 within a minute.
_LOOKING = 30.0  # for one rank to look at itself
_MEETING = 45.0  # until all have joined; or training.timeouts.start_up, if that is less
_LATECOMERS = 5.0  # and have said what they are
_END = 55.0

_FAULT, _INCOMPLETE = 1, 3  # exit codes; ranks that read a cold file system for the first time may only be late: look again


class Examination:
    """What one rank looks at.

    Args:
        config: the run; None: there is none, and the machine alone is looked at.
        overrides: of the run.
    """

    def __init__(self, config: Path | None, overrides: Sequence[str]) -> None:
        self._config, self._overrides = config, overrides
        self._here = distributed.environment()
        self.run: AnyRun | None = None
        self.disk: RunDisk | None = None
        self.at = ""  # what is looked at just now

    @property
    def what(self) -> str:
        """In words."""
        return "this installation" if self._config is None else " ".join([str(self._config), *self._overrides])

    def facts(self) -> Facts:
        """Looks; one rank a host looks at the host too."""
        self._going("its device")
        device = machine.Device(self._here)
        self._going("the code of unimo_ds")
        hardware = {"device": device.name, "driver": machine.driver() or "none"}
        alike = {"code": machine.code(), "versions": machine.versions(), "hardware": hardware}
        findings = list(device.findings())
        if self._config is not None:
            self._going(str(self._config))
            try:
                run = load_any(self._config, self._overrides)
                alike["configuration"] = configuration_of(run)
            except UnimoError as error:
                findings.append(Finding(str(error)))
            else:
                self.run = run
                alike["data"], unreadable = data_of(run, self._going)
                findings += [*settings_findings(run), *unreadable]
        if self._here.local_rank == 0:
            self._going("the limits of the host")
            findings += [*machine.package_findings(), *machine.host_findings(self.run, self._here), *self._disk_findings()]
        return Facts(
            platform.node(),
            device.name,
            device.unit,
            device.free,
            device.total,
            alike,
            findings,
            self.disk.free if self.disk else 0,
            self.disk.needed if self.disk else 0,
            machine.commit() if self._here.rank == 0 else "",
        )

    def _disk_findings(self) -> list[Finding]:
        if self.run is None:
            return []
        self._going(f"folder = {self.run.folder}")
        try:
            self.disk = RunDisk(self.run)
        except OSError as error:
            return [Finding(f"folder = {self.run.folder}: {error.strerror}", "give a `folder` that this user may use")]
        except UnimoError:
            return []  # of its settings, which have been looked at
        return list(self.disk.findings())

    def _going(self, what: str) -> None:
        self.at = what

    def facts_in_time(self) -> Facts:
        """The same; where a file system never answers, facts that say which."""
        try:
            return within(_LOOKING, self.facts)
        except TookTooLong:
            stuck = Finding(
                f"could not look at {self.at} within {_LOOKING:.0f} s", "does its file system answer? `ls` it on that host"
            )
        except Exception as error:  # of CUDA, of a library: the page says it, whichever rank it is
            stuck = Finding(f"could not look at {self.at}: {type(error).__name__}: {error}")
        return Facts(platform.node(), "unknown", "", 0, 0, {}, [stuck])

    def close(self) -> None:
        """Removes what was written to try the disk."""
        if self.disk is not None:
            self.disk.close()


def run_doctor(config: Path | None, overrides: Sequence[str]) -> int:
    """Looks at this machine, or at all ranks of the job, and prints a page on rank 0. Every rank must call it.

    Args:
        config, overrides: the run that is to start; None: only what no run is needed for.

    Returns:
        The exit code, the same on every rank: 1 if something must be mended, 3 if ranks are missing.

    Raises:
        UnimoError: the ranks could not meet.
    """
    started = time.monotonic()
    examination = Examination(config, overrides)
    here = distributed.environment()
    try:
        if here.world_size == 1:
            return _alone(examination, started)
        meeting = Meeting(here, _MEETING)
        facts = examination.facts_in_time()
        meeting.post("facts", facts.as_values())
        return _lead(meeting, examination, started) if here.rank == 0 else _follow(meeting, examination)
    finally:
        examination.close()


def _alone(examination: Examination, started: float) -> int:
    from unimo_ds.doctor.installation import check_installation  # what it tries, ranks of a job need not import

    facts = examination.facts_in_time()
    checks = list(check_installation())
    wrong = [check.finding for check in checks if check.finding is not None]
    job = Job(1, 0.0, {0: facts.host}, {0: facts})
    findings = {**diagnose(job), **{finding: [0] for finding in wrong}}
    lines = ["", *(f"{check.what}: {check.state}" for check in checks)]
    print(make_page(job, examination.what, findings, time.monotonic() - started, lines), flush=True)
    return _FAULT if any(finding.fault for finding in findings) else 0


def _lead(meeting: Meeting, examination: Examination, started: float) -> int:
    """Rank 0 waits for all, compares, prints, and tells the others how it ends."""
    here, run, disk = distributed.environment(), examination.run, examination.disk
    everyone = range(here.world_size)
    waiting = _MEETING if run is None else min(_MEETING, run.training.timeouts.start_up)
    joined: dict[int, str] = meeting.gather("joined", everyone, started + waiting)
    late = max(started + waiting, time.monotonic() + _LATECOMERS)
    facts = {rank: Facts.of_values(said) for rank, said in meeting.gather("facts", joined, late).items()}
    complete = len(facts) == len(everyone)
    left = max(started + _END - time.monotonic(), 1.0)
    call = {"probe": None if disk is None else str(disk.probe), "link_seconds": left if complete else 0.0, "time": time.time()}
    meeting.announce("call", call)
    meeting.post("view", vars(View()))
    if complete:
        meeting.post("links", _links(meeting, left))
    end = time.monotonic() + _LATECOMERS
    views = {rank: View(**said) for rank, said in meeting.gather("view", facts, end).items()}
    links = meeting.gather("links", facts, end) if complete else {}
    expected = expected_rate(facts[0].device, here) if 0 in facts else None
    places = {rank: _place(rank, joined, here) for rank in everyone if rank not in joined}
    job = Job(len(everyone), waiting, joined, facts, views, links, expected, places)
    findings = diagnose(job)
    code = _INCOMPLETE if not complete else _FAULT if any(finding.fault for finding in findings) else 0
    print(make_page(job, examination.what, findings, time.monotonic() - started), flush=True)
    meeting.announce("code", code)
    meeting.leave([rank for rank in views if rank != here.rank], _LATECOMERS)
    return code


def _follow(meeting: Meeting, examination: Examination) -> int:
    """Any other rank answers rank 0, and learns how it ends."""
    call = meeting.hear("call", _END)
    skew = time.time() - call["time"]
    looks = call["probe"] is not None and examination.disk is not None  # one rank a host
    meeting.post("view", vars(View(skew, Path(call["probe"]).exists() if looks else None)))
    if call["link_seconds"]:
        meeting.post("links", _links(meeting, call["link_seconds"]))
    code = int(meeting.hear("code", _END))
    meeting.leave((), 0.0)
    return code


def _links(meeting: Meeting, seconds: float) -> dict[str, Any]:
    """The rates of this rank's collectives; or why there are none, as `error`."""
    try:
        store = meeting.connect("links", seconds)
        return dict(within(seconds, lambda: measure(store, seconds)))
    except TookTooLong:
        return {"error": f"did not end within {seconds:.0f} s"}
    except (RuntimeError, UnimoError) as error:  # of gloo and NCCL
        return {"error": str(error).strip().splitlines()[-1]}


def _place(rank: int, joined: Mapping[int, str], here: Environment) -> str:
    """Where a missing rank should be: the host of its node's other ranks, or what Slurm says."""
    node = rank // here.local_world_size
    mates = [host for other, host in joined.items() if other // here.local_world_size == node]
    hosts = mates[:1] or _slurm_hosts()[node : node + 1]
    return f"rank {rank} ({hosts[0]})" if hosts else distributed.place_of(rank)


@lru_cache
def _slurm_hosts() -> list[str]:
    """The nodes of the job, in order; none where Slurm does not say."""
    if "SLURM_JOB_NODELIST" not in os.environ:
        return []
    try:
        words = ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]]
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=5).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return []


def main(arguments: list[str] | None = None) -> int:
    """`[CONFIG.yaml [a.b=c ...]]`, as every launcher calls it; returns the exit code."""
    words = without_local_rank(sys.argv[1:] if arguments is None else arguments)
    if words and (words[0].startswith("-") or "=" in words[0]):
        print("usage: python -m unimo_ds.doctor [CONFIG.yaml [key.path=value ...]]", file=sys.stderr)
        return 2
    here = distributed.environment()
    try:
        return run_doctor(Path(words[0]) if words else None, words[1:])
    except UnimoError as error:
        if here.rank <= 1 or here.local_rank == 0:  # rank 0 may be the one that is lost: one rank a node says so
            print(f"error: {error}", file=sys.stderr, flush=True)
        return _FAULT
