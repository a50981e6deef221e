"""Ranks of a run as processes that start quickly: forked from a process that has imported torch and DeepSpeed once.

Importing takes most of a short run's time. A forked rank is a process of its own in everything that life tests look at: pid,
session, environment, output, signals and exit code. What users start, `test_launchers.py` and others start by its launcher.

Run as a program, this module is that process: it reads one request a line, and answers with the pid of the rank.
"""

import functools
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol

_IMPORTED = (
    "deepspeed.runtime.zero.stage3",
    "deepspeed.runtime.zero.muon.muon_optimizer",  # DeepSpeed imports it, and with it torch's compiler, for any optimizer
    "torch.utils.tensorboard",
    "unimo_ds.finetune",
    "unimo_ds.pretrain",
)


class Process(Protocol):
    """What the tests use of `subprocess.Popen`."""

    pid: int
    returncode: int | None

    def send_signal(self, sig: int, /) -> None:
        """Sends a signal, unless the process has ended."""

    def wait(self, timeout: float) -> int:
        """Waits for the end; the exit code."""

    def communicate(self, *, timeout: float) -> tuple[str, Any]:
        """Waits for the end; what was printed first."""


class Rank:
    """A started rank; a `Process`."""

    def __init__(self, module: str, words: Sequence[str], environment: dict[str, str], folder: Path) -> None:
        self._files = Path(tempfile.mkdtemp(dir=_all_files().name))
        self.returncode: int | None = None
        request = {"module": module, "words": list(words), "environment": environment, "folder": str(folder)}
        server = _server(str(folder))
        assert server.stdin is not None and server.stdout is not None
        server.stdin.write(json.dumps({**request, "files": str(self._files)}) + "\n")
        server.stdin.flush()
        self.pid = int(server.stdout.readline())

    def send_signal(self, number: int) -> None:
        """Sends a signal, unless the rank has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Ends it at once."""
        self.send_signal(signal.SIGKILL)

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        code = self._files / "code"
        if self.returncode is None and code.exists():
            self.returncode = int(code.read_text())
        return self.returncode

    def wait(self, timeout: float) -> int:
        """Waits for the end; the exit code."""
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"rank {self.pid}", timeout, self._output())
            time.sleep(0.01)
        return code

    def communicate(self, timeout: float = 240) -> tuple[str, None]:
        """Waits for the end; what it printed."""
        self.wait(timeout)
        return self._output(), None

    def _output(self) -> str:
        return (self._files / "output").read_text(errors="replace")


@functools.cache
def _all_files() -> "tempfile.TemporaryDirectory[str]":
    """Where ranks have a folder each; removed with this process."""
    return tempfile.TemporaryDirectory(prefix="ranks-")


@functools.cache
def _server(path: str) -> "subprocess.Popen[str]":
    """The process that forks, one for each folder that code is imported from; it ends with this process."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": path,
        "PYTHONWARNINGS": "ignore",
        "DS_ACCELERATOR": "cpu",
    }
    words = [sys.executable, "-m", "tests.life.ranks"]
    return subprocess.Popen(words, cwd=path, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _serve() -> None:
    for module in _IMPORTED:
        importlib.import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait for a rank
    while request := sys.stdin.readline():
        if os.fork() == 0:
            _look_after(json.loads(request))


def _look_after(request: dict[str, Any]) -> NoReturn:
    """Starts a rank, says its pid, and leaves its exit code in a file."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        _become(request)
    print(pid, flush=True)
    _, status = os.waitpid(pid, 0)
    written = Path(request["files"], ".code")
    written.write_text(str(os.waitstatus_to_exitcode(status)))
    written.rename(written.with_name("code"))
    os._exit(0)


def _become(request: dict[str, Any]) -> NoReturn:
    """Turns into `python -m MODULE WORDS` with that environment, as a session of its own, as a launcher would start it."""
    os.setsid()
    output = os.open(Path(request["files"], "output"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.clear()
    os.environ.update(request["environment"])
    warnings.simplefilter("ignore")  # runpy warns of modules that are imported already
    sys.argv[1:] = request["words"]
    code: object = 0
    try:
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


if __name__ == "__main__":
    _serve()
