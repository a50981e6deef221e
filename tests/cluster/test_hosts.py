"""Launchers over two hosts without Slurm: the curve of ranks that no launcher started."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.hosts import ADDRESSES, INTERFACE, TwoHosts
from tests.life import small_run

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
STEPS = 3
VARIABLES = {"GLOO_SOCKET_IFNAME": INTERFACE, "OMP_NUM_THREADS": "1"}
MEETING = ["--master_addr", ADDRESSES[0], "--master_port", "29500"]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoHosts]:
    made = TwoHosts(tmp_path_factory.mktemp("hosts"))
    try:
        made.up()
        yield made
    finally:
        made.down()


@pytest.fixture(scope="module")
def by_hand(inputs: Path) -> list[dict[str, float]]:
    small_run.run(small_run.write_config(inputs, "two_by_hand", steps=STEPS), 2)
    return small_run.losses(inputs / "two_by_hand")


@pytest.mark.parametrize("launcher", ["deepspeed", "deepspeed_without_ssh", "torchrun"])
def test_two_hosts_give_one_curve(
    hosts: TwoHosts, inputs: Path, tmp_path: Path, by_hand: list[dict[str, float]], launcher: str
) -> None:
    run = ["unimo_ds.pretrain", str(small_run.write_config(inputs, f"hosts_{launcher}", steps=STEPS))]
    (tmp_path / "hostfile").write_text("".join(f"{address} slots=1\n" for address in ADDRESSES))
    (tmp_path / "environment").write_text("".join(f"{key}={value}\n" for key, value in VARIABLES.items()))
    deepspeed = ["deepspeed", "--hostfile", str(tmp_path / "hostfile"), *MEETING]
    if launcher == "deepspeed":  # from the first host; the variables of its shell stay there
        variables = {"DS_ENV_FILE": str(tmp_path / "environment"), "PDSH_SSH_ARGS_APPEND": f"-F {hosts.ssh_config}"}
        started = [hosts.start(0, [*deepspeed, "--no_ssh_check", "--module", *run], **variables)]
    elif launcher == "deepspeed_without_ssh":
        words = [[*deepspeed, "--no_ssh", "--node_rank", str(host), "--module", *run] for host in range(2)]
        started = [hosts.start(host, words[host], **VARIABLES) for host in range(2)]
    else:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1", *MEETING]
        words = [[*torchrun, "--node_rank", str(host), "-m", *run] for host in range(2)]
        started = [hosts.start(host, words[host], **VARIABLES) for host in range(2)]
    assert [launched.wait(timeout=240) for launched in started] == [0] * len(started)
    assert small_run.losses(inputs / f"hosts_{launcher}") == by_hand and len(by_hand) == STEPS
