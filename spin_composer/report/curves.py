"""Plots of a run's history over its iterations, as a PNG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from spin_composer.report.history import ACCURACY, GENERATED_LENGTH, MARGIN, RunHistory
from spin_composer.report.table import held_out_columns


@dataclass(frozen=True)
class Curve:
    """A line of a panel: its label, and a value per model (the base model first) or None."""

    label: str
    values: Sequence[float | None]
    style: str = "o-"


def draw(history: RunHistory, path: Path) -> None:
    """Draw the run's curves to a PNG: held-out NLL, accuracy, margin and response length."""
    records = (history.baseline, *history.iterations)

    def curve(label: str, key: str) -> Curve:
        return Curve(label, [record.get(key) for record in records])

    panels = {
        "held-out NLL (nats per token)": [
            curve(column.title, column.key) for column in held_out_columns(history)
        ],
        "accuracy in training": [curve("SPIN", ACCURACY)],
        "margin in training": [curve("SPIN", MARGIN)],
        "generated length (tokens)": [curve("SPIN", GENERATED_LENGTH)],
    }
    draw_panels(panels, path)


def draw_panels(panels: Mapping[str, Sequence[Curve]], path: Path) -> None:
    """Draw panels of curves over the base model and the iterations, side by side, to a PNG.

    Args:
        panels: Curves by the panel's title.
        path: Of the PNG.
    """
    import matplotlib

    matplotlib.use("agg")  # needs no display
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(panels), figsize=(3.6 * len(panels), 3.2), squeeze=False)
    for axis, (title, curves) in zip(axes[0], panels.items(), strict=True):
        longest = max((len(c.values) for c in curves), default=0)
        for curve in curves:
            values = [math.nan if value is None else value for value in curve.values]
            axis.plot(range(len(values)), values, curve.style, label=curve.label)
        names = ["base", *[str(i) for i in range(longest - 1)]]
        axis.set_xticks(range(longest), names[:longest])
        axis.set_xlabel("iteration")
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
        if len(curves) > 1:
            axis.legend(fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
