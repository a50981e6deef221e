"""What the candidates of CMCL cost: positions of the packed stream, by kind, in the steps of a run.

A step's time is nearly proportional to its positions, so their shares are shares of the work.
"""

from collections.abc import Iterable
from pathlib import Path

from unimo_ds.config import RunConfig, load_config
from unimo_ds.data.corpus import Corpus, prepare_corpora
from unimo_ds.data.order import Mixture, order
from unimo_ds.data.plan import Planner

_STEPS = 20
_COUNTS = (
    ("positives", "rewritten positives, with the image"),
    ("step_negatives", "captions of the step, with the image"),
    ("sentence_negatives", "sentence level, with the image"),
    ("phrase_negatives", "phrase level, with the image"),
    ("word_negatives", "word level, with the image"),
    ("images", "retrieved images, alone"),
    ("texts", "retrieved texts, alone"),
)


def measure_candidates(recipe: Path) -> list[tuple[str, int, float]]:
    """For each kind: how many a pair gets at most, and the mean positions of a step that they take; the whole step is last."""
    config = load_config(recipe)
    corpora = prepare_corpora(config.data, config.data.corpora)
    whole = _positions(recipe, corpora)
    rows = []
    for key, title in _COUNTS:
        without = _positions(recipe, corpora, [f"objectives.candidates.{key}=0"])
        rows.append((title, int(getattr(config.objectives.candidates, key)), whole - without))
    off = [f"objectives.candidates.{key}=0" for key, _ in _COUNTS]
    bare = _positions(recipe, corpora, off)
    masked = _positions(recipe, corpora, [*off, "objectives.cmcl.weight=0", "evaluation=null"])
    rows.append(("the pair together, image and caption alone", 1, bare - masked))
    rows.append(("masked and generated views, texts, images", 1, masked))
    return [*rows, ("the whole step", 1, whole)]


def _positions(recipe: Path, corpora: list[Corpus], overrides: Iterable[str] = ()) -> float:
    config: RunConfig = load_config(recipe, overrides)
    planner = Planner(corpora, config.objectives, config.data.max_regions, config.seed)
    mixture = Mixture(tuple(section.per_step for section in config.data.corpora), tuple(map(len, corpora)))
    steps = [planner.items(order(config.seed, mixture, step)) for step in range(_STEPS)]
    return sum(item.positions for items in steps for item in items) / _STEPS


def candidates_table(rows: list[tuple[str, int, float]]) -> str:
    """As Markdown."""
    whole = rows[-1][2]
    lines = ["| part of a step | a pair, at most | positions | share |", "|---|--:|--:|--:|"]
    lines += [f"| {title} | {count} | {taken:,.0f} | {100 * taken / whole:.1f} % |" for title, count, taken in rows]
    return "\n".join(lines)
