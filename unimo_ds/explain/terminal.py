"""A step in words, for the terminal."""

import textwrap
from collections.abc import Sequence

from unimo_ds.explain.step import Sample, ShownCandidate, Summary
from unimo_ds.explain.words import Piece

_LEGEND = (
    "[seen→true]: a hidden word, what the model sees and what it must name; <…>: words that it must generate; "
    "{a→b}: words of the caption that stand changed in a candidate"
)


def summary_lines(title: str, summary: Summary, scored: str, notes: Sequence[str], width: int) -> list[str]:
    """The whole step.

    Args:
        title: run and step.
        summary: of the step.
        scored: which checkpoint scored the candidates, or why none did.
        notes: warnings.
        width: of the terminal.
    """
    counts = summary.counts
    corpora = ", ".join(f"{count:,} of {size:,} {name} ({kind})" for name, kind, count, size in summary.corpora)
    facts = {
        "samples": corpora,
        "objectives": ", ".join(f"{view}: {count:,}" for view, count in summary.views) or "none",
        "targets": f"{counts.mlm:,} masked words, {counts.seq2seq:,} generated words, {counts.regions:,} hidden regions, "
        f"{counts.pairs:,} pairs",
        "candidates": ", ".join(f"{role}: {count:,}" for role, count in summary.candidates) or "none",
        "sharing": sharing(summary),
        "similarities": scored,
        "reading": _LEGEND,
    }
    lines = [title]
    for note in notes:
        lines += textwrap.wrap(f"note: {note}", width, initial_indent="  ", subsequent_indent="        ")
    for name, fact in facts.items():
        lines += textwrap.wrap(fact, width, initial_indent=f"  {name:<14}", subsequent_indent=" " * 16)
    return lines


def sharing(summary: Summary) -> str:
    """How the samples are spread over ranks and micro-batches."""
    samples = [part.samples for part in summary.shares]
    positions = [part.counts.positions for part in summary.shares]
    ranks = "1 rank" if summary.ranks == 1 else f"{summary.ranks} ranks"
    parts = "1 micro-batch" if summary.micro_batches == 1 else f"{summary.micro_batches} micro-batches"
    return (
        f"{summary.counts.positions:,} positions over {ranks} in {parts}, {_range(samples)} samples and "
        f"{_range(positions)} positions each"
    )


def sample_lines(number: int, sample: Sample, width: int) -> list[str]:
    """One sample: a line that says what it is, its text, its hidden regions, its candidates as a table."""
    head = (
        f"{number}. {sample.corpus}, sample {sample.index:,} (draw {sample.draw:,}): {sample.view}; rank {sample.rank}, "
        f"micro-batch {sample.micro_batch + 1}, {sample.positions:,} positions"
    )
    lines = textwrap.wrap(head, width, subsequent_indent="   ")
    if sample.image is not None:
        image = f"image {sample.image.key}, {len(sample.image.regions)} regions"
        if sample.image.hidden:
            hidden = ", ".join(f"{region.label} {region.probability:.2f}" for region in sample.image.hidden)
            image += f", {len(sample.image.hidden)} hidden: {hidden}"
        lines += _indented(image, width)
    if sample.pieces:
        lines += _indented(marked(sample.pieces), width)
    if sample.candidates:
        lines += _table(sample.candidates, width)
    if sample.loss is not None:
        lines += _indented(loss_text(sample.loss, sample.positive_share), width)
    return lines


def marked(pieces: Sequence[Piece]) -> str:
    """A text with its marks, as the legend says."""
    return "".join(_marked(piece) for piece in pieces)


def _marked(piece: Piece) -> str:
    match piece.mark:
        case "":
            return piece.text
        case "generated":
            return f"<{piece.text}>"
        case "changed":
            return f"{{{piece.other}→{piece.text}}}"
        case "masked":
            return f"[MASK→{piece.other}]"
    return f"[{piece.text}→{piece.other}]"


def fit_text(fit: float | None) -> str:
    """A similarity as it is shown."""
    return "" if fit is None else f"{fit:.3f}"


def share_text(share: float | None) -> str:
    """A share of the softmax as it is shown."""
    if share is None:
        return ""
    if share < 1e-4 or 1 - 1e-4 < share < 1:
        return "<0.01 %" if share < 1e-4 else ">99.99 %"
    return f"{100 * share:.{1 if share >= 0.01 else 2}f} %"


def loss_text(loss: float, positive_share: float) -> str:
    """What the shares of a pair come to."""
    return f"{share_text(positive_share)} of the softmax falls to the positives; loss of the pair by itself {loss:.3f}"


def _table(candidates: Sequence[ShownCandidate], width: int) -> list[str]:
    rows = [
        (
            ("+ " if each.positive else "- ") + each.role,
            fit_text(each.fit),
            share_text(each.share),
            ("▲" if each.beats else " "),
            each.image.key if each.image else marked(each.pieces),
        )
        for each in candidates
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = []
    for role, fit, share, beats, text in rows:
        cells = [role.ljust(widths[0]), fit.rjust(widths[1]), share.rjust(widths[2]), beats]
        start = "   " + "  ".join(cell for cell, size in zip(cells, widths, strict=True) if size) + " "
        lines += textwrap.wrap(text, max(width, len(start) + 20), initial_indent=start, subsequent_indent=" " * len(start))
    return lines


def _indented(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, initial_indent="   ", subsequent_indent="   ")


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
