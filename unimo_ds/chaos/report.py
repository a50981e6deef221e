"""A campaign's table and curve, for the terminal and the documents."""

from html import escape

from unimo_ds.chaos.campaign import AGAIN, CURVE, Outcome, Row
from unimo_ds.chaos.faults import Kind
from unimo_ds.progress import format_duration

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 960, 400, 48, 360, 56
_COLOURS = ["#c0392b", "#e67e22", "#8e44ad", "#2980b9", "#16a085", "#d35400", "#2c3e50", "#7f8c8d", "#b7950b", "#27ae60"]
_SAID = 110  # characters of a line that are shown


def table(rows: list[Row]) -> str:
    """A row a fault, in Markdown."""
    lines = [
        "| | fault | at step | moment | started as | goes on as | what names the cause | from step | s | lost | done again | |",
        "|--:|---|--:|---|---|---|---|--:|--:|--:|---|---|",
    ]
    for row in rows:
        from_step = "" if row.resumed_at is None else str(row.resumed_at)
        after = row.after if row.after != row.before else "the same"
        cells = [str(row.number), row.kind, str(row.step), row.when, row.before, after, _shown(row.said), from_step]
        cells += [f"{row.seconds:.0f}", str(row.lost), row.again, "; ".join(row.problems) or "right"]
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines)


def _shown(said: str) -> str:
    return said if len(said) <= _SAID else said[:_SAID] + " .."


def summary(outcome: Outcome) -> str:
    """What the campaign shows as a whole."""
    rows = outcome.rows
    right = sum(not row.problems for row in rows)
    bits = sum("same bits" in row.again for row in rows)
    lines = [
        f"{len(rows)} faults in {format_duration(outcome.seconds)}, {right} as they should be. "
        f"{sum(row.lost for row in rows)} steps had to be done again: after {bits} faults with the same bits, else within "
        f"{AGAIN:g}, where sums are rounded otherwise.",
        f"The loss of {outcome.steps:,} steps is that of the undisturbed run within {outcome.apart:.1e} (allowed: {CURVE:g}).",
    ]
    return "\n".join(lines + [f"WRONG: {problem}" for problem in outcome.problems[:20]])


def draw(outcome: Outcome) -> str:
    """Both loss curves with a mark for each fault, as SVG."""
    losses = [numbers["loss"] for curve in (outcome.ours, outcome.undisturbed) for numbers in curve.values()]
    low, high = min(losses), max(losses)

    def x(step: int) -> float:
        return round(_LEFT + (_WIDTH - _LEFT - 12) * step / outcome.steps, 1)

    def y(loss: float) -> float:
        return round(_BOTTOM - (_BOTTOM - _TOP) * (loss - low) / (high - low), 1)

    def line(curve: dict[int, dict[str, float]], style: str) -> str:
        points = " ".join(f"{x(step)},{y(numbers['loss'])}" for step, numbers in sorted(curve.items()))
        return f'<polyline points="{points}" fill="none" {style}/>'

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
    ]
    for loss in range(int(low) + 1, int(high) + 1):
        parts.append(f'<path d="M{_LEFT} {y(loss)}H{_WIDTH - 12}" stroke="#eee"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y(loss) + 4}" text-anchor="end">{loss}</text>')
    for step in range(0, outcome.steps + 1, 100):
        parts.append(f'<text x="{x(step)}" y="{_BOTTOM + 18}" text-anchor="middle">{step}</text>')
    parts += [line(outcome.undisturbed, 'stroke="#bbb" stroke-width="4"'), line(outcome.ours, 'stroke="#222" stroke-width="1"')]
    colours = {kind.value: colour for kind, colour in zip(Kind, _COLOURS, strict=True)}
    for row in outcome.rows:
        if row.step in outcome.ours:
            across, up = x(row.step), y(outcome.ours[row.step]["loss"])
            title = escape(f"{row.number}: {row.kind} at step {row.step}")
            parts.append(f'<circle cx="{across}" cy="{up}" r="4" fill="{colours[row.kind]}"><title>{title}</title></circle>')
    for number, (kind, colour) in enumerate(colours.items()):
        across, down = _LEFT + 228 * (number % 4), 14 + 16 * (number // 4)
        parts.append(f'<circle cx="{across}" cy="{down}" r="4" fill="{colour}"/>')
        parts.append(f'<text x="{across + 8}" y="{down + 4}" font-size="10">{escape(kind)}</text>')
    words = "loss by step: grey, the run that was left alone; black, the one that was struck"
    parts.append(f'<text x="{_LEFT}" y="{_HEIGHT - 8}">{words}</text>')
    return "\n".join([*parts, "</svg>\n"])
