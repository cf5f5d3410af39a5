"""The picture of the results: a panel per world and measure, a dot with its error per arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from examples.evidence.arms import ARMS, START
from examples.evidence.results import Result, of_arm
from examples.evidence.tables import (
    MEASURES,
    known_measures,
    mean_and_error,
    measures_of,
    title_of,
)

_SHOWN = 3
"""Panels of a world: its first measures, held-out NLL the first."""


def draw(worlds: Mapping[str, Sequence[Result]], path: Path) -> None:
    """Draw the results to an SVG, a row of panels per world.

    Args:
        worlds: Results by the row's title.
        path: Of the SVG.
    """
    import matplotlib

    matplotlib.use("agg")  # needs no display
    matplotlib.rcParams["svg.hashsalt"] = "evidence"  # the same results give the same file
    from matplotlib import pyplot

    shape = (len(worlds), _SHOWN)
    figure, axes = pyplot.subplots(*shape, figsize=(4.2 * _SHOWN, 3.4 * len(worlds)), squeeze=False)
    for row, (title, results) in zip(axes, worlds.items(), strict=True):
        arms = [arm for arm in reversed((START, *ARMS)) if of_arm(results, arm)]
        measures = [name for name in known_measures(results) if MEASURES[name][2]][:_SHOWN]
        for axis in row:
            axis.set_visible(False)
        for column, (axis, name) in enumerate(zip(row, measures, strict=False)):
            axis.set_visible(True)
            found = [mean_and_error(measures_of(results, arm, name)) for arm in arms]
            values, errors = zip(*found, strict=True)
            axis.errorbar(values, range(len(arms)), xerr=errors, fmt="o", capsize=3)
            if START in arms:
                axis.axvline(values[arms.index(START)], color="gray", linestyle=":")
            labels = [title_of(arm) for arm in arms] if column == 0 else [""] * len(arms)
            axis.set_yticks(range(len(arms)), labels, fontsize=8)
            better = "higher" if MEASURES[name][2] > 0 else "lower"
            axis.set_title(f"{MEASURES[name][0]} ({better} is better)", fontsize=9)
            axis.grid(alpha=0.3)
        row[0].set_ylabel(title, fontsize=9)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
