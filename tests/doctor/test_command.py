"""The command on one machine: page and exit code. Jobs of several ranks are in tests/life/test_doctor.py."""

from pathlib import Path

import pytest

from tests.life import small_run
from unimo_ds import distributed
from unimo_ds.distributed import Environment
from unimo_ds.doctor import command
from unimo_ds.doctor.command import main
from unimo_ds.doctor.findings import Finding
from unimo_ds.doctor.installation import Check


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[Check]:
    found = [Check("LMDB", "writes and reads")]
    monkeypatch.setattr("unimo_ds.doctor.installation.check_installation", lambda: found)
    return found


def test_without_a_run_the_installation_alone(checks: list[Check], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    page = capsys.readouterr().out
    assert page.startswith("unimo-ds doctor: this installation, 1 of 1 ranks on ") and "LMDB: writes and reads" in page
    assert "configuration" not in page and "disk" not in page
    checks.append(Check("Triton", "compiles nothing", Finding("Triton is ill", "install it")))
    assert main([]) == 1
    assert "FAULT  Triton is ill\n         do: install it\nILL: 1 to be mended" in capsys.readouterr().out


def test_a_run_on_one_machine(checks: list[Check], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_run.write_inputs(tmp_path)
    config = small_run.write_config(tmp_path, "run")
    before = sorted(tmp_path.iterdir())
    assert main([str(config), "data.workers=0"]) == 0
    page = capsys.readouterr().out
    assert f"{config} data.workers=0, 1 of 1 ranks" in page and "GB for checkpoints to come" in page
    assert sorted(tmp_path.iterdir()) == before  # nothing is left behind
    (tmp_path / "texts.txt").unlink()
    assert main([str(config)]) == 1
    assert "FAULT cannot be read: data.corpora.texts.path = " in " ".join(capsys.readouterr().out.split())  # lines are wrapped


def test_words_that_are_no_run(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--help"], ["seed=3"]):
        assert main(words) == 2
        assert "usage: python -m unimo_ds.doctor [CONFIG.yaml" in capsys.readouterr().err


@pytest.mark.parametrize(("rank", "local_rank", "says"), [(1, 1, True), (2, 2, False), (4, 0, True)])
def test_one_rank_a_node_says_that_they_cannot_meet(
    rank: int, local_rank: int, says: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setattr(distributed, "environment", lambda: Environment(rank, 8, local_rank, 4))
    assert main([]) == 1
    assert ("ranks cannot meet" in capsys.readouterr().err) is says


def test_where_a_missing_rank_should_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    here = Environment(0, 12, 0, 4)
    monkeypatch.setattr(distributed, "environment", lambda: here)
    monkeypatch.delenv("SLURM_JOB_NODELIST", raising=False)
    joined = {0: "gpu01", 4: "gpu02"}
    assert command._place(6, joined, here) == "rank 6 (gpu02)"
    assert command._place(9, joined, here) == "rank 9 on node 2"
    monkeypatch.setenv("SLURM_JOB_NODELIST", "gpu[01-02,07]")
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\n[ "$*" = "show hostnames gpu[01-02,07]" ] && printf "gpu01\\ngpu02\\ngpu07\\n"\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    command._slurm_hosts.cache_clear()
    assert command._place(9, joined, here) == "rank 9 (gpu07)"
    command._slurm_hosts.cache_clear()
