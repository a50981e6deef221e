"""Five faults are planted in jobs of two hosts, and the doctor names each: rank, host, what, what to do. A sound job is well.

A host is a process in namespaces of its own: it has its own name, and its own mounts where a fault wants them.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.life import small_run

pytestmark = pytest.mark.life
DOCTOR = ("-m", "unimo_ds.doctor")
LATE = """
import runpy, time
now = time.time
time.time = lambda: now() + 7200
runpy.run_module("unimo_ds.doctor", run_name="__main__", alter_sys=True)
"""


class Job:
    """Ranks of `unimo-ds doctor`, as srun would start one on each of two nodes; what is left of them is killed."""

    def __init__(self, config: Path) -> None:
        self._config = config
        self._job = {"SLURM_NTASKS": "2", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_LOCALID": "0"}
        self._job |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(small_run.free_port()), "GLOO_SOCKET_IFNAME": "lo"}
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, rank: int, before: str = "true", words: tuple[str, ...] = DOCTOR, **variables: str) -> None:
        """Starts a rank on its own host, after the shell's words `before`."""
        script = f'hostname host{rank}; {before}; exec "$@"'
        host = ["unshare", "--map-root-user", "--mount", "--uts", "sh", "-ec", script, "sh"]
        environment = {**small_run.environment(), **self._job, "SLURM_PROCID": str(rank), **variables}
        self.processes.append(
            subprocess.Popen(
                [*host, sys.executable, *words, str(self._config)],
                cwd=self._config.parent,  # not the repository, whose code would come before that of PYTHONPATH
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )

    def end(self) -> tuple[list[int], str]:
        """The exit codes, and the page."""
        outputs = [process.communicate(timeout=90)[0] for process in self.processes]
        assert all(output == "" for output in outputs[1:]), outputs  # one page, by rank 0
        return [process.returncode for process in self.processes], " ".join(outputs[0].split())


@pytest.fixture
def job(inputs: Path) -> Iterator[Job]:
    made = Job(small_run.write_config(inputs, "examined", candidates=True, timeouts={"start_up": 40}))
    (inputs / "examined").mkdir(exist_ok=True)
    yield made
    for process in made.processes:
        process.kill()
        process.communicate()


def test_a_sound_job_is_well(job: Job) -> None:
    job.start(0)
    job.start(1)
    codes, page = job.end()
    assert codes == [0, 0], page
    assert "2 of 2 ranks on host0, host1" in page and page.endswith("WELL: nothing stands in the way")
    for topic in ("versions", "code", "configuration", "data"):
        assert f"{topic}: the same on all ranks" in page
    assert re.search(r"all-reduce \d+\.\d+ GB/s, all-gather \d+\.\d+ GB/s", page)


def test_a_rank_that_is_missing(inputs: Path) -> None:
    job = Job(small_run.write_config(inputs, "incomplete", timeouts={"start_up": 3}))
    job.start(0)
    codes, page = job.end()
    assert codes == [3]
    assert re.search(r"FAULT rank 1 (on node 1 of node\[1-2\]|\(node2\)): did not join within 3 s do: look into", page), page


def test_another_code_on_one_rank(job: Job, tmp_path: Path) -> None:
    shutil.copytree(small_run.ROOT / "unimo_ds", tmp_path / "unimo_ds", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "unimo_ds/batch.py").open("a") as file:
        file.write("# edited\n")
    job.start(0)
    job.start(1, PYTHONPATH=str(tmp_path))
    codes, page = job.end()
    assert codes == [1, 1]
    assert "FAULT rank 1 (host1): another code than on rank 0: batch.py do: start all ranks from one folder" in page
    assert "ILL: 1 to be mended" in page


def test_another_data_manifest_on_one_rank(job: Job, inputs: Path, tmp_path: Path) -> None:
    shutil.copytree(inputs / "regions", tmp_path / "regions")
    manifest = json.loads((tmp_path / "regions/manifest.json").read_text())
    manifest["detector"]["weights_sha256"] = "1" * 64
    (tmp_path / "regions/manifest.json").write_text(json.dumps(manifest))
    job.start(0)
    job.start(1, before=f"mount --bind {tmp_path / 'regions'} {inputs / 'regions'}")
    codes, page = job.end()
    assert codes == [1, 1]
    assert "FAULT rank 1 (host1): another data than on rank 0: data.corpora.pairs.regions is manifest.json " in page
    assert "ILL: 1 to be mended" in page


def test_a_clock_two_hours_off(job: Job) -> None:
    job.start(0)
    job.start(1, words=("-c", LATE))
    codes, page = job.end()
    assert codes == [1, 1]
    found = re.search(r"FAULT rank 1 \(host1\): its clock is ([\d,]+) s ahead of that of rank 0 do: start chrony", page)
    assert found and abs(int(found[1].replace(",", "")) - 7200) < 5, page
    assert "ILL: 1 to be mended" in page


def test_a_full_disk(job: Job, inputs: Path) -> None:
    job.start(0)
    job.start(1, before=f"mount -t tmpfs -o size=4m none {inputs / 'examined'}")
    codes, page = job.end()
    assert codes == [1, 1]
    assert re.search(
        r"FAULT rank 1 \(host1\): \S+/examined: 0\.00 GB are free, and a checkpoint needs 0\.\d+ GB do: free", page
    )
    assert "FAULT rank 1 (host1): does not see what rank 0 writes into the run's folder" in page  # a disk of its own


def test_torchrun_whose_agent_holds_the_store(inputs: Path) -> None:
    words = ["--nproc_per_node", "2", "--master_port", str(small_run.free_port()), "-m", "unimo_ds.doctor"]
    config = small_run.write_config(inputs, "by_torchrun")
    ran = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words, str(config), "seed=3"],
        cwd=small_run.ROOT,
        env=small_run.environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "by_torchrun.yaml seed=3, 2 of 2 ranks" in ran.stdout and "WELL: nothing stands in the way" in ran.stdout
