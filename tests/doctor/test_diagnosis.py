"""Which rank is to blame, and whether a job of 64 GPUs fits a page."""

from dataclasses import replace
from typing import Any

import pytest

from unimo_ds.doctor.diagnosis import Job, View, diagnose
from unimo_ds.doctor.findings import Facts, Finding
from unimo_ds.doctor.page import make_page

ALIKE = {
    "code": {"batch.py": "aa", "cli.py": "bb"},
    "versions": {"torch": "2.14.1", "NCCL": "2.28.3"},
    "configuration": {"seed": "1", "training.steps": "100"},
    "data": {"data.corpora.coco.regions": "manifest.json 12ab"},
    "hardware": {"device": "NVIDIA H100 80GB HBM3", "driver": "570.86"},
}


def facts(rank: int, ranks_a_host: int = 8, **changes: Any) -> Facts:
    host = f"gpu{rank // ranks_a_host + 1:02}"
    device = ALIKE["hardware"]["device"]
    return replace(Facts(host, device, f"GPU-{rank}", 78_000_000_000 + rank * 10**7, 85_000_000_000, ALIKE), **changes)


def make_job(world: int, **changes: Any) -> Job:
    said = {rank: facts(rank) for rank in range(world)}
    views = {rank: View(0.001 * rank, True) for rank in said}
    links = {rank: {"all-reduce": 200e9, "all-gather": 190e9} for rank in said}
    job = Job(world, 45.0, {rank: each.host for rank, each in said.items()}, said, views, links, 300e9)
    return replace(job, **changes)


def with_alike(job: Job, ranks: list[int], topic: str, **content: str) -> Job:
    changed = dict(job.facts)
    for rank in ranks:
        changed[rank] = replace(changed[rank], alike={**ALIKE, topic: {**ALIKE[topic], **content}})
    return replace(job, facts=changed)


def only(job: Job) -> tuple[Finding, list[int]]:
    (found,) = diagnose(job).items()
    return found


def test_64_sound_ranks_fit_a_page_and_equal_hosts_a_line() -> None:
    job = make_job(64)
    assert diagnose(job) == {}
    page = make_page(job, "recipes/base.yaml", {}, 6.4)
    lines = page.splitlines()
    assert len(lines) < 20 and max(map(len, lines)) <= 120
    assert lines[0] == "unimo-ds doctor: recipes/base.yaml, 64 of 64 ranks on 8 hosts, gpu01 .. gpu08, 6.4 s"
    (hosts,) = [line for line in lines if "H100" in line]
    assert " ".join(hosts.split()) == "0-63 8 hosts, gpu01 .. gpu08 NVIDIA H100 80GB HBM3 570.86 78.0 to 78.6 of 85"
    assert lines[-1] == "WELL: nothing stands in the way"


def test_a_page_stays_a_page_whatever_is_wrong() -> None:
    job = make_job(64, views={rank: View(rank * 100.0, False) for rank in range(64)})
    lines = make_page(job, "recipes/base.yaml", diagnose(job), 6.4).splitlines()
    assert len(lines) < 60 and max(map(len, lines)) <= 120
    assert lines[-1] == "ILL: 64 to be mended before a start" and "more" in lines[-2]


@pytest.mark.parametrize("odd", [0, 1, 5])
def test_the_odd_one_is_who_differs_from_most_even_rank_0(odd: int) -> None:
    finding, ranks = only(with_alike(make_job(6), [odd], "configuration", seed="2"))
    assert ranks == [odd] and finding.fault
    assert finding.what == f"another configuration than on rank {int(odd == 0)}: seed is 2, there 1"


def test_of_two_the_odd_one_is_rank_1() -> None:
    finding, ranks = only(with_alike(make_job(2), [1], "code", **{"batch.py": "cc"}))
    assert ranks == [1] and finding.what == "another code than on rank 0: batch.py"


def test_a_host_of_another_kind_is_one_finding_of_its_ranks() -> None:
    job = with_alike(make_job(24), list(range(8, 16)), "hardware", driver="550.54")
    finding, ranks = only(job)
    assert ranks == list(range(8, 16)) and not finding.fault
    page = make_page(job, "x", diagnose(job), 1.0)
    assert "warning  ranks 8-15 (gpu02): another hardware than on rank 0: driver is 550.54, there 570.86" in page
    assert page.endswith("WELL, but for these warnings")


def test_missing_and_silent_ranks_are_told_apart() -> None:
    whole = make_job(4)
    present = {rank: whole.facts[rank] for rank in (0, 1)}
    joined = {rank: whole.joined[rank] for rank in (0, 1, 3)}
    job = Job(4, 45.0, joined, present, places={2: "rank 2 on node 2 of gpu[01-04]"})
    page = make_page(job, "x", diagnose(job), 45.3)
    assert "FAULT  rank 2 on node 2 of gpu[01-04]: did not join within 45 s" in page
    assert "FAULT  rank 3 (gpu01): joined, and then said nothing more" in page
    assert "links: not measured" in page


def test_two_ranks_on_one_gpu() -> None:
    whole = make_job(3)
    finding, ranks = only(replace(whole, facts={**whole.facts, 2: facts(2, unit="GPU-0")}))
    assert ranks == [2] and finding.what == "has the same GPU as rank 0"


@pytest.mark.parametrize(("skews", "odd", "said"), [((0, 7200), 1, "7,200 s ahead"), ((0, -90, -90), 0, "90 s ahead")])
def test_clocks(skews: tuple[float, ...], odd: int, said: str) -> None:
    finding, ranks = only(make_job(len(skews), views={rank: View(skew) for rank, skew in enumerate(skews)}))
    assert ranks == [odd] and said in finding.what and finding.fault


def test_a_clock_some_seconds_off_is_a_warning() -> None:
    finding, ranks = only(make_job(3, views={0: View(0.0), 1: View(0.5), 2: View(-20.0)}))
    assert ranks == [2] and "20 s behind that of rank 0" in finding.what and not finding.fault


def test_a_folder_that_is_not_shared() -> None:
    finding, ranks = only(make_job(9, views={**{rank: View() for rank in range(8)}, 8: View(0.0, False)}))
    assert ranks == [8] and "does not see what rank 0 writes" in finding.what and finding.fault


def test_links_that_are_slow_broken_or_without_result() -> None:
    slow = make_job(2, links={rank: {"all-reduce": 9e9, "all-gather": 200e9} for rank in range(2)})
    finding, ranks = only(slow)
    assert ranks == [0] and finding.what == "all-reduce runs at 9.00 GB/s, of which 300 are expected" and not finding.fault
    assert diagnose(replace(slow, expected=None)) == {}
    broken = diagnose(make_job(3, links={0: {"error": "Connection reset"}, 1: {"error": "Connection reset"}}))
    words = {finding.what: ranks for finding, ranks in broken.items()}
    assert words == {
        "all-reduce and all-gather: Connection reset": [0, 1],
        "all-reduce and all-gather: gave no result": [2],
    }


def test_faults_stand_before_warnings() -> None:
    whole = make_job(2)
    own = [Finding("is slow", fault=False), Finding("is ill")]
    found = list(diagnose(replace(whole, facts={**whole.facts, 1: facts(1, findings=own)})))
    assert [finding.what for finding in found] == ["is ill", "is slow"]


def test_a_rank_that_is_stuck_is_not_said_to_be_unlike() -> None:
    sound = Facts("a", "CPU", "", 1, 2, {"hardware": {"device": "CPU"}})
    stuck = Facts("b", "unknown", "", 0, 0, {}, [Finding("could not look at data.tokenizer")])
    job = Job(2, 45.0, {0: "a", 1: "b"}, {0: sound, 1: stuck})
    found = diagnose(job)
    assert [finding.what for finding in found] == ["could not look at data.tokenizer"]
    assert "FAULT  rank 1 (b): could not look at data.tokenizer" in make_page(job, "x", found, 31.0)
