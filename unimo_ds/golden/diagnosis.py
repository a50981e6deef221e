"""What differs between a store and a reference, in words: each known way to go wrong leaves its own pattern.

Shape suffixes: R regions of the store, P regions of the reference, M pairs, F feature width.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unimo_ds.golden.comparison import Comparison, Floats, Labels, Pairs, cosines, match, overlaps, theirs_on_our_image
from unimo_ds.regions import Regions

_MOSTLY = 0.9  # a pattern explains the difference when it holds for so many boxes
_LOOSE = 0.5  # IoU at which boxes are taken for the same object that was placed otherwise
_FITTED = 0.97  # IoU after a scale was fitted from a few numbers
_SAME_FEATURE = 0.999
_LENGTH = 0.01  # by which the length of features may differ
_ALIKE = 0.95  # of classes, and of attributes


@dataclass(frozen=True)
class Example:
    """An image with both sides' regions, kept for a closer look."""

    comparison: Comparison
    ours: Regions
    theirs: Regions


@dataclass(frozen=True)
class Finding:
    """One sentence of the diagnosis; `harmless` ones do not make a store another one than the reference."""

    text: str
    harmless: bool = False


def diagnose(
    comparisons: Sequence[Comparison], examples: Sequence[Example], share: float, least_cosine: float
) -> list[Finding]:
    """What explains the differences.

    Args:
        comparisons: of all images.
        examples: some of them, the differing ones if there are.
        share: of boxes that must match.
        least_cosine: of matched features.
    """
    if not comparisons:
        return []
    boxes_match = _share(comparisons) >= share
    findings = [_sizes(examples)]
    if not boxes_match:
        findings.append(_boxes(comparisons, examples))
    elif shift := _shift(examples):
        findings.append(shift)
    if any(example.ours.features_RF.shape[1] != example.theirs.features_RF.shape[1] for example in examples):
        findings.append(_widths(examples))
    elif _share(comparisons) >= _LOOSE:  # of fewer matched boxes, chance matches would be described
        findings.append(_features(comparisons, examples, least_cosine) or _lengths(comparisons))
    for what, missing in (("class", "the background is first on one side and last on the other"), ("attribute", "`none` is")):
        findings.append(_labels(comparisons, what, missing))
    findings.append(_order(comparisons))
    return [finding for finding in findings if finding is not None]


def _share(comparisons: Sequence[Comparison]) -> float:
    boxes = sum(one.ours + one.theirs for one in comparisons)
    return 2 * sum(one.matched for one in comparisons) / boxes if boxes else 1.0


def _sizes(examples: Sequence[Example]) -> Finding | None:
    """Image sizes that differ."""
    others = [example for example in examples if not example.comparison.same_size]
    if not others:
        return None
    ours, theirs = others[0].ours, others[0].theirs
    sizes = f"{others[0].comparison.key}: {ours.width}x{ours.height} here, {theirs.width}x{theirs.height} there"
    turned = all((one.ours.width, one.ours.height) == (one.theirs.height, one.theirs.width) for one in others)
    if turned:
        return Finding(f"width and height of the images are exchanged ({sizes}): columns in another order")
    return Finding(f"the images have other sizes ({sizes}); boxes were compared relative to them", harmless=True)


# ---- boxes -------------------------------------------------------------------------------------------------------------

Change = Callable[[Example], Floats]


def _y_first(example: Example) -> Floats:
    return theirs_on_our_image(example.ours, example.theirs)[:, [1, 0, 3, 2]]


def _corner_and_sides(example: Example) -> Floats:
    boxes = theirs_on_our_image(example.ours, example.theirs)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def _mirrored(example: Example) -> Floats:
    boxes, width = theirs_on_our_image(example.ours, example.theirs), example.ours.width
    return np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)


def _relative(example: Example) -> Floats:
    boxes_P4: Floats = _as_written(example) * np.array([example.ours.width, example.ours.height] * 2)
    return boxes_P4


def _as_written(example: Example) -> Floats:
    return example.theirs.boxes_R4.astype(np.float64)


_CHANGES: tuple[tuple[Change, str], ...] = (
    (_y_first, "the reference's boxes are y1, x1, y2, x2: the axes are exchanged"),
    (_corner_and_sides, "the reference's boxes are x, y, width, height, not two corners"),
    (_mirrored, "the boxes agree when the image is mirrored"),
    (_relative, "the reference's boxes are shares of the image (0..1), not pixels"),
    (_as_written, "the reference's boxes are in pixels of our image, though it says that the image has another size"),
)


def _boxes(comparisons: Sequence[Comparison], examples: Sequence[Example]) -> Finding:
    """Why boxes do not match."""
    unchanged = _share(comparisons)
    for change, text in _CHANGES:
        if _share_after(examples, change) >= max(_MOSTLY, unchanged + 0.02):
            return Finding(text)
    if found := _scaled(examples) or _shift(examples):
        return found
    fewer = sum(min(one.ours, one.theirs) for one in comparisons)
    if fewer and sum(one.matched for one in comparisons) >= _MOSTLY * fewer:
        return _numbers(comparisons) if _differ_in_number(comparisons) else _few(comparisons)
    if _share_of_features(examples) >= _MOSTLY:
        return Finding(
            "the same features are on both sides, with other boxes: the boxes are of another stage (proposals or regressed), "
            "or belong to another image (a tool that uses an image's boxes again for the next one)"
        )
    if not fewer:
        return Finding("one side has no boxes at all")
    near = [_pairs(example, _LOOSE) for example in examples]
    loose = sum(len(ours) for ours, _ in near) / max(sum(min(len(e.ours), len(e.theirs)) for e in examples), 1)
    if loose >= _MOSTLY:
        return Finding(
            f"the same objects are found ({loose:.0%} at IoU {_LOOSE}), their boxes placed a little otherwise: resampling, "
            "image scale, or the boxes' regression (its weights, or proposals in place of regressed boxes)"
        )
    return Finding(
        f"most boxes have no counterpart (even at IoU {_LOOSE} only {loose:.0%}): other weights, another image under the same "
        "key, other colour order or means of the input, or another choice of boxes (thresholds, NMS)"
    )


def _share_after(examples: Sequence[Example], change: Change, least: float = 0.99) -> float:
    """Share of boxes that match when the reference's are changed so."""
    matched = sum(len(match(overlaps(e.ours.boxes_R4, change(e)), least)[0]) for e in examples)
    boxes = sum(len(e.ours) + len(e.theirs) for e in examples)
    return 2 * matched / boxes if boxes else 0.0


def _pairs(example: Example, least: float) -> Pairs:
    boxes_P4 = theirs_on_our_image(example.ours, example.theirs)
    return match(overlaps(example.ours.boxes_R4, boxes_P4), least, _likeness(example))


def _likeness(example: Example) -> Floats | None:
    ours_RF, theirs_PF = example.ours.features_RF, example.theirs.features_RF
    return cosines(ours_RF, theirs_PF) if ours_RF.shape[1] == theirs_PF.shape[1] else None


def _scaled(examples: Sequence[Example]) -> Finding | None:
    """Whether one factor an image, across and down, makes the reference's boxes ours."""
    scales: list[Floats] = []
    sides: list[float] = []  # of the images, in pixels of the reference's boxes
    matched = boxes = 0
    for example in examples:
        boxes += len(example.ours) + len(example.theirs)
        if not (len(example.ours) and len(example.theirs)):
            continue
        theirs_P4 = theirs_on_our_image(example.ours, example.theirs)
        tries = [(scale, _matched_when(example, theirs_P4 * np.tile(scale, 2))) for scale in _scales(example, theirs_P4)]
        scale, count = max(tries, key=lambda pair: pair[1])
        scales.append(scale)
        sides.append(min(example.ours.width, example.ours.height) / float(scale[0]))
        matched += count
    if not boxes or 2 * matched / boxes < _MOSTLY:
        return None
    scale_2 = np.median(scales, axis=0)
    if (np.abs(scale_2 - 1) < 0.01).all():
        return None
    # A resized image's side is the same for all images, where the factor is not.
    same_side = np.std(sides) < 0.02 * np.mean(sides) and np.ptp([scale[0] for scale in scales]) > 0.02
    resized = f"; they are in pixels of images resized to a short side of {np.mean(sides):.0f}" if same_side else ""
    return Finding(
        f"all boxes are scaled: the reference's times {scale_2[0]:.3f} across and {scale_2[1]:.3f} down are ours{resized}. "
        "One side kept the scale of the resized image, or took it for another image size"
    )


def _scales(example: Example, theirs_P4: Floats) -> Iterator[Floats]:
    """Factors that may turn the reference's boxes into ours: from boxes with the same feature, and from the outermost sides."""
    likeness_RP = _likeness(example)
    if likeness_RP is not None:
        ours, theirs = match(likeness_RP, _SAME_FEATURE)
        ends = theirs_P4[theirs, 2:]
        if len(ours) and (ends > 0).all():
            yield np.median(example.ours.boxes_R4[ours, 2:] / ends, axis=0)
    for measure in (np.max, np.median):
        theirs_2 = measure(theirs_P4[:, 2:], axis=0)
        if (theirs_2 > 0).all():
            yield np.asarray(measure(example.ours.boxes_R4[:, 2:], axis=0) / theirs_2, np.float64)
    yield np.ones(2)


def _matched_when(example: Example, boxes_P4: Floats) -> int:
    return len(match(overlaps(example.ours.boxes_R4, boxes_P4), _FITTED)[0])


def _shift(examples: Sequence[Example]) -> Finding | None:
    """Whether all boxes differ by the same part of a pixel or few pixels."""
    differences: list[Floats] = []
    for example in examples:
        ours, theirs = _pairs(example, _LOOSE)
        boxes_P4 = theirs_on_our_image(example.ours, example.theirs)
        differences.append(example.ours.boxes_R4[ours] - boxes_P4[theirs])
    all_M4 = np.concatenate([np.zeros((0, 4)), *differences])
    boxes = sum(min(len(example.ours), len(example.theirs)) for example in examples)
    if len(all_M4) < _MOSTLY * boxes or not len(all_M4):
        return None
    x1, y1, x2, y2 = median_4 = np.median(all_M4, axis=0)
    spread = float(np.median(np.abs(all_M4 - median_4)))
    if np.abs(median_4).max() < 0.2 or spread > 0.25 * np.abs(median_4).max():
        return None
    corners = f"(x1 {x1:+.2f}, y1 {y1:+.2f}, x2 {x2:+.2f}, y2 {y2:+.2f} pixels, here less reference)"
    if abs(x2 - x1) >= 0.2 or abs(y2 - y1) >= 0.2:
        return Finding(
            f"boxes differ by {x2 - x1:+.2f} pixels in width and {y2 - y1:+.2f} in height {corners}: off by one, as when one "
            "side counts the last pixel as inside (the +1 of Caffe; in the resized image it is less or more than a pixel)"
        )
    return Finding(f"all boxes are shifted alike {corners}: pixels are counted from 0 on one side and from 1 on the other")


def _differ_in_number(comparisons: Sequence[Comparison]) -> bool:
    """Whether most boxes without counterpart are there because one side has more."""
    alone = sum(one.ours + one.theirs - 2 * one.matched for one in comparisons)
    return 2 * sum(abs(one.ours - one.theirs) for one in comparisons) >= alone


def _few(comparisons: Sequence[Comparison]) -> Finding:
    images = sum(one.share < 1 for one in comparisons)
    boxes = sum(max(one.ours, one.theirs) - one.matched for one in comparisons)
    return Finding(
        f"a few boxes differ: {boxes:,} in {images:,} of {len(comparisons):,} images, the others agree; as from boxes that are "
        "nearly as good as others (ties of NMS or of the ranking), or from some images that are others"
    )


def _numbers(comparisons: Sequence[Comparison]) -> Finding:
    ours, theirs = ([getattr(one, side) for one in comparisons] for side in ("ours", "theirs"))
    return Finding(
        f"boxes that both have agree, but their number differs: {_range(ours)} an image here, {_range(theirs)} in the "
        "reference. Compare --min-boxes, --max-boxes, --threshold and the overlap of NMS"
    )


def _range(counts: list[int]) -> str:
    return f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else f"always {counts[0]}"


def _share_of_features(examples: Sequence[Example]) -> float:
    """Share of features that are found again on the other side, wherever their boxes are."""
    found = [match(likeness, _SAME_FEATURE) for e in examples if (likeness := _likeness(e)) is not None]
    boxes = sum(len(e.ours) + len(e.theirs) for e in examples)
    return 2 * sum(len(ours) for ours, _ in found) / boxes if boxes else 0.0


# ---- features ----------------------------------------------------------------------------------------------------------


def _widths(examples: Sequence[Example]) -> Finding:
    ours, theirs = examples[0].ours.features_RF.shape[1], examples[0].theirs.features_RF.shape[1]
    return Finding(f"features are {ours} wide here and {theirs} in the reference: of another layer or network; not compared")


def _features(comparisons: Sequence[Comparison], examples: Sequence[Example], least: float) -> Finding | None:
    """Why features of the same boxes differ."""
    cosines_M = np.concatenate([one.cosines_M for one in comparisons])
    below = cosines_M < least
    if not below.any():
        return None
    middle = float(np.median(cosines_M))
    if below.mean() < 1 - _MOSTLY:
        return Finding(
            f"{below.sum():,} of {len(cosines_M):,} features differ (least cosine {cosines_M.min():.4f}), the others agree"
        )
    if _share_of_features(examples) >= _MOSTLY:
        return Finding("the same features are on both sides, but at other boxes: boxes and features were sorted differently")
    ours_MF, theirs_MF = _matched_features(examples)
    beginning = f"boxes agree, features do not (median cosine {middle:.3f})"
    if _same_numbers(ours_MF, theirs_MF):
        return Finding(f"{beginning}: each has the same numbers in another order, so the channels are permuted")
    negative = (ours_MF < 0).mean(), (theirs_MF < 0).mean()
    if min(negative) < 0.001 < 0.05 < max(negative):
        where = "here" if negative[0] > negative[1] else "in the reference"
        return Finding(
            f"{beginning}: {where} they have negative numbers, so they were taken before a ReLU or from another layer"
        )
    if middle >= 0.98:
        return Finding(f"{beginning}: close, as from another resampling of the image, rounding, or pooling of the region")
    if middle >= 0.5:
        return Finding(f"{beginning}: related, as from another colour order (RGB and BGR), other means, or another scale")
    return Finding(f"{beginning}: unrelated, as from another layer, other weights, or features of other boxes")


def _matched_features(examples: Sequence[Example]) -> tuple[Floats, Floats]:
    sides = [
        [getattr(example, side).features_RF[example.comparison.pairs[place]] for example in examples]
        for place, side in enumerate(("ours", "theirs"))
    ]
    ours_MF, theirs_MF = (np.concatenate(side).astype(np.float64) for side in sides)
    return ours_MF, theirs_MF


def _same_numbers(ours_MF: Floats, theirs_MF: Floats) -> bool:
    """Whether each pair has the same numbers in any order, to the precision of float16."""
    off_MF = np.abs(np.sort(ours_MF, axis=1) - np.sort(theirs_MF, axis=1))
    largest_M1 = np.abs(theirs_MF).max(axis=1, keepdims=True)
    return bool((off_MF <= 2e-3 * largest_M1).all(axis=1).mean() >= _MOSTLY)


def _lengths(comparisons: Sequence[Comparison]) -> Finding | None:
    """Features equal up to a factor."""
    ratio = length_ratio(comparisons)
    if ratio is None or abs(ratio - 1) <= _LENGTH:
        return None
    return Finding(
        f"features are {ratio:.4g} times as long as the reference's: equal up to a factor, as when one side divides them by "
        "their length or by another constant"
    )


def length_ratio(comparisons: Sequence[Comparison]) -> float | None:
    """Median length of our features by the reference's; None where none were compared."""
    lengths_M = np.concatenate([np.zeros(0), *(one.lengths_M for one in comparisons)])
    return float(np.median(lengths_M)) if len(lengths_M) else None


# ---- classes, attributes, order ----------------------------------------------------------------------------------------


def labels_of(comparisons: Sequence[Comparison], what: str) -> Labels | None:
    """Classes or attributes of all matched boxes; None where nothing can be compared."""
    found = [labels for one in comparisons if (labels := one.classes if what == "class" else one.attributes) is not None]
    count = sum(len(labels.ours_M) for labels in found)
    if not count:
        return None
    off = sum(labels.off * len(labels.ours_M) for labels in found) / count
    return Labels(np.concatenate([one.ours_M for one in found]), np.concatenate([one.theirs_M for one in found]), off)


def _labels(comparisons: Sequence[Comparison], what: str, reason: str) -> Finding | None:
    labels = labels_of(comparisons, what)
    if labels is None or labels.agreement is None or labels.agreement >= _ALIKE:
        return None
    shown = (labels.ours_M != 0) & (labels.theirs_M != 0)
    offset, count = Counter((labels.ours_M - labels.theirs_M)[shown].tolist()).most_common(1)[0] if shown.any() else (0, 0)
    beginning = f"only {labels.agreement:.0%} of the boxes have the same {what}"
    if offset and count >= 0.8 * shown.sum():
        reason = reason if reason.endswith("other") else f"{reason} first on one side and last on the other"
        return Finding(f"{beginning}; ids here are shifted by {offset:+d}: {reason}, or ids are counted from 0 and from 1")
    if _renamed(labels.ours_M[shown], labels.theirs_M[shown]):
        return Finding(f"{beginning}, but each id stands for one other id: the names are listed in another order")
    return Finding(f"{beginning}: another head, other weights, or another choice of a region's {what}")


def _renamed(ours_M: npt.NDArray[np.int64], theirs_M: npt.NDArray[np.int64]) -> bool:
    """Whether one id of the reference nearly always meets the same id here, and several ids occur."""
    pairs, firsts = Counter(zip(theirs_M.tolist(), ours_M.tolist(), strict=True)), Counter(theirs_M.tolist())
    best: dict[int, int] = {}
    for (theirs, _), count in pairs.items():
        best[theirs] = max(best.get(theirs, 0), count)
    return len(firsts) >= 3 and len(ours_M) >= 3 * len(firsts) and sum(best.values()) >= _MOSTLY * len(ours_M)


def _order(comparisons: Sequence[Comparison]) -> Finding | None:
    count = sum(one.reordered for one in comparisons)
    if not count:
        return None
    return Finding(
        f"boxes come in another order in {count:,} of {len(comparisons):,} images, which does no harm", harmless=True
    )
