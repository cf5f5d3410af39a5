"""The curves of a run's report: which figures stand in which panel, and their points."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from spin_composer.alarms.rules import REAL_LENGTH
from spin_composer.report.history import (
    ACCURACY,
    BATCHES,
    DEGENERATE_FRACTION,
    GENERATED_LENGTH,
    LOSS,
    MARGIN,
    NLL,
    PLAY_SHARE,
    TRUNCATED_FRACTION,
    Metrics,
    in_evaluation,
    in_training,
)
from spin_composer.report.run_files import RunFiles
from spin_composer.report.steps import (
    LEARNING_RATE,
    METRICS,
    PLAY_TIME_SHARE,
    TOKENS_PER_SECOND,
    StepRow,
    curve,
    iteration_borders,
)
from spin_composer.store.layout import iteration_number

Point = tuple[float, float]

MOST_POINTS = 2000
"""Of a curve: of more steps each point is the mean of several."""
_PLAY_SPEED = "spin/generated_tokens_per_second_per_rank"
_SIDES = {"real": "Real", "generated": "Generated"}
_JUDGED = "classifier_accuracy"


@dataclass(frozen=True)
class Curve:
    """A curve of a panel, with finite values in the order of x."""

    label: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Panel:
    """A panel of curves over one axis."""

    title: str
    unit: str
    curves: Sequence[Curve]


@dataclass(frozen=True)
class Charts:
    """All panels of a run."""

    panels: Sequence[Panel]
    axis: str
    """What x counts."""
    borders: Sequence[int]
    """Where each iteration begins, on the axis."""
    steps_per_point: int
    """Steps that a point of a curve over steps is the mean of."""


def charts(run: RunFiles) -> Charts:
    """Return the panels of a run that has something to show in them.

    With the run's steps x counts optimizer steps; without (an older version's run) iterations: 0
    is the start model, k what the k-th iteration trained.
    """
    ends = _iteration_ends(run)
    size = -(-sum(TOKENS_PER_SECOND in row.values for row in run.steps) // MOST_POINTS) or 1
    panels = [
        Panel(title, unit, curves)
        for title, unit, names in _figures(run)
        if (curves := _curves(run, names, size))
    ]
    if judged := _judged(run, ends):
        panels.append(Panel("judge: told from real", "accuracy, 0.5 is the goal", judged))
    if run.steps:
        return Charts(panels, "optimizer step", iteration_borders(run.steps), size)
    return Charts(panels, "iteration", range(len(run.history.iterations)), 1)


def thinned(points: Sequence[Point], size: int) -> list[Point]:
    """Return the means of groups of ``size`` points, the last group being what is left."""
    if size == 1:
        return list(points)
    groups = (points[first : first + size] for first in range(0, len(points), size))
    return [
        (group[-1][0], math.fsum(y for _, y in group) / len(group)) for group in groups if group
    ]


def _figures(run: RunFiles) -> Iterable[tuple[str, str, Mapping[str, tuple[str, str]]]]:
    """Yield title, unit and figures of each panel: by label, its names in steps and in history."""

    def trained(name: str) -> tuple[str, str]:
        return METRICS + in_training(name), in_training(name)

    def played(name: str) -> tuple[str, str]:
        return name, name

    yield "loss", "", {"loss": (LOSS, LOSS)}
    yield "accuracy", "share of pairs", {"accuracy": (METRICS + ACCURACY, ACCURACY)}
    yield "margin", "nats times beta", {"margin": (METRICS + MARGIN, MARGIN)}
    rewards = {label: trained(f"SpinReward{side}") for label, side in _SIDES.items()}
    yield "rewards", "nats times beta", rewards
    logps = {label: trained(f"SpinLogps{side}") for label, side in _SIDES.items()}
    yield "log-prob of a response", "nats", logps
    held_out = {
        label: (f"{METRICS}{label}/{NLL}", in_evaluation(label, NLL)) for label in _held_out(run)
    }
    yield "held-out NLL", "nats per token", held_out
    yield "length of responses", "tokens", {
        "real": (REAL_LENGTH, ""), "generated": played(GENERATED_LENGTH),
    }  # fmt: skip
    yield "cut off, equal to the real one", "share of responses", {
        "cut off": played(TRUNCATED_FRACTION), "equal": played(DEGENERATE_FRACTION),
    }  # fmt: skip
    yield "learning rate", "", {"learning rate": (LEARNING_RATE, "")}
    yield "training speed", "tokens per second", {"all ranks": (TOKENS_PER_SECOND, "")}
    yield "speed of generation", "tokens per second", {"a rank": played(_PLAY_SPEED)}
    yield "time spent in play", "share", {"play": (PLAY_TIME_SHARE, PLAY_SHARE)}


def _held_out(run: RunFiles) -> Iterable[str]:
    """Return the labels of the evaluation loaders."""
    in_history = (name for record in _records(run) for name in record if name.startswith("eval/"))
    in_steps = (
        name.removeprefix(METRICS)
        for row in run.steps
        for name in row.values
        if name.startswith(METRICS) and name.endswith(f"/{NLL}")
    )
    names = (name.removeprefix("eval/") for name in in_history)
    return dict.fromkeys(
        name.split("/")[0] for name in (*names, *in_steps) if name.endswith(f"/{NLL}")
    )


def _curves(run: RunFiles, names: Mapping[str, tuple[str, str]], size: int) -> list[Curve]:
    found = []
    for label, (in_steps, in_history) in names.items():
        points = _of_steps(run.steps, in_steps, size) if run.steps else _of(run, in_history)
        if points:
            found.append(Curve(label, points))
    return found


def _of_steps(steps: Sequence[StepRow], name: str, size: int) -> list[Point]:
    points = [(x, y) for x, y in curve(steps, name) if math.isfinite(y)]
    return thinned(points, size) if len(points) > MOST_POINTS else list(points)


def _of(run: RunFiles, name: str) -> list[Point]:
    values = ((x, record.get(name, math.nan)) for x, record in enumerate(_records(run)))
    return [(x, y) for x, y in values if math.isfinite(y)]


def _records(run: RunFiles) -> Sequence[Metrics]:
    return run.history.baseline, *run.history.iterations


def _iteration_ends(run: RunFiles) -> list[float]:
    """Return the start and each finished iteration's end, on the axis."""
    ends = [0.0]
    for record in run.history.iterations:
        ends.append(ends[-1] + (record[BATCHES] if run.steps else 1))
    return ends


def _judged(run: RunFiles, ends: Sequence[float]) -> list[Curve]:
    """Return the judge's measure over the models that it measured; the start model is first.

    An export whose name has no iteration (``ba7``) has no place on the axis.
    """
    points = []
    for model in run.judged:
        iteration = -1 if model["name"] == "start" else iteration_number(model["name"])
        value = model["measures"].get(_JUDGED)
        if iteration is not None and value is not None and iteration + 1 < len(ends):
            points.append((ends[iteration + 1], float(value["value"])))
    return [Curve("classifier", sorted(points))] if points else []
