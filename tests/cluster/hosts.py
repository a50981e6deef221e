"""Two hosts on one machine: network namespaces, joined by a cable, each with an sshd of its own.

Needs root, and the Debian packages iproute2, openssh-server and pdsh, which `make test-cluster` installs. They share files and
processors; addresses, interfaces and ports are their own.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from tests.life.small_run import ROOT, environment

ADDRESSES = ("10.98.0.1", "10.98.0.2")
INTERFACE = "eth0"


class TwoHosts:
    """The namespaces and their sshds.

    Args:
        folder: for keys and configuration; nothing of the user's own ssh is read or written.
    """

    def __init__(self, folder: Path) -> None:
        missing = [name for name in ("ip", "pdsh", "ssh-keygen", "/usr/sbin/sshd") if shutil.which(name) is None]
        assert not missing, f"no {', '.join(missing)}: run `make test-cluster`"
        self._names = tuple(f"unimo-{os.getpid()}-{number}" for number in range(len(ADDRESSES)))
        self._sshds: list[subprocess.Popen[bytes]] = []
        self._folder = folder
        self.ssh_config = folder / "ssh_config"

    def up(self) -> None:
        """Makes both and waits until each can be logged in to from the first."""
        self._write_configuration()
        for name in self._names:
            _ip("netns", "add", name)
        first, second = self._names
        _ip("link", "add", INTERFACE, "netns", first, "type", "veth", "peer", "name", INTERFACE, "netns", second)
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd does not start without
        for number, (name, address) in enumerate(zip(self._names, ADDRESSES, strict=True)):
            _ip("-n", name, "address", "add", f"{address}/24", "dev", INTERFACE)
            for link in ("lo", INTERFACE):
                _ip("-n", name, "link", "set", link, "up")
            sshd = ["/usr/sbin/sshd", "-D", "-f", str(self._folder / "sshd_config"), "-E", str(self._folder / f"{address}.log")]
            self._sshds.append(self.start(number, sshd))
        for address in ADDRESSES:
            self._wait_for_sshd(address)

    def down(self) -> None:
        """Ends what runs on them, and removes them."""
        for name in self._names:
            inside = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False).stdout
            for pid in inside.split():
                with suppress(ProcessLookupError):  # its parent's end was its own
                    os.kill(int(pid), signal.SIGKILL)
            subprocess.run(["ip", "netns", "delete", name], check=False)
        for sshd in self._sshds:
            sshd.wait(timeout=10)

    def _write_configuration(self) -> None:
        key = self._folder / "key"  # of the hosts and of who logs in
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        server = ["UsePAM no", "StrictModes no", "PidFile none", f"HostKey {key}", f"AuthorizedKeysFile {key}.pub"]
        client = [f"IdentityFile {key}", "StrictHostKeyChecking no", "UserKnownHostsFile /dev/null", "LogLevel ERROR"]
        (self._folder / "sshd_config").write_text("\n".join(server) + "\n")
        self.ssh_config.write_text("\n".join(client) + "\n")

    def _wait_for_sshd(self, address: str) -> None:
        deadline = time.monotonic() + 30
        while self.start(0, ["ssh", "-F", str(self.ssh_config), address, "true"]).wait(timeout=30):
            assert time.monotonic() < deadline, (self._folder / f"{address}.log").read_text()
            time.sleep(0.1)

    def start(self, host: int, words: list[str], **variables: str) -> subprocess.Popen[bytes]:
        """Starts a command on a host, in the repository's folder and with the tests' environment."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return subprocess.Popen(
            ["ip", "netns", "exec", self._names[host], *words],
            cwd=ROOT,
            env={**environment(), "PATH": path, **variables},
            stdin=subprocess.DEVNULL,
        )


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
