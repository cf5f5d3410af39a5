"""A run's history as a table: the initial model, then a row per iteration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from spin_composer.alarms.rules import Alarm
from spin_composer.report.history import (
    ACCURACY,
    BATCHES,
    DEGENERATE_FRACTION,
    EVALUATION,
    GENERATED_LENGTH,
    ITERATION,
    LOSS,
    MARGIN,
    NLL,
    PAIRS,
    PLAY_SECONDS,
    TRUNCATED_FRACTION,
    Metrics,
    RunHistory,
)
from spin_composer.report.steps import StepRow, iteration_so_far


@dataclass(frozen=True)
class Column:
    """A column of the table: its title, the metric that it shows, and the format."""

    title: str
    key: str
    form: str = "{:.3f}"


_PLAY = (
    Column("pairs", PAIRS, "{:.0f}"),
    Column("steps", BATCHES, "{:.0f}"),
)
_TRAINING = (
    Column("loss", LOSS),
    Column("accuracy", ACCURACY),
    Column("margin", MARGIN),
)
_RESPONSES = (
    Column("length", GENERATED_LENGTH, "{:.1f}"),
    Column("truncated", TRUNCATED_FRACTION, "{:.1%}"),
    Column("degenerate", DEGENERATE_FRACTION, "{:.1%}"),
    Column("play s", PLAY_SECONDS, "{:.1f}"),
)


def held_out_columns(history: RunHistory) -> list[Column]:
    """Return a column of negative log-likelihood per evaluation loader of the run."""
    names = dict.fromkeys(
        name for record in (history.baseline, *history.iterations) for name in record
    )
    keys = [name for name in names if name.startswith(EVALUATION) and name.endswith(NLL)]
    labels = [key.split("/")[1] for key in keys]
    return [
        Column("held-out NLL" if len(keys) == 1 else f"{label} NLL", key)
        for label, key in zip(labels, keys, strict=True)
    ]


def columns_of(history: RunHistory) -> list[Column]:
    """Return the columns of a run's table, without the first one."""
    return [*held_out_columns(history), *_PLAY, *_TRAINING, *_RESPONSES]


def rows_of(history: RunHistory, steps: Sequence[StepRow] = ()) -> list[tuple[str, Metrics]]:
    """Return name and metrics of the initial model and of each iteration.

    Args:
        history: The finished iterations.
        steps: The run's steps, for the row of an iteration that is not finished.
    """
    rows = [("base", history.baseline)]
    rows += [(f"{record[ITERATION]:.0f}", record) for record in history.iterations]
    current = iteration_so_far(history, steps)
    if current is not None:
        rows.append((f"{current[ITERATION]:.0f}, so far", current))
    return rows


def print_table(history: RunHistory, console: Console, steps: Sequence[StepRow] = ()) -> None:
    """Print a row for the initial model and a row per iteration.

    Args:
        history: The finished iterations.
        console: Where to.
        steps: The run's steps, for the row of an iteration that is not finished.
    """
    columns, rows = columns_of(history), rows_of(history, steps)
    table = make_table("SPIN, iteration by iteration", "iteration", columns, rows)
    console.print(table)
    console.print(
        "NLL: nats per token, at the iteration's end. Accuracy, margin (multiplied by beta) and "
        "loss: means over\nthe iteration's training. Length: tokens of the opponent's responses "
        "at its start.",
        style="dim",
    )
    if history.ended:
        console.print(f"The run is finished: {history.ended}.", soft_wrap=True, markup=False)


def print_alarms(alarms: Sequence[Alarm], console: Console) -> None:
    """Print each alarm that the run has raised, with its advice."""
    for alarm in alarms:
        console.print(str(alarm), style="yellow", soft_wrap=True, markup=False, highlight=False)


def make_table(
    title: str, first: str, columns: Sequence[Column], rows: Sequence[tuple[str, Metrics]]
) -> Table:
    """Return a table of metrics; a missing one is shown as a dash.

    Args:
        title: Title of the table.
        first: Title of the column with the rows' names.
        columns: The columns.
        rows: Names and metrics.
    """
    table = Table(title=title)
    table.add_column(first)
    for column in columns:
        table.add_column(column.title, justify="right")
    for name, figures in rows:
        table.add_row(name, *[format_metric(figures, column) for column in columns])
    return table


def format_metric(figures: Metrics, column: Column) -> str:
    """Format a metric for a column."""
    value = figures.get(column.key)
    return "-" if value is None or math.isnan(value) else column.form.format(value)
