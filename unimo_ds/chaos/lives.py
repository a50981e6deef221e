"""The processes of one start of a run, by any launcher: found, watched and killed by the mark that all of them inherit."""

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from unimo_ds.processes import has_ended

ROOT = Path(__file__).parents[2]
MODULE = "unimo_ds.pretrain"
_MARK = "UNIMO_DS_CHAOS_LIFE"
_DROPPED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # of a launcher that the campaign runs under


def commands(launcher: str, world: int, module: str, *words: str) -> list[tuple[list[str], dict[str, str]]]:
    """What a user types to start `world` ranks of a module: the processes, each with its variables.

    Args:
        launcher: `torchrun`, `deepspeed`; `srun`, of which there are the variables, each rank on a node of its own; `python`
            alone, which several ranks must be told their places.
        world: number of ranks.
        module, words: what they run.
    """
    port, worker = str(free_port()), [module, *words]
    if launcher == "deepspeed":
        places = Path(sys.executable).parent
        started = [str(places / "deepspeed"), "--num_gpus", str(world), "--master_port", port, "--module", *worker]
        return [(started, {"PATH": f"{places}{os.pathsep}{os.environ['PATH']}"})]
    if launcher == "torchrun":
        run = ["--nproc_per_node", str(world), "--master_port", port, "-m", *worker]
        return [([sys.executable, "-m", "torch.distributed.run", *run], {})]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    if launcher == "srun":
        job = {
            "SLURM_NTASKS": str(world),
            "SLURM_NNODES": str(world),
            "SLURM_JOB_NODELIST": f"node[1-{world}]",
            "SLURM_LOCALID": "0",
        }
        ranks = [{**meeting, **job, "SLURM_PROCID": str(rank)} for rank in range(world)]
    elif world > 1:
        ranks = [{**meeting, "WORLD_SIZE": str(world), "RANK": str(rank)} for rank in range(world)]
    else:
        ranks = [{}]
    return [([sys.executable, "-m", *worker], variables) for variables in ranks]


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Setting:
    """How a run is started.

    Attributes:
        launcher: `python` (one rank), `srun` (ranks as srun would start them), `torchrun`, or `deepspeed`.
        world: number of ranks.
        stage: of ZeRO.
        workers: processes of each rank that load data.
        supervised: by `unimo-ds supervise`, which starts it again.
    """

    launcher: str
    world: int
    stage: int
    workers: int
    supervised: bool

    @property
    def numbers(self) -> tuple[int, int]:
        """What the sums of floating-point numbers depend on."""
        return self.world, self.stage

    def __str__(self) -> str:
        supervised = " supervised" if self.supervised else ""
        return f"{self.world} × ZeRO-{self.stage} {self.launcher}{supervised}"


class Life:
    """The processes of one start.

    Args:
        setting: how it is started.
        config: the run's file.
        run: the run's folder.
        log: the file that gets what they print.
    """

    def __init__(self, setting: Setting, config: Path, run: Path, log: Path) -> None:
        self.setting, self.log = setting, log
        self._mark = f"{_MARK}={uuid.uuid4().hex}"
        self._started = [self._start(words, variables) for words, variables in self._commands(config, run)]

    def _commands(self, config: Path, run: Path) -> list[tuple[list[str], dict[str, str]]]:
        """The processes that a user, or srun, would start, each with its variables."""
        setting = self.setting
        stage = f"training.deepspeed={ROOT / f'ds_configs/zero{setting.stage}.json'}"
        words = (MODULE, str(config), stage, f"data.workers={setting.workers}")
        supervisor = [sys.executable, "-m", "unimo_ds.cli", "supervise", str(run), "--max-restarts", "1", "--"]
        return [
            ([*(supervisor if setting.supervised else []), *started], variables)
            for started, variables in commands(setting.launcher, setting.world, *words)
        ]

    def _start(self, words: list[str], variables: dict[str, str]) -> subprocess.Popen[bytes]:
        kept = {key: value for key, value in os.environ.items() if key not in _DROPPED and not key.startswith("SLURM_")}
        name, value = self._mark.split("=")
        ours = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        with self.log.open("ab") as log:
            return subprocess.Popen(
                words,
                cwd=ROOT,
                env={**kept, **ours, **variables, name: value},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # the campaign's own signals do not reach it
            )

    def processes(self) -> dict[int, list[str]]:
        """All that live, with their words."""
        for process in self._started:
            process.poll()  # buries it
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self._mark.encode() in (folder / "environ").read_bytes().split(b"\0") and not has_ended(int(folder.name)):
                    found[int(folder.name)] = (folder / "cmdline").read_text(encoding="utf-8").split("\0")
            except OSError:
                continue  # it has just ended, or is not ours
        return found

    def ranks(self) -> dict[int, int]:
        """The process of each rank that lives, without those that load data for it."""
        pids = {pid for pid, words in self.processes().items() if "-m" in words and words[words.index("-m") + 1] == MODULE}
        return {_rank(pid): pid for pid in sorted(pids) if _parent(pid) not in pids}

    def launcher(self) -> int:
        """The process that a user, or the supervisor, has started."""
        top = self._started[0].pid
        return next(pid for pid in self.processes() if _parent(pid) == top) if self.setting.supervised else top

    def signal(self, number: signal.Signals) -> None:
        """Signals what a user would: the launcher (or its supervisor), or else a rank."""
        self._started[-1].send_signal(number)

    def kill(self, pids: Iterable[int] | None = None) -> None:
        """Kills with -9: these, or all, as many as they may become meanwhile."""
        if pids is not None:
            _kill(pids)
            return
        while living := self.processes():
            _kill(living)
            time.sleep(0.02)

    def exit_codes(self) -> list[int | None]:
        """Of what was started; None: it lives."""
        return [process.poll() for process in self._started]

    def wait(self, seconds: float) -> bool:
        """Whether all of it has ended within so many seconds."""
        deadline = time.monotonic() + seconds
        while self.processes():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        for process in self._started:  # one that is about to leave is not seen any more, but has no exit code yet
            process.wait()
        return True

    def output(self, offset: int = 0) -> str:
        """What was printed, from a place on."""
        with self.log.open("rb") as file:
            file.seek(offset)
            return file.read().decode(errors="replace")


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _rank(pid: int) -> int:
    try:
        variables = dict(
            entry.split("=", 1)
            for entry in Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0")
            if "=" in entry
        )
    except OSError:
        return 0
    return int(variables.get("RANK", variables.get("SLURM_PROCID", 0)))


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[1])
    except OSError:
        return 0
