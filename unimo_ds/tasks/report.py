"""The dev sets of a fine-tuned model as one HTML page: scores, and its best and worst answers.

The page needs neither network nor scripts; its words and looks are in `report.html`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unimo_ds.pages import open_template
from unimo_ds.tasks.task import Example, Judged
from unimo_ds.vision.drawing import draw_surest
from unimo_ds.vision.pictures import Picture, encode, fit, picture_of

_SHOWN = 12  # best answers of a set, and as many worst ones
_FIGURE = 640  # pixels of a picture's longer side; twice what is shown, for dense screens


@dataclass(frozen=True)
class ReportSet:
    """A set with what the model made of it.

    Attributes:
        name: in the configuration.
        scores: of the set; none where it has no labels.
        examples: all of them.
        judged: the answer to each; none where the set has no labels.
    """

    name: str
    scores: dict[str, float]
    examples: Sequence[Example]
    judged: Sequence[Judged]


@dataclass(frozen=True)
class _Shown:
    """An answer as the page has it; `note` says what is drawn, `problem` what is wrong with the picture."""

    example: Example
    judged: Judged
    picture: Picture | None
    note: str
    problem: str


def best_and_worst(judged: Sequence[Judged], most: int = _SHOWN) -> tuple[list[int], list[int]]:
    """Which answers are the best, best first, and which the worst, worst first; none is both."""
    order = sorted(range(len(judged)), key=lambda number: (-judged[number].worth, -(judged[number].belief or 0.0)))
    best = order[: min(most, (len(order) + 1) // 2)]
    worst = order[max(len(best), len(order) - most) :]
    return best, worst[::-1]


def render_report(
    title: str, checkpoint: Path, chosen_by: str, sets: Sequence[ReportSet], remarks: Sequence[str], images: Path | None
) -> str:
    """The page.

    Args:
        title: what was fine-tuned for what.
        checkpoint: whose answers they are.
        chosen_by: the score that the best checkpoint is chosen by.
        sets: with their answers.
        remarks: on what could not be scored.
        images: the folder that image keys are paths below; None: boxes are drawn on an empty canvas.

    Raises:
        UnimoError: jinja2 is missing.
    """
    shown = []
    for each in sets:
        best, worst = best_and_worst(each.judged)
        groups = [[_show(each.examples[number], each.judged[number], images) for number in part] for part in (best, worst)]
        shown.append((each, list(zip(("Best", "Worst"), groups, strict=True))))
    return str(
        open_template(Path(__file__).with_name("report.html")).render(
            title=title,
            checkpoint=checkpoint,
            chosen_by=chosen_by,
            metrics=list(dict.fromkeys(metric for each in sets for metric in each.scores)),
            shown=shown,
            remarks=remarks,
            without_pictures=images is None and any(example.image for each in sets for example in each.examples),
        )
    )


def _show(example: Example, judged: Judged, images: Path | None) -> _Shown:
    if example.store is None or example.image is None:
        return _Shown(example, judged, None, "", "")
    regions = example.store.get(example.image)
    image, problem = picture_of(regions, example.image, images)
    # Scaled before drawing: then boxes and letters are sharp.
    drawn, note = draw_surest(fit(image, _FIGURE), regions, example.store.class_names, example.store.attribute_names)
    return _Shown(example, judged, encode(example.image, drawn), note, problem if images is not None else "")
