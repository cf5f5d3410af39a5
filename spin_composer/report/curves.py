"""Plots of a run, as a PNG: over its optimizer steps, or over its iterations."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spin_composer.report.history import (
    ACCURACY,
    GENERATED_LENGTH,
    LOSS,
    MARGIN,
    NLL,
    TRUNCATED_FRACTION,
    RunHistory,
    in_training,
)
from spin_composer.report.steps import (
    LEARNING_RATE,
    METRICS,
    TOKENS_PER_SECOND,
    StepRow,
    curve,
    iteration_borders,
)
from spin_composer.report.table import held_out_columns

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 5
_PANEL_INCHES = (3.6, 3.2)


@dataclass(frozen=True)
class Curve:
    """A line of a panel: its label, and a value per model (the base model first) or None."""

    label: str
    values: Sequence[float | None]
    style: str = "o-"


def draw(history: RunHistory, path: Path, steps: Sequence[StepRow] = ()) -> None:
    """Draw the run's curves to a PNG.

    Args:
        history: The finished iterations.
        path: Of the PNG.
        steps: The run's steps; without them (of an older version) there is a point per iteration.
    """
    if steps:
        _draw_over_steps(steps, path)
        return
    records = (history.baseline, *history.iterations)

    def of_models(label: str, key: str) -> Curve:
        return Curve(label, [record.get(key) for record in records])

    panels = {
        "held-out NLL (nats per token)": [
            of_models(column.title, column.key) for column in held_out_columns(history)
        ],
        "accuracy in training": [of_models("SPIN", ACCURACY)],
        "margin in training": [of_models("SPIN", MARGIN)],
        "generated length (tokens)": [of_models("SPIN", GENERATED_LENGTH)],
    }
    draw_panels(panels, path)


def _step_panels(steps: Sequence[StepRow]) -> dict[str, dict[str, str]]:
    """Return the panels of a run: the names of their figures by label, by title."""
    names = dict.fromkeys(name for row in steps for name in row.values)
    held_out = [name for name in names if name.endswith(f"/{NLL}")]
    sides = ("Real", "Generated")
    return {
        "loss": {"SPIN": LOSS},
        "accuracy": {"SPIN": METRICS + ACCURACY},
        "margin": {"SPIN": METRICS + MARGIN},
        "rewards": {s.lower(): METRICS + in_training(f"SpinReward{s}") for s in sides},
        "log-probs (nats)": {s.lower(): METRICS + in_training(f"SpinLogps{s}") for s in sides},
        "held-out NLL (nats per token)": {name.split("/")[1]: name for name in held_out},
        "generated length (tokens)": {"SPIN": GENERATED_LENGTH},
        "truncated responses (share)": {"SPIN": TRUNCATED_FRACTION},
        "learning rate": {"SPIN": LEARNING_RATE},
        "tokens per second": {"SPIN": TOKENS_PER_SECOND},
    }


def _draw_over_steps(steps: Sequence[StepRow], path: Path) -> None:
    """Draw each figure over the run's steps, with a line where an iteration begins."""

    def plot(axis: Axes, names: Mapping[str, str]) -> None:
        for border in iteration_borders(steps)[1:]:
            axis.axvline(border, color="gray", linewidth=0.8, linestyle=":")
        for label, name in names.items():
            points = curve(steps, name)
            style = "-" if len(points) > len(steps) / 2 else "o-"  # few: of evaluations or play
            axis.plot([x for x, _ in points], [y for _, y in points], style, ms=4, label=label)
        axis.set_xlabel("optimizer step")

    _draw_grid(_step_panels(steps), plot, path, _COLUMNS)


def draw_panels(panels: Mapping[str, Sequence[Curve]], path: Path) -> None:
    """Draw panels of curves over the base model and the iterations, side by side, to a PNG.

    Args:
        panels: Curves by the panel's title.
        path: Of the PNG.
    """

    def plot(axis: Axes, curves: Sequence[Curve]) -> None:
        longest = max((len(c.values) for c in curves), default=0)
        for one in curves:
            values = [math.nan if value is None else value for value in one.values]
            axis.plot(range(len(values)), values, one.style, label=one.label)
        names = ["base", *[str(i) for i in range(longest - 1)]]
        axis.set_xticks(range(longest), names[:longest])
        axis.set_xlabel("iteration")

    _draw_grid(panels, plot, path, len(panels))


def _draw_grid(
    panels: Mapping[str, Any],
    plot: Callable[[Axes, Any], None],
    path: Path,
    columns: int,
) -> None:
    """Draw panels in rows of ``columns`` to a PNG; ``plot`` draws one."""
    import matplotlib

    matplotlib.use("agg")  # needs no display
    from matplotlib import pyplot

    rows = -(-len(panels) // columns)
    width, height = _PANEL_INCHES
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(width * columns, height * rows), squeeze=False
    )
    for axis, (title, content) in zip(axes.flat, panels.items(), strict=True):
        plot(axis, content)
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
        if len(content) > 1:
            axis.legend(fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
