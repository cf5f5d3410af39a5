"""The geometry of a panel as SVG: where points, ticks and borders of its curves lie.

``page.js`` draws a panel again by the same rules when a reader zooms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from spin_composer.report.panels import Charts, Panel, Point

WIDTH, HEIGHT = 360, 200
LEFT, TOP, INNER_WIDTH, INNER_HEIGHT = 50, 14, 300, 160
"""The box of the curves within the panel."""
_TICKS = 6
_MOST_DOTS = 60


@dataclass(frozen=True)
class Tick:
    """A mark on an axis."""

    at: str
    text: str


@dataclass(frozen=True)
class Line:
    """A curve of a panel as SVG."""

    label: str
    points: str
    """Of a polyline."""
    dots: Sequence[tuple[str, str]]
    """Centers of its points, if they are few."""
    xs: str
    ys: str
    """The data, separated by blanks."""


@dataclass(frozen=True)
class Plot:
    """A panel as SVG."""

    title: str
    unit: str
    lines: Sequence[Line]
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    borders: Sequence[Tick]
    """Where each iteration begins, with its number."""


@dataclass(frozen=True)
class Scale:
    """Maps values from ``low`` to ``high`` to the coordinates ``first`` to ``last``."""

    low: float
    high: float
    first: float
    last: float

    def at(self, value: float) -> str:
        """Return the coordinate of a value, as text."""
        share = (value - self.low) / (self.high - self.low)
        return f"{self.first + share * (self.last - self.first):.2f}"

    def ticks(self, whole: bool = False) -> list[Tick]:
        """Return marks at round values; at whole numbers only, if ``whole``."""
        step = round_step((self.high - self.low) / _TICKS)
        step = max(1.0, step) if whole else step
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [Tick(self.at(k * step), f"{k * step:.6g}") for k in range(first, last + 1)]


def round_step(least: float) -> float:
    """Return the smallest of 1, 2 and 5 times a power of ten that is not below ``least``."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def plots(charts: Charts) -> list[Plot]:
    """Return the panels as SVG, all over the same range of x."""
    points = [p for panel in charts.panels for curve in panel.curves for p in curve.points]
    low, high = padded([x for x, _ in points], 0.0)
    x = Scale(low, high, LEFT, LEFT + INNER_WIDTH)
    borders = [Tick(x.at(at), str(k)) for k, at in enumerate(charts.borders) if low <= at <= high]
    return [_plot(panel, x, borders) for panel in charts.panels]


def padded(values: Sequence[float], share: float = 0.05) -> tuple[float, float]:
    """Return a range that holds all values, with a margin of a share of it on both sides."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        around = abs(low) / 10 or 1.0
        return low - around, high + around
    return low - share * (high - low), high + share * (high - low)


def _plot(panel: Panel, x: Scale, borders: Sequence[Tick]) -> Plot:
    low, high = padded([value for curve in panel.curves for _, value in curve.points])
    y = Scale(low, high, TOP + INNER_HEIGHT, TOP)
    lines = []
    for curve in panel.curves:
        places = [(x.at(a), y.at(b)) for a, b in curve.points]
        lines.append(
            Line(
                curve.label,
                " ".join(f"{a},{b}" for a, b in places),
                places if len(places) <= _MOST_DOTS else (),
                *_data(curve.points),
            )
        )
    return Plot(panel.title, panel.unit, lines, x.ticks(whole=True), y.ticks(), borders)


def _data(points: Sequence[Point]) -> tuple[str, str]:
    return (" ".join(f"{x:.10g}" for x, _ in points), " ".join(f"{y:.6g}" for _, y in points))
