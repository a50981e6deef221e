"""Inputs shared by the life tests of one session."""

from pathlib import Path

import pytest

from tests.life.small_run import write_candidates, write_inputs


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with regions, captions with candidates, texts and a tokenizer."""
    folder = tmp_path_factory.mktemp("small")
    write_inputs(folder)
    write_candidates(folder)
    return folder


@pytest.fixture(scope="session")
def many_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs of so many images that hardly one is seen twice."""
    folder = tmp_path_factory.mktemp("many")
    write_inputs(folder, images=400)
    return folder
