"""One cluster and one set of inputs for all tests of this folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.slurm import Cluster
from tests.life.small_run import write_candidates, write_inputs


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    write_candidates(folder)
    return folder
