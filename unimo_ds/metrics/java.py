"""METEOR and SPICE, which are Java programs: run through the package `pycocoevalcap` where that and Java are found.

`program_scores` takes raw captions; the others take words, as the scores of `captions` do.
"""

import importlib
import importlib.util
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from unimo_ds.errors import UnimoError
from unimo_ds.metrics.paired import Words, check_several, check_words
from unimo_ds.metrics.ptb import tokenize

Program = Literal["meteor", "spice"]

_SPICE_MODELS = "stanford-corenlp-3.6.0.jar"


def program_scores(
    programs: Sequence[Program], predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[dict[str, float], list[str]]:
    """The scores of the programs that run here, of raw captions, and for each of the others why it does not, in one line."""
    check_several(predictions, references)
    words = [tokenize(prediction) for prediction in predictions]
    reference_words = [[tokenize(reference) for reference in several] for several in references]
    scores: dict[str, float] = {}
    reasons: list[str] = []
    for program in programs:
        try:
            scores[program] = _score(program, words, reference_words)
        except UnimoError as error:
            reasons.append(str(error))
    return scores, reasons


def meteor(predictions: Sequence[Words], references: Sequence[Sequence[Words]]) -> float:
    """METEOR 1.5 of a corpus (Denkowski and Lavie, 2014). UnimoError where it cannot run: see `missing_for`."""
    return _score("meteor", predictions, references)


def spice(predictions: Sequence[Words], references: Sequence[Sequence[Words]]) -> float:
    """SPICE: mean F of scene graphs (Anderson et al., 2016). UnimoError where it cannot run: see `missing_for`."""
    return _score("spice", predictions, references)


def missing_for(program: Program) -> str | None:
    """What METEOR or SPICE lacks on this machine and how to get it, in one line; None where it can run."""
    package = importlib.util.find_spec("pycocoevalcap")
    if package is None or package.submodule_search_locations is None:
        return f"{program.upper()} needs the package pycocoevalcap: pip install 'unimo_ds[captions]'"
    if shutil.which("java") is None:
        return f"{program.upper()} needs Java, which is not on the PATH: on Debian, apt-get install default-jre-headless"
    if program == "spice" and not any(
        Path(folder, "spice/lib", _SPICE_MODELS).is_file() for folder in package.submodule_search_locations
    ):
        fetch = "from pycocoevalcap.spice.get_stanford_models import get_stanford_models as get; get()"
        return f'SPICE needs the models of Stanford CoreNLP 3.6.0, once from the network: python -c "{fetch}"'
    return None


def _score(program: Program, predictions: Sequence[Words], references: Sequence[Sequence[Words]]) -> float:
    check_words(predictions, references)
    if missing := missing_for(program):
        raise UnimoError(missing)
    scorer = getattr(importlib.import_module(f"pycocoevalcap.{program}.{program}"), program.capitalize())()
    try:
        score, _ = scorer.compute_score(
            {item: [" ".join(words) for words in several] for item, several in enumerate(references)},
            {item: [" ".join(words)] for item, words in enumerate(predictions)},
        )
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        raise UnimoError(f"{program.upper()}: its Java program failed: {error}") from error
    return float(score)
