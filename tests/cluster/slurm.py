"""A real Slurm of two nodes on one machine: munged, slurmctld and two slurmd of its own, without systemd.

Needs the Debian packages slurm-wlm and munge, which `make test-cluster` installs. The daemons have their files in one folder
and ports that were free; all are stopped by their pids.
"""

import getpass
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from tests.life.small_run import ROOT, environment, free_port

NODES = ("node1", "node2")
_ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE")
_DAEMONS = ("munged", "slurmctld", "slurmd")


class Cluster:
    """The daemons, and the few commands that tests need.

    Args:
        folder: for keys, sockets, logs, spools and pids.
    """

    def __init__(self, folder: Path) -> None:
        missing = [name for name in _DAEMONS if _program(name) is None]
        assert not missing, f"no {', '.join(missing)}: run `make test-cluster`, or install the packages slurm-wlm and munge"
        self._folder = folder
        self._conf = folder / "slurm.conf"
        for name in ("munge", "state", "log", "pid", *(f"spool/{node}" for node in NODES)):
            (folder / name).mkdir(parents=True)
        self._write_configuration()

    def _write_configuration(self) -> None:
        folder, me, host = self._folder, getpass.getuser(), socket.gethostname().split(".")[0]
        processors = os.cpu_count() or 2
        (self._folder / "munge/munge.key").write_bytes(os.urandom(1024))
        (self._folder / "munge/munge.key").chmod(0o600)
        settings = {
            "ClusterName": "test",
            "SlurmctldHost": f"{host}(127.0.0.1)",
            "AuthType": "auth/munge",
            # Credentials that last 5 seconds: a job that was put back waits until the old ones are worthless, 2 minutes else.
            "AuthInfo": f"socket={folder}/munge/munge.socket,cred_expire=5",
            "CryptoType": "crypto/munge",
            "SlurmUser": me,
            "SlurmdUser": me,
            "SlurmctldPort": free_port(),
            "SlurmctldPidFile": folder / "pid/slurmctld.pid",
            "SlurmdPidFile": folder / "pid/slurmd-%n.pid",
            "SlurmctldLogFile": folder / "log/slurmctld.log",
            "SlurmdLogFile": folder / "log/slurmd-%n.log",
            "StateSaveLocation": folder / "state",
            "SlurmdSpoolDir": folder / "spool/%n",
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "SwitchType": "switch/none",
            "MpiDefault": "none",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_Core",
            "SchedulerParameters": "sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=0",
            "JobAcctGatherType": "jobacct_gather/none",
            "AccountingStorageType": "accounting_storage/none",
            "JobCompType": "jobcomp/none",
            "ReturnToService": 2,
            "MailProg": "/bin/true",
            "SlurmdParameters": "config_overrides",
            "JobRequeue": 1,
        }
        lines = [f"{key}={value}" for key, value in settings.items()]
        for node in NODES:
            lines.append(
                f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={free_port()} CPUs={processors} State=UNKNOWN"
            )
        lines.append(f"PartitionName=main Nodes={','.join(NODES)} Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO")
        self._conf.write_text("\n".join(lines) + "\n")
        version = subprocess.run([_program("slurmd") or "", "-V"], capture_output=True, text=True, check=True).stdout
        old = int(re.findall(r"\d+", version)[0]) < 23  # these know no other way to do without control groups
        plugin = "CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n" if old else "CgroupPlugin=disabled\n"
        (self._folder / "cgroup.conf").write_text(plugin)

    def start(self) -> None:
        """Starts all daemons and waits until both nodes are idle."""
        munge = self._folder / "munge"
        self._folder.chmod(0o755)
        words = [f"--key-file={munge}/munge.key", f"--socket={munge}/munge.socket", f"--seed-file={munge}/munged.seed"]
        words += [f"--pid-file={self._folder}/pid/munged.pid", f"--log-file={self._folder}/log/munged.log", "--force"]
        self._daemon("munged", *words)
        self._daemon("slurmctld", "-f", str(self._conf), "-i")
        for node in NODES:
            self._daemon("slurmd", "-N", node, "-f", str(self._conf))
        deadline = time.monotonic() + 30
        while self.command("sinfo", "-h", "-N", "-t", "idle", "-o", "%N").split() != list(NODES):
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.1)

    def _daemon(self, name: str, *words: str) -> None:
        program = _program(name)
        assert program is not None
        subprocess.run([program, *words], check=True, env={**os.environ, "SLURM_CONF": str(self._conf)}, timeout=30)

    def stop(self) -> None:
        """Ends all jobs and daemons."""
        with suppress(subprocess.TimeoutExpired):  # there may be no controller to ask
            subprocess.run(["scancel", "--user", getpass.getuser()], env=self._environment(), timeout=30, check=False)
        for file in sorted((self._folder / "pid").glob("*.pid"), key=lambda file: "munged" in file.name):
            _end(int(file.read_text()))

    def _environment(self) -> dict[str, str]:
        # Without the doctor where a test does not ask for it: it takes seconds of every start.
        return {**environment(), "SLURM_CONF": str(self._conf), "PYTHON": sys.executable, "DOCTOR": "no"}

    def command(self, *words: str, folder: Path = ROOT) -> str:
        """The output of a Slurm command; started in the repository, as users do, or in another folder.

        Raises:
            AssertionError: it failed.
        """
        ran = subprocess.run(
            words,
            cwd=folder,
            env={**self._environment(), "PYTHONPATH": str(folder)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert ran.returncode == 0, f"{words}: {ran.stderr}"
        return ran.stdout

    def submit(self, output: Path, *words: str) -> int:
        """Submits a batch file with its words; the job's number."""
        return int(self.command("sbatch", "--parsable", f"--output={output}", *words))

    def job(self, number: int | str) -> dict[str, str]:
        """What Slurm says of a job, or of an element of an array: `7_1`."""
        return dict(
            pair.split("=", 1) for pair in self.command("scontrol", "show", "job", "-o", str(number)).split() if "=" in pair
        )

    def wait(self, number: int | str, seconds: float) -> dict[str, str]:
        """Waits for the end of a job, restarts included; what Slurm says of it."""
        deadline = time.monotonic() + seconds
        while True:
            job = self.job(number)
            if job["JobState"] in _ENDED:
                return job
            assert time.monotonic() < deadline, f"job {number} is still {job['JobState']} after {seconds} s\n{self.logs()}"
            time.sleep(0.5)

    def wait_for_array(self, number: int, elements: int, seconds: float) -> list[str]:
        """Waits for the elements from 0 on; the state that each ended in."""
        return [self.wait(f"{number}_{element}", seconds)["JobState"] for element in range(elements)]

    def logs(self) -> str:
        """The ends of the daemons' logs."""
        return "\n".join(f"== {log.name}\n{log.read_text()[-1500:]}" for log in (self._folder / "log").glob("*.log"))


def _program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(f"/usr/sbin/{name}")


def _end(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGTERM)
        for _ in range(100):
            os.kill(pid, 0)
            time.sleep(0.1)
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
