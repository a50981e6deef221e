"""How many rewrites of the drawn world's captions are what they claim: positives true of the picture, hard negatives false.

The pictures' truth is known (`demo.scene`), and every rewrite is read and judged against it (`demo.truth`), by code that shares
nothing with the rewriting. A rewrite that the judge cannot read counts as wrong, so a precision here is a lower bound.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from unimo_ds.demo.scene import SPLITS, Scene, compose
from unimo_ds.demo.truth import Verdict, judge
from unimo_ds.errors import DataError
from unimo_ds.progress import Progress
from unimo_ds.rewrites import LEVELS, Rewrite, RewrittenCaption, read_rewrites

TARGET = 0.98
"""The least precision that is accepted, of positives and of negatives each."""
_WORST = 20

_NOT_KNOWN = Verdict(None, "what the picture shows is not known")

Side = Literal["positive", "negative"]


@dataclass(frozen=True, slots=True)
class Judged:
    """A rewrite of `caption` with what it is of the picture."""

    image: str
    caption: str
    side: Side
    rewrite: Rewrite
    verdict: Verdict

    @property
    def right(self) -> bool:
        return self.verdict.true is (self.side == "positive")

    @property
    def change(self) -> str:
        """The kind of change: the first word of the reason; of another image's caption, of what makes it false."""
        reason = re.sub(r"^caption of [^,]*, ", "", self.rewrite.reason)
        return re.split(r"[\s:,]", reason, maxsplit=1)[0]


def judge_rewrites(rewrites: Path, world: Path | None, captions: int, seed: int = 1) -> list[Judged]:
    """Judges the rewrites of a folder (or file) of captions of the drawn world.

    Args:
        rewrites: what `tools/rewrite_captions.py` wrote.
        world: folder of the world, whose `world.json` names its seed; None: of other images, whose truth is not known.
        captions: a sample of so many captions, at most, with all their rewrites.
        seed: of the sample.

    Raises:
        DataError: a file is missing, cannot be read, or names a picture that the world has not.
    """
    world_seed = None if world is None else _world_seed(world)
    rejected: list[str] = []
    chosen = _sample(read_rewrites(rewrites, rejected.append), captions, np.random.default_rng(seed))
    if rejected:
        raise DataError(f"{rejected[0]} ({len(rejected)} such lines)")
    judged: list[Judged] = []
    with Progress("judging rewrites", len(chosen), "captions") as progress:
        for caption in chosen:
            judged += _judge(caption, None if world_seed is None else _scene(world_seed, caption.image))
            progress.advance()
    if not judged:
        raise DataError(f"{rewrites}: holds no rewrite")
    return judged


def _sample(captions: Iterable[RewrittenCaption], most: int, rng: np.random.Generator) -> list[RewrittenCaption]:
    """`most` of the captions, each as likely as any other; no more than those are held in memory."""
    chosen: list[RewrittenCaption] = []
    for number, caption in enumerate(captions):
        if number < most:
            chosen.append(caption)
        elif (place := int(rng.integers(number + 1))) < most:
            chosen[place] = caption
    return chosen


def _world_seed(world: Path) -> int:
    manifest = world / "world.json"
    try:
        return int(json.loads(manifest.read_text(encoding="utf-8"))["config"]["seed"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{manifest}: cannot be read ({error!r}). Draw the world first: tools/draw_world.py") from error


def _scene(seed: int, image: str) -> Scene:
    name = re.fullmatch(r"(\w+)/\1_(\d{6})\.jpg", image)
    if name is None or name[1] not in SPLITS:
        raise DataError(f"{image!r} is no picture of the drawn world, whose names are like 'train/train_000123.jpg'")
    return compose(seed, name[1], int(name[2]))


def _judge(caption: RewrittenCaption, scene: Scene | None) -> Iterable[Judged]:
    sides: tuple[tuple[Side, Sequence[Rewrite]], ...] = (("positive", caption.positives), ("negative", caption.negatives))
    for side, rewrites in sides:
        for rewrite in rewrites:
            verdict = judge(rewrite.text, scene) if scene else _NOT_KNOWN
            yield Judged(caption.image, caption.text, side, rewrite, verdict)


# --- what came out ---------------------------------------------------------------------------------------------------


def precision(judged: Iterable[Judged]) -> float:
    """The share that is right; 1 where there is nothing to judge."""
    right = [item.right for item in judged]
    return sum(right) / len(right) if right else 1.0


def good_enough(judged: Sequence[Judged]) -> bool:
    """Whether both sides reach `TARGET`."""
    return all(precision(item for item in judged if item.side == side) >= TARGET for side in ("positive", "negative"))


def table(judged: Sequence[Judged]) -> str:
    """Precision by side, level and kind of change, as Markdown."""
    lines = ["| side | level | change | judged | wrong | not read | precision |", "|---|---|---|--:|--:|--:|--:|"]
    for side in ("positive", "negative"):
        of_side = [item for item in judged if item.side == side]
        if not of_side:
            continue
        lines.append(_row(f"**{side}**", "**all**", "", of_side))
        for level in LEVELS:
            of_level = [item for item in of_side if item.rewrite.level == level]
            changes = Counter(item.change for item in of_level)
            if len(changes) > 1:
                lines.append(_row(side, level, "all", of_level))
            for change, _ in changes.most_common():
                lines.append(_row(side, level, change, [item for item in of_level if item.change == change]))
    return "\n".join(lines)


def _row(side: str, level: str, change: str, judged: Sequence[Judged]) -> str:
    unread = sum(item.verdict.true is None for item in judged)
    wrong = sum(not item.right for item in judged) - unread
    return f"| {side} | {level} | {change} | {len(judged):,} | {wrong:,} | {unread:,} | {_percent(precision(judged))} |"


def _percent(share: float) -> str:
    """Rounded down: only what is without a mistake is 100 %."""
    return f"{math.floor(share * 10_000) / 100:.2f} %"


def worst(judged: Sequence[Judged]) -> str:
    """The twenty mistakes that were made most often, each with an example."""
    lines: list[str] = []
    offences = Counter(_offence(item) for item in judged if not item.right)
    for offence, count in offences.most_common(_WORST):
        item = next(item for item in judged if not item.right and _offence(item) == offence)
        lines.append(
            f"{count:>7,} x  {item.side}, {item.rewrite.level}, {item.rewrite.reason}\n"
            f"           {item.image}: {item.caption}\n"
            f"        -> {item.rewrite.text}\n"
            f"           judged {_WORDS[item.verdict.true]}: {item.verdict.reason}"
        )
    return "\n".join(lines)


_WORDS = {True: "true", False: "false", None: "not read"}


def _offence(item: Judged) -> tuple[str, ...]:
    """What makes two mistakes the same: side, level and the change without the picture that it came from."""
    if item.side == "positive":
        return (item.side, item.verdict.reason.split(":")[-1])
    return (item.side, item.rewrite.level, re.sub(r"^caption of [^,]*, ", "", item.rewrite.reason))


def sample_table(judged: Sequence[Judged], rows: int, seed: int = 1) -> str:
    """`rows` rewrites as a Markdown table: a quarter of them positives, and a quarter negatives of each level."""
    rng = np.random.default_rng(seed)
    groups = [[item for item in judged if item.side == "positive"]]
    groups += [[item for item in judged if item.side == "negative" and item.rewrite.level == level] for level in LEVELS]
    lines = ["| caption | rewrite | level | reason | of the picture |", "|---|---|---|---|---|"]
    for group in groups:
        wanted = min(len(group), rows // len(groups))
        for place in sorted(map(int, rng.choice(len(group), wanted, replace=False))) if group else ():
            item = group[place]
            verdict = f"{_WORDS[item.verdict.true]}{'' if item.right else ' (wrong)'}" if item.verdict is not _NOT_KNOWN else ""
            level = f"{item.side}, {item.rewrite.level}"
            lines.append(f"| {item.caption} | {_in_bold(item.rewrite)} | {level} | {item.rewrite.reason} | {verdict} |")
    return "\n".join(lines)


def _in_bold(rewrite: Rewrite) -> str:
    if rewrite.changed is None:
        return rewrite.text
    start, end = rewrite.changed
    return f"{rewrite.text[:start]}**{rewrite.text[start:end]}**{rewrite.text[end:]}"


def report(judged: Sequence[Judged], rows: int) -> str:
    """All of it as text; `rows` rewrites are shown, none where it is 0."""
    known = any(item.verdict is not _NOT_KNOWN for item in judged)
    parts = [table(judged), worst(judged)] if known else []
    parts += [sample_table(judged, rows)] if rows else []
    return "\n\n".join(part for part in parts if part)
