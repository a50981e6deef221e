"""One cluster for all tests of this folder; the inputs are those of the life tests."""

from collections.abc import Iterator

import pytest

from tests.cluster.slurm import Cluster
from tests.life.conftest import inputs as inputs


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        made.start()
        yield made
    finally:
        made.stop()
