"""What a machine is made of, and what is reported of it."""

import resource
from pathlib import Path

import pytest
import torch

from tests.life import small_run
from unimo_ds.config import load_config
from unimo_ds.distributed import Environment
from unimo_ds.doctor import machine
from unimo_ds.doctor.installation import check_installation

ALONE = Environment(0, 1, 0, 1)


def test_code_is_every_file_of_the_package() -> None:
    code = machine.code()
    assert {"batch.py", "doctor/machine.py", "pages.css", "vision/weights/world.safetensors"} <= code.keys()
    assert not any("__pycache__" in name for name in code)


def test_packages_out_of_range_or_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["torch>=2.6", "lmdb", "surely-not-a-package>=3", 'jinja2; extra == "report"']
    monkeypatch.setattr(machine.metadata, "requires", lambda name: wanted)
    versions = {"torch": "2.4.1", "lmdb": "1.4"}

    def version(name: str) -> str:
        if name not in versions:
            raise machine.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(machine.metadata, "version", version)
    old, missing = machine.package_findings()
    assert old.what == "the package torch is 2.4.1, and setup.py wants >=2.6" and old.mend == "pip install 'torch>=2.6'"
    assert missing.what == "the package surely-not-a-package is not installed" and missing.fault
    assert [each.name for each in machine.requirements("report")] == ["jinja2"]


def test_what_is_installed_here_is_what_setup_asks_for() -> None:
    assert list(machine.package_findings()) == []


@pytest.mark.parametrize(
    "line",
    [
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\n",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  535.183.01  Release Build  (dvs-builder@U16)\n",
    ],
)
def test_the_driver(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_DRIVER", tmp_path / "version")
    assert machine.driver() is None
    (tmp_path / "version").write_text(line)
    assert machine.driver() == "535.183.01"
    if not torch.cuda.is_available():
        (finding,) = machine.Device(ALONE).findings()
        assert "there is a GPU (driver 535.183.01), and torch" in finding.what and finding.fault


def test_limits_of_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unlimited = resource.RLIM_INFINITY
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1 << 20 if which == resource.RLIMIT_NOFILE else unlimited, 0))
    assert list(machine.host_findings(None, ALONE)) == []
    run = load_config(small_run.write_config(tmp_path, "run"), ["training.deepspeed=ds_configs/zero3_offload.json"])
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1024, 4096))
    monkeypatch.setattr(machine.shutil, "which", lambda name: None if name == "ninja" else name)
    monkeypatch.setattr(machine, "shared_memory", lambda: 64 << 20)
    run = run.model_copy(update={"data": run.data.model_copy(update={"workers": 2})})
    monkeypatch.setattr(machine, "cores", lambda: 8)
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(machine.torch, "get_num_threads", lambda: 4)
    said = {each.what: each.fault for each in machine.host_findings(run, Environment(0, 4, 0, 4))}
    for words, fault in {
        "a process may open 1,024 files": False,
        "4 ranks of 4 threads share 8 cores": False,
        "/dev/shm has 0.07 GB, and batches": False,
        "offloads the optimizer, and DeepSpeedCPUAdam is compiled at the start: ninja not found": True,
    }.items():
        (found,) = [what for what in said if words in what]
        assert said[found] is fault
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 64)  # srun has given this rank 8 of them
    assert not any("share" in each.what for each in machine.host_findings(run, Environment(0, 4, 0, 4)))


@pytest.mark.long
def test_this_installation_is_sound() -> None:
    checks = list(check_installation())
    assert [check.finding for check in checks if check.finding is not None] == []
    states = {check.what: check.state for check in checks}
    count = len(machine.requirements())
    assert states["packages"] == f"{count} of {count} within the ranges of setup.py"
    assert {"torch", "Triton", "compilers", "apex", "LMDB", "limits", "Apertium", "WordNet", "Java"} <= states.keys()
    assert "writes and reads" in states["LMDB"] and "interprets kernels" in states["Triton"]
