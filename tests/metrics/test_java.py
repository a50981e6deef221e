"""METEOR and SPICE: the call, by a package that stands in, what is said where something is missing, and the real METEOR."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.metrics.official import official
from unimo_ds.errors import UnimoError
from unimo_ds.metrics.java import meteor, missing_for, program_scores, spice
from unimo_ds.metrics.ptb import tokenize

STAND_IN = """
class {name}:
    def compute_score(self, gts, res):
        if res[0] == ["fail"]:
            raise ValueError("could not convert string to float: ''")
        assert gts == {{0: ["a red bus", "bus"], 1: ["two dogs"]}} and res == {{0: ["a bus"], 1: [""]}}
        return {score}, []
"""
WORDS: Any = ([["a", "bus"], []], [[["a", "red", "bus"], ["bus"]], [["two", "dogs"]]])


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of the same name, and a Java, whatever is installed here."""
    package = tmp_path / "pycocoevalcap"
    for program, score in (("meteor", 0.25), ("spice", 0.5)):
        (package / program).mkdir(parents=True)
        (package / program / f"{program}.py").write_text(STAND_IN.format(name=program.capitalize(), score=score))
    (package / "__init__.py").touch()
    (tmp_path / "java").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    forget_package()
    yield package
    forget_package()


def forget_package() -> None:
    importlib.invalidate_caches()
    for name in [name for name in sys.modules if name.partition(".")[0] == "pycocoevalcap"]:
        del sys.modules[name]


def install_models(package: Path) -> None:
    (package / "spice/lib").mkdir()
    (package / "spice/lib/stanford-corenlp-3.6.0.jar").touch()


def test_words_reach_the_programs_as_texts_and_the_score_comes_back(stand_in: Path) -> None:
    install_models(stand_in)
    assert missing_for("meteor") is missing_for("spice") is None
    assert meteor(*WORDS) == 0.25 and spice(*WORDS) == 0.5


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UnimoError, match=r"^METEOR needs the package pycocoevalcap: pip install 'unimo_ds\[captions\]'$"):
        meteor(*WORDS)


def test_missing_java_is_named(stand_in: Path) -> None:
    (stand_in.parent / "java").unlink()
    with pytest.raises(UnimoError, match=r"^SPICE needs Java, which is not on the PATH: .*default-jre"):
        spice(*WORDS)


def test_missing_models_of_spice_are_named_and_meteor_needs_none(stand_in: Path) -> None:
    with pytest.raises(
        UnimoError, match=r"^SPICE needs the models of Stanford CoreNLP 3\.6\.0, once from the network: python -c"
    ):
        spice(*WORDS)
    assert missing_for("meteor") is None


def test_raw_captions_are_scored_by_what_runs_here(stand_in: Path) -> None:
    captions: Any = (["A bus.", ""], [["A red bus.", "Bus!"], ["Two dogs"]])
    scores, reasons = program_scores(["meteor", "spice"], *captions)
    assert scores == {"meteor": 0.25} and len(reasons) == 1 and reasons[0].startswith("SPICE needs the models")
    install_models(stand_in)
    assert program_scores(["meteor", "spice"], *captions) == ({"meteor": 0.25, "spice": 0.5}, [])
    scores, reasons = program_scores(["meteor"], ["Fail."], [["A."]])
    assert not scores and reasons == ["METEOR: its Java program failed: could not convert string to float: ''"]


def test_a_program_that_fails_is_named(stand_in: Path) -> None:
    with pytest.raises(UnimoError, match="METEOR: its Java program failed: could not convert"):
        meteor([["fail"]], [[["a"]]])


def test_words_that_cannot_be_scored_are_refused_before_anything_is_looked_for() -> None:
    with pytest.raises(ValueError, match="1 predictions but 2 references"):
        meteor([["a"]], [[["a"]], [["b"]]])


@pytest.mark.long
@pytest.mark.skipif(missing_for("meteor") is not None, reason=str(missing_for("meteor")))
def test_the_real_meteor_gives_the_kept_score() -> None:
    (case,) = (case for case in official("captions")["scores"] if case["name"] == "all")
    predictions = [tokenize(caption) for caption in case["predictions"]]
    references = [[tokenize(caption) for caption in several] for several in case["references"]]
    assert meteor(predictions, references) == pytest.approx(case["meteor"], abs=1e-9)
