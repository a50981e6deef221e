"""What the tests of text rewriting share: one parser, and helpers to read captions with it."""

from collections.abc import Callable

import pytest

from unimo_ds.augment.lexicon import Lexicon
from unimo_ds.augment.scene_graph import CaptionParser, SceneGraph


@pytest.fixture(scope="session")
def parser() -> CaptionParser:
    return CaptionParser.load()


@pytest.fixture
def read(parser: CaptionParser) -> Callable[..., list[SceneGraph]]:
    """The graphs of some captions."""
    return lambda *texts: list(parser.parse(texts))


@pytest.fixture
def lexicon() -> Lexicon:
    """The built-in lists alone, so that tests do not depend on what is installed."""
    return Lexicon()
