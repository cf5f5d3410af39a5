"""A run's figures step by step: the file ``steps.jsonl`` of its store, a JSON object per line.

Written by ``hooks.step_log``, read by reports, so that a run without a logger has curves too. Each
optimizer step has a line, with the metrics of its batch; the first step of an iteration also has
those of the iteration's play. Evaluations and the ends of iterations have lines of their own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from spin_composer.alarms.rules import Alarm
from spin_composer.errors import StoreError
from spin_composer.report.history import (
    BATCHES,
    ITERATION,
    Metrics,
    RunHistory,
    in_evaluation,
    in_training,
)
from spin_composer.store.layout import STEPS

METRICS = "metrics/"
"""Composer's prefix of the names of metrics, which the history leaves out."""
LEARNING_RATE, TOKENS_PER_SECOND = "learning_rate", "tokens_per_second"
"""Figures of a step that are not among the logged metrics."""
PLAY_TIME_SHARE = "spin/play_time_share"
_STEP, _ITERATION, _EPOCH, _TIME, _ALARMS = "step", "iteration", "epoch", "time", "alarms"


@dataclass(frozen=True)
class StepRow:
    """A line: figures of one moment of a run."""

    step: int
    """Optimizer steps so far; 0 before training."""
    iteration: int
    """The iteration that the figures are of."""
    epoch: int
    """Finished epochs of the run."""
    time: float
    """When it was written, in seconds since the epoch (1970)."""
    values: Mapping[str, float]
    """The figures by the names that they are logged by (docs/metrics.md); a nan is no number."""
    alarms: tuple[Alarm, ...] = ()
    """Alarms that were raised then."""

    @property
    def position(self) -> tuple[int, int, int]:
        """Iteration, epoch and step: increases along the file."""
        return self.iteration, self.epoch, self.step

    def as_json(self) -> str:
        """Return the line, with its end; what is no finite number becomes null."""
        content: dict[str, object] = {
            _STEP: self.step,
            _ITERATION: self.iteration,
            _EPOCH: self.epoch,
            _TIME: round(self.time, 3),
            **{name: x if math.isfinite(x) else None for name, x in self.values.items()},
        }
        if self.alarms:
            content[_ALARMS] = [asdict(alarm) for alarm in self.alarms]
        return f"{json.dumps(content)}\n"


def parse_row(line: str) -> StepRow:
    """Return the row of a line.

    Raises:
        ValueError: It is not one.
    """
    try:
        found = dict(json.loads(line))
        step, iteration, epoch = (int(found.pop(name)) for name in (_STEP, _ITERATION, _EPOCH))
        time = float(found.pop(_TIME))
        alarms = tuple(Alarm(**alarm) for alarm in found.pop(_ALARMS, ()))
        values = {name: math.nan if x is None else float(x) for name, x in found.items()}
    except (TypeError, KeyError) as error:
        raise ValueError(repr(error)) from None
    return StepRow(step, iteration, epoch, time, values, alarms)


def parse_steps(text: str, where: object) -> list[StepRow]:
    """Parse the file.

    A last line that is cut short is left out: the run is writing it, or was killed there.

    Args:
        text: The file's text.
        where: Its name, for messages.

    Raises:
        StoreError: Another line is damaged.
    """
    rows: list[StepRow] = []
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(parse_row(line))
        except ValueError as error:
            if number == len(lines) and not line.endswith("\n"):
                break
            raise StoreError(
                f"{where}, line {number}, is damaged ({error}). Remove the line; only curves need "
                "it."
            ) from None
    return rows


def read_steps(store: Path) -> list[StepRow]:
    """Return the steps of the run whose self-play store is ``store``.

    Args:
        store: The folder ``algorithms.spin.store``.

    Returns:
        The rows in order; none if the run has trained nothing yet, or is of an older version.

    Raises:
        StoreError: If the file is damaged.
    """
    path = store / STEPS
    if not path.exists():
        return []
    return parse_steps(path.read_text(encoding="utf-8", errors="replace"), path)


def find_alarms(store: Path) -> list[Alarm]:
    """Return the alarms of a run, as :func:`read_steps` but without parsing every line."""
    path = store / STEPS
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    lines = [line for line in text.splitlines(keepends=True) if f'"{_ALARMS}": [' in line]
    return alarms_of(parse_steps("".join(lines), path))


def alarms_of(rows: Iterable[StepRow]) -> list[Alarm]:
    """Return the alarms of rows, in order."""
    return [alarm for row in rows for alarm in row.alarms]


def curve(rows: Iterable[StepRow], name: str) -> list[tuple[int, float]]:
    """Return the steps that have a figure, with its values, in order."""
    return [(row.step, row.values[name]) for row in rows if name in row.values]


def iteration_borders(rows: Iterable[StepRow]) -> list[int]:
    """Return the number of steps before each iteration that has a step, in order."""
    first: dict[int, int] = {}
    for row in rows:
        if TOKENS_PER_SECOND in row.values:
            first.setdefault(row.iteration, row.step - 1)
    return list(first.values())


def iteration_so_far(history: RunHistory, rows: Iterable[StepRow]) -> Metrics | None:
    """Return the record of an iteration that is not finished, as the history will have it.

    Args:
        history: Has the finished iterations.
        rows: The run's steps.

    Returns:
        Means over its steps so far, its play's metrics and its last evaluation; None if no step of
        it is made yet.
    """
    current = len(history.iterations)
    found = [row.values for row in rows if row.iteration == current]
    steps = [values for values in found if TOKENS_PER_SECOND in values]
    if not steps:
        return None
    last = {_in_history(name): value for values in found for name, value in values.items()}
    names = {name for values in steps for name in values}
    means = {_in_history(name): _mean(steps, name) for name in names}
    return {**last, **means, ITERATION: current, BATCHES: len(steps)}


def _mean(steps: Iterable[Mapping[str, float]], name: str) -> float:
    """Return the mean over the steps that have a figure; nan if it is no number in any."""
    values = [x for x in (step.get(name, math.nan) for step in steps) if not math.isnan(x)]
    return sum(values) / len(values) if values else math.nan


def _in_history(name: str) -> str:
    """Return the name that the history has for a logged one."""
    prefix, _, rest = name.partition("/")
    label, _, metric = rest.partition("/")
    if f"{prefix}/" != METRICS:
        return name
    return in_training(metric) if label == "train" else in_evaluation(label, metric)
