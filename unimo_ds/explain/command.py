"""`unimo-ds explain`: opens a run, reads a step, writes it as text and as a page."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unimo_ds.engine.checkpoint_folder import checkpoint_name, damage_of
from unimo_ds.errors import CheckpointError, UnimoError
from unimo_ds.explain.page import render_page
from unimo_ds.explain.run import OpenedRun, open_run
from unimo_ds.explain.scores import Scorer, nearest_checkpoint
from unimo_ds.explain.step import Sample, SampleReader, choose_samples, summarise
from unimo_ds.explain.terminal import sample_lines, summary_lines
from unimo_ds.progress import track
from unimo_ds.tokenizer import Tokenizer
from unimo_ds.vision.pictures import check_folder

_SHOWN_PROBLEMS = 5


@dataclass(frozen=True)
class Explanation:
    """A step in words, and where its page is."""

    text: str
    page: Path


def explain_step(
    folder: Path,
    step: int,
    samples: int = 24,
    images: Path | None = None,
    checkpoint: Path | None = None,
    ranks: int | None = None,
    width: int = 100,
) -> Explanation:
    """Says what was in a step of a pre-training run, and writes it as `explain/step-*.html` in the run folder.

    Args:
        folder: the run folder.
        step: counted from 1, as in the log.
        samples: how many samples are shown, at most.
        images: the folder that image keys are paths below; None: boxes are drawn on an empty canvas.
        checkpoint: scores the candidates; None: the newest whole one up to the step, else the first after it.
        ranks: over how many ranks the step is shared; None: as in training.
        width: of the terminal, in letters.

    Raises:
        ConfigError: no run, no such step, or no such folder of pictures.
        DataError: the data of the run is gone, or is not what it was.
        CheckpointError: `checkpoint` cannot be used.
    """
    check_folder(images)
    run = open_run(folder, step, ranks)
    notes = run.notes
    scorer, scored = _scorer(run, checkpoint)
    summary = summarise(run)
    notes += [f"left out in training: {problem}" for problem in summary.problems[:_SHOWN_PROBLEMS]]
    if len(summary.problems) > _SHOWN_PROBLEMS:
        notes.append(f"left out in training: {len(summary.problems) - _SHOWN_PROBLEMS:,} more")
    chosen = choose_samples(run.items, [corpus.section.kind for corpus in run.corpora], samples)
    reader = SampleReader(run, scorer, _class_names(run))
    read = [reader.read(item) for item in track(chosen, "reading samples", len(chosen), "samples")]
    shown = [sample for sample in read if sample is not None]
    if len(shown) < len(read):
        notes.append(f"{len(read) - len(shown)} of the chosen samples gave the model nothing to learn from; they are not shown")
    scored += _winning(shown) if scorer is not None else ""
    title = f"{folder}, step {step:,} of {run.config.training.steps:,}"
    page = folder / "explain" / f"{checkpoint_name(step)}.html"
    content = render_page(title, folder, summary, scored, notes, shown, images)
    try:
        page.parent.mkdir(exist_ok=True)
        page.write_text(content, encoding="utf-8")
    except OSError as error:
        raise UnimoError(f"{page}: cannot be written: {error.strerror}") from error
    lines = summary_lines(title, summary, scored, notes, width)
    for number, sample in enumerate(shown, 1):
        lines += ["", *sample_lines(number, sample, width)]
    lines += ["", _ending(len(run.items) - len(shown), page)]
    return Explanation("\n".join(lines), page)


def _winning(samples: Sequence[Sample]) -> str:
    """How often false captions win, of the samples shown."""
    negatives = [candidate for sample in samples for candidate in sample.candidates if not candidate.positive]
    winning = sum(candidate.beats for candidate in negatives)
    return f"; {winning:,} of the {len(negatives):,} negatives shown score no lower than the true caption (▲)"


def _ending(hidden: int, page: Path) -> str:
    rest = f"{hidden:,} more samples of this step are not shown (--samples); " if hidden else ""
    return f"{rest}with pictures: {page}"


def _scorer(run: OpenedRun, checkpoint: Path | None) -> tuple[Scorer | None, str]:
    """What scores the candidates, and a sentence about it."""
    objectives = run.config.objectives
    if not objectives.joint:
        return None, "left out, because the run trains neither CMCL nor matching"
    chosen = checkpoint or nearest_checkpoint(run.folder / "checkpoints", run.step, run.notes)
    if chosen is None:
        return None, "left out, because the run has no whole checkpoint"
    damage = damage_of(chosen) if checkpoint else None
    if damage is not None:
        raise CheckpointError(f"--checkpoint {chosen}: {damage}; expected a checkpoint folder, like checkpoints/step-00000100")
    try:
        scorer = Scorer(chosen, objectives.cmcl)
    except CheckpointError as error:
        if checkpoint:
            raise
        return None, f"left out: {error}"
    _expect_same_inputs(run, scorer)
    when = (
        "the newest one up to this step" if scorer.step <= run.step else "the first one after this step: there is none before"
    )
    among = "those encoded with the image" if objectives.cmcl.retrieved_apart else "all candidates"
    what = f"cosine d, and share of exp(d/t) among {among}, t = {scorer.temperature:.3f},"
    what = what if objectives.cmcl.weight else "P(true)"
    return scorer, f"{what} at {scorer.checkpoint.name}, after {scorer.step:,} updates ({'as chosen' if checkpoint else when})"


def _expect_same_inputs(run: OpenedRun, scorer: Scorer) -> None:
    """A checkpoint of another tokenizer or detector would score other words and other regions than these.

    Raises:
        CheckpointError, StoreError: it is of another one.
    """
    if Tokenizer(scorer.checkpoint / "tokenizer").fingerprint != run.tokenizer.fingerprint:
        raise CheckpointError(f"{scorer.checkpoint}: was trained with another tokenizer than {run.config.data.tokenizer}")
    for corpus in run.corpora:
        if corpus.store is not None and scorer.detector:
            corpus.store.expect_detector(scorer.detector, f"the regions which {scorer.checkpoint} was trained on")


def _class_names(run: OpenedRun) -> Sequence[str]:
    """Of the run's detector, as its store has them; all stores of a run are one detector's."""
    return next((corpus.store.class_names for corpus in run.corpora if corpus.store is not None), ())
