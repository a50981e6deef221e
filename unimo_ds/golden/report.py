"""`verify`: reads a reference image by image, compares it with a store, and reports."""

import shlex
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unimo_ds.data.store import RegionStore, describe_difference
from unimo_ds.errors import DataError
from unimo_ds.golden.comparison import Comparison, compare
from unimo_ds.golden.diagnosis import Example, Finding, diagnose, labels_of, length_ratio
from unimo_ds.golden.keys import EXACT, KeyFinder
from unimo_ds.progress import Progress
from unimo_ds.region_layouts import Damage, ReadOptions, open_layout
from unimo_ds.regions import Regions

_EXAMPLES = 24  # images kept for the diagnosis, of those that differ and of the first ones
_WORST = 3
_LISTED = 20  # images with a line of their own; keys that are named
_NAMED = 5


@dataclass(frozen=True)
class Limits:
    """What counts as the same.

    Attributes:
        iou: at which two boxes are matched.
        cosine: that features of matched boxes must reach, all of them.
        share: of the boxes of both sides, so many must be matched.
        labels: of the matched boxes, so many must have the same class, and the same attribute.
        length: by how much features may be longer or shorter (median).
    """

    iou: float = 0.99
    cosine: float = 0.999
    share: float = 0.99
    labels: float = 0.95
    length: float = 0.01


@dataclass(frozen=True)
class Report:
    """The outcome.

    Attributes:
        text: for the reader.
        same: the store is what the reference says.
        matched: share of the boxes of both sides that are matched.
        comparisons: one an image that both have.
        missing: images of the reference that the store lacks.
        findings: what explains the differences.
        worst: keys of the images that differ most, at most three; none where all agree.
    """

    text: str
    same: bool
    matched: float
    comparisons: tuple[Comparison, ...]
    missing: tuple[str, ...]
    findings: tuple[Finding, ...]
    worst: tuple[str, ...]


def check_reference(golden: Path, layout: str | None = None) -> None:
    """That there is something to compare with, before hours are spent on the store.

    Raises:
        StoreError: it is a store that is not finished.
        DataError: no such file, or of no known layout.
    """
    if _is_store(golden):
        RegionStore(golden)
    else:
        open_layout(golden, layout)


def _is_store(golden: Path) -> bool:
    return any(golden.glob("shard-*")) or (golden / "manifest.json").exists()


def verify(
    store: Path,
    golden: Path,
    layout: str | None = None,
    wanted: Collection[str] | None = None,
    limits: Limits | None = None,
    show_progress: bool = True,
) -> Report:
    """Compares a store with a reference.

    Args:
        store: the store's folder.
        golden: the reference: another store, or published features in any layout that `region_layouts` reads.
        layout: of the reference; None: told from its content.
        wanted: keys of the reference that the store should have; None: all.

    Raises:
        StoreError: `store` is no finished store, or the reference is one that is not finished; a record is damaged.
        DataError: the reference cannot be read, or holds none of the wanted images.
    """
    limits = limits or Limits()
    ours = RegionStore(store)
    comparisons: list[Comparison] = []
    missing: list[str] = []
    damages: list[Damage] = []
    first: list[Example] = []
    differing: list[Example] = []
    finder = KeyFinder(ours)
    theirs = RegionStore(golden) if _is_store(Path(golden)) else None
    # Boxes are compared relative to their image, so that a file without sizes can be compared as well.
    options = ReadOptions(nominal_canvas=True, class_names=ours.class_names, attribute_names=ours.attribute_names)
    stream = _stored(theirs) if theirs is not None else open_layout(Path(golden), layout, options).read(damages.append)
    with Progress("comparing", len(wanted) if wanted is not None else None, "images", show_progress) as progress:
        for golden_key, regions in stream:
            if wanted is not None and golden_key not in wanted:
                continue
            key = finder.find(golden_key)
            if key is None:
                missing.append(golden_key)
                continue
            found = ours.get(key)
            comparison = compare(key, golden_key, found, regions, limits.iou)
            comparisons.append(comparison)
            kept = first if _passes(comparison, limits) else differing
            if len(kept) < _EXAMPLES:
                kept.append(Example(comparison, found, regions))
            progress.advance()
    unread = sorted(set(wanted or ()) - {one.golden_key for one in comparisons} - set(missing))
    if not comparisons and not missing and not damages:
        raise DataError(f"{golden}: holds none of the images to compare; expected at least one")
    findings = _findings(comparisons, differing, first, limits)
    findings += _key_findings(finder, ours, comparisons, missing)
    worst = sorted((one for one in comparisons if not _passes(one, limits)), key=_quality)[:_WORST]
    matched = _matched(comparisons)
    complete = bool(comparisons) and not missing and not damages and not unread
    same = complete and not any(not finding.harmless for finding in findings) and _reaches(comparisons, matched, limits)
    lines = [
        f"{store} against {golden}: {'the same' if same else 'NOT the same'}",
        *_presence(ours, finder, comparisons, [*missing, *unread], damages),
        *_sum_lines(comparisons, matched, limits),
        *_diagnosis_lines(findings),
        *_detector_lines(ours, theirs),
        *_worst_lines(store, worst),
        *_image_lines(comparisons, limits),
    ]
    keys = tuple(one.key for one in worst)
    return Report("\n".join(lines), same, matched, tuple(comparisons), (*missing, *unread), tuple(findings), keys)


def _stored(store: RegionStore) -> Iterator[tuple[str, Regions]]:
    for key in store.keys():
        yield key, store.get(key)


def _findings(
    comparisons: Sequence[Comparison], differing: Sequence[Example], first: Sequence[Example], limits: Limits
) -> list[Finding]:
    """The differing images are looked at if there are enough of them to show a pattern; a few only name themselves."""
    many = len(differing) >= min(_EXAMPLES, len(comparisons)) / 2
    return diagnose(comparisons, differing if many else [*differing, *first], limits.share, limits.cosine)


def _passes(comparison: Comparison, limits: Limits) -> bool:
    labels = [found.agreement for found in (comparison.classes, comparison.attributes) if found is not None]
    return (
        comparison.share >= limits.share
        and bool((comparison.cosines_M >= limits.cosine).all())
        and (len(comparison.cosines_M) == comparison.matched)
        and all(agreement is None or agreement >= limits.labels for agreement in labels)
    )


def _reaches(comparisons: Sequence[Comparison], matched: float, limits: Limits) -> bool:
    """All that the limits ask for, over all images."""
    labels = [found.agreement for what in ("class", "attribute") if (found := labels_of(comparisons, what)) is not None]
    ratio = length_ratio(comparisons)
    return (
        matched >= limits.share
        and all((one.cosines_M >= limits.cosine).all() and len(one.cosines_M) == one.matched for one in comparisons)
        and (ratio is None or abs(ratio - 1) <= limits.length)
        and all(agreement is None or agreement >= limits.labels for agreement in labels)
    )


def _quality(comparison: Comparison) -> tuple[float, float]:
    return comparison.share, float(comparison.cosines_M.min(initial=1.0))


def _matched(comparisons: Sequence[Comparison]) -> float:
    boxes = sum(one.ours + one.theirs for one in comparisons)
    return 2 * sum(one.matched for one in comparisons) / boxes if boxes else float(bool(comparisons))


def _key_findings(
    finder: KeyFinder, store: RegionStore, comparisons: Sequence[Comparison], missing: Sequence[str]
) -> list[Finding]:
    by_rule = [f"{count:,} by {rule}" for rule, count in finder.used.items() if rule != EXACT]
    findings = []
    if by_rule:
        example = next(one for one in comparisons if one.key != one.golden_key)
        names = f"{example.golden_key!r} in the reference is {example.key!r} here"
        findings.append(Finding(f"keys differ ({names}); images were matched: {', '.join(by_rule)}", harmless=True))
    if missing and not comparisons:
        ours = next(store.keys(), "")
        findings.append(
            Finding(f"no key of the reference is here, in any spelling: they look like {missing[0]!r} there and {ours!r} here")
        )
    return findings


def _presence(
    store: RegionStore,
    finder: KeyFinder,
    comparisons: Sequence[Comparison],
    missing: Sequence[str],
    damages: Sequence[Damage],
) -> list[str]:
    twice = [key for key, count in Counter(one.key for one in comparisons).items() if count > 1]
    line = f"images: {len(comparisons):,} compared, {finder.used[EXACT]:,} of them by the same key"
    line += f"; {len(store) - len({one.key for one in comparisons}):,} more are in the store alone"
    lines = [line]
    if missing:
        lines.append(f"  missing in the store: {len(missing):,} ({_some(missing)})")
    if twice:
        lines.append(f"  several images of the reference are one here: {_some(twice)}")
    if damages:
        shown = "; ".join(f"{damage.where}: {damage.reason}" for damage in damages[:2])
        lines.append(f"  cannot be read in the reference: {len(damages):,} ({shown})")
    return lines


def _some(keys: Sequence[str]) -> str:
    return ", ".join(repr(key) for key in keys[:_NAMED]) + (", ..." if len(keys) > _NAMED else "")


def _sum_lines(comparisons: Sequence[Comparison], matched: float, limits: Limits) -> list[str]:
    if not comparisons:
        return []
    ours, theirs, pairs = (sum(getattr(one, name) for one in comparisons) for name in ("ours", "theirs", "matched"))
    alone = f"{ours - pairs:,} only here, {theirs - pairs:,} only in the reference"
    lines = [f"boxes: {pairs:,} matched at IoU >= {limits.iou} ({_percent(matched)} of both sides); {alone}"]
    if pairs:
        weights = [one.matched for one in comparisons]
        x, y, width, height = np.average([one.shift_4 for one in comparisons], axis=0, weights=weights)
        shift = f"x {x:+.3f}, y {y:+.3f}, width {width:+.3f}, height {height:+.3f} pixels"
        lines.append(f"  mean difference of matched boxes, here less reference: {shift}")
    cosines_M = np.concatenate([one.cosines_M for one in comparisons])
    if len(cosines_M):
        least, one_percent, middle = np.quantile(cosines_M, [0, 0.01, 0.5])
        below = int((cosines_M < limits.cosine).sum())
        spread = f"least {least:.5f}, 1 % quantile {one_percent:.5f}, median {middle:.5f}"
        lines.append(f"features: cosine {spread}; {below:,} of {len(cosines_M):,} below {limits.cosine}")
        lines.append(f"  length, here by reference: {length_ratio(comparisons):.4f} (median)")
    for what, plural in (("class", "classes"), ("attribute", "attributes")):
        found = labels_of(comparisons, what)
        if found is None or found.agreement is None:
            lines.append(f"{plural}: not compared, one side has none")
        else:
            lines.append(f"{plural}: {_percent(found.agreement)} the same; probabilities {found.off:.4f} apart on average")
    return lines


def _percent(share: float) -> str:
    """Never rounded up to 100 %."""
    return "100 %" if share == 1 else f"{min(share, 0.9999):.2%}".replace("%", " %")


def _diagnosis_lines(findings: Sequence[Finding]) -> list[str]:
    return ["diagnosis:", *(f"  - {finding.text}" for finding in findings)] if findings else []


def _detector_lines(store: RegionStore, golden: RegionStore | None) -> list[str]:
    if golden is None:
        return []
    if golden.detector == store.detector:
        return ["detector: the same identity"]
    return [f"detector: another identity; {describe_difference(golden.detector, store.detector)}"]


def _worst_lines(store: Path, worst: Sequence[Comparison]) -> list[str]:
    if not worst:
        return []
    lines = ["worst images:"]
    for one in worst:
        lines.append(f"  {_describe(one)}")
        lines.append(
            f"    unimo-ds regions show {shlex.quote(str(store))} {shlex.quote(one.key)} --images FOLDER --out worst.html"
        )
    return lines


def _describe(one: Comparison) -> str:
    cosine = f", least cosine {one.cosines_M.min():.4f}" if len(one.cosines_M) else ""
    labels = [
        f", {found.agreement:.0%} of {plural} the same"
        for found, plural in ((one.classes, "classes"), (one.attributes, "attributes"))
        if found is not None and found.agreement is not None and found.agreement < 1
    ]
    x, y, width, height = one.shift_4
    shift = f", shift x {x:+.2f} y {y:+.2f} w {width:+.2f} h {height:+.2f}" if np.abs(one.shift_4).max() >= 0.005 else ""
    return f"{one.key}: {one.matched} boxes matched of {one.ours} here and {one.theirs} there{cosine}{''.join(labels)}{shift}"


def _image_lines(comparisons: Sequence[Comparison], limits: Limits) -> list[str]:
    """All images if they are few, else those that do not pass."""
    chosen = [one for one in comparisons if len(comparisons) <= _LISTED or not _passes(one, limits)]
    if not chosen:
        return []
    lines = ["image by image:" if len(chosen) == len(comparisons) else f"images that differ: {len(chosen):,}"]
    lines += [f"  {_describe(one)}" for one in chosen[:_LISTED]]
    return lines + ([f"  ... and {len(chosen) - _LISTED:,} more"] if len(chosen) > _LISTED else [])
