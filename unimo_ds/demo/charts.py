"""Small line charts, placed here and drawn by the template as inline SVG: no script, no picture file, sharp at any size."""

import math
from collections.abc import Callable
from dataclasses import dataclass

Point = tuple[float, float]

# The plot's frame inside the drawing, in the units of its viewBox.
_LEFT, _RIGHT, _TOP, _BOTTOM = 64.0, 326.0, 8.0, 152.0
_MOST_POINTS = 400


@dataclass(frozen=True)
class Curve:
    """A line of a chart; `label` is empty where the chart's title says it all."""

    label: str
    points: list[Point]
    dashed: bool = False


@dataclass(frozen=True)
class Tick:
    """A mark on an axis."""

    at: float
    text: str


@dataclass(frozen=True)
class Line:
    """A curve in the coordinates of the drawing, with its first and last value in words."""

    label: str
    start: str
    end: str
    dashed: bool
    path: str
    dots: list[Point]


@dataclass(frozen=True)
class Chart:
    """Everything the template needs to draw one chart."""

    title: str
    axis: str
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]


@dataclass(frozen=True)
class Kind:
    """How one kind of quantity is shown."""

    axis: str
    text: Callable[[float], str]
    from_zero: bool = True


def draw_chart(title: str, kind: Kind, curves: list[Curve], last_step: float) -> Chart:
    """Places curves in a frame from step 0 to `last_step`."""
    curves = [curve for curve in curves if curve.points]
    low, high = _range([value for curve in curves for _, value in curve.points], kind.from_zero)

    def x(step: float) -> float:
        return round(_LEFT + (_RIGHT - _LEFT) * step / max(last_step, 1), 1)

    def y(value: float) -> float:
        return round(_BOTTOM - (_BOTTOM - _TOP) * (value - low) / (high - low), 1)

    return Chart(
        title,
        kind.axis,
        [_line(curve, kind, x, y) for curve in curves],
        [Tick(x(step), f"{step:,.0f}") for step in _ticks(0, last_step, 5) if step == int(step)],
        [Tick(y(value), _tick_text(value)) for value in _ticks(low, high, 5)],
    )


def _line(curve: Curve, kind: Kind, x: Callable[[float], float], y: Callable[[float], float]) -> Line:
    every = -(-len(curve.points) // _MOST_POINTS)
    shown = [*curve.points[:-1:every], curve.points[-1]]
    placed = [(x(step), y(value)) for step, value in shown]
    if curve.dashed:
        placed, dots = [(_LEFT, placed[0][1]), *placed, (_RIGHT, placed[-1][1])], []
    else:
        dots = placed if len(placed) <= 12 else [placed[0], placed[-1]]
    path = "M" + " L".join(f"{across:g} {up:g}" for across, up in placed)
    first, last = kind.text(curve.points[0][1]), kind.text(curve.points[-1][1])
    return Line(curve.label, "" if len(curve.points) == 1 or curve.dashed else first, last, curve.dashed, path, dots)


def _range(values: list[float], from_zero: bool) -> Point:
    """Bounds of an axis: all values, a little air, and zero where a length should mean an amount."""
    low, high = min(values), max(values)
    air = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return (min(0.0, low), high + air) if from_zero else (low - air, high + air)


def _ticks(low: float, high: float, most: int) -> list[float]:
    """At most about `most` round numbers from `low` to `high`."""
    rough = max(high - low, 1e-12) / most
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _tick_text(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"
