"""The report of a run: its books (``<store>/iterations.json``) as a table and as curves.

Reads files only, so it also works on a machine that has neither the model nor a GPU.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from spin_composer.errors import StoreError

FILE_NAME = "iterations.json"

Figures = Mapping[str, float]


@dataclass(frozen=True)
class Books:
    """What a run noted: the evaluation before the first iteration, and a record per iteration."""

    baseline: Figures
    """Evaluation metrics of the model that the run began with; empty if there was no evaluation."""
    iterations: list[Figures]
    """Figures of the closed iterations, in order, by the names they are logged under."""
    ended: str = ""
    """Who ended the run before its time, and where; empty if nobody did."""


@dataclass(frozen=True)
class Column:
    """A column of the table: its title, the figure it shows, and how."""

    title: str
    key: str
    form: str = "{:.3f}"


_PLAY = (
    Column("pairs", "spin/pairs", "{:.0f}"),
    Column("steps", "batches", "{:.0f}"),
)
_TRAINING = (
    Column("loss", "loss/train/total"),
    Column("accuracy", "train/SpinAccuracy"),
    Column("margin", "train/SpinMargin"),
)
_RESPONSES = (
    Column("length", "spin/generated_length", "{:.1f}"),
    Column("truncated", "spin/truncated_fraction", "{:.1%}"),
    Column("degenerate", "spin/degenerate_fraction", "{:.1%}"),
    Column("play s", "spin/play_seconds", "{:.1f}"),
)


def read_books(store: Path) -> Books:
    """Return the books of the run whose self-play store is ``store``.

    Args:
        store: The folder ``algorithms.spin.store``, or the books' file itself.

    Raises:
        StoreError: If there are none yet, or the file is damaged.
    """
    path = store / FILE_NAME if store.is_dir() else store
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        iterations: list[Figures] = [_figures(r) for r in found["iterations"]]
        return Books(_figures(found["baseline"]), iterations, str(found.get("ended", "")))
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(
            f"{path} does not exist: no iteration of that run is finished, or it is not its store. "
            "Give the folder that algorithms.spin.store names."
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(
            f"{path} is damaged ({error!r}). Restore it; the next iteration's end writes it anew."
        ) from None


def _figures(record: Mapping[str, Any]) -> dict[str, float]:
    return {str(name): float(value) for name, value in record.items()}


def held_out_columns(books: Books) -> list[Column]:
    """Return a column of negative log-likelihood per evaluation loader of the run."""
    names = dict.fromkeys(name for record in (books.baseline, *books.iterations) for name in record)
    keys = [name for name in names if name.startswith("eval/") and name.endswith("CrossEntropy")]
    labels = [key.split("/")[1] for key in keys]
    return [
        Column("held-out NLL" if len(keys) == 1 else f"{label} NLL", key)
        for label, key in zip(labels, keys, strict=True)
    ]


def print_table(books: Books, console: Console) -> None:
    """Print a row per iteration below the row of the model that the run began with."""
    columns = [*held_out_columns(books), *_PLAY, *_TRAINING, *_RESPONSES]
    rows = [("base", books.baseline)]
    rows += [(f"{record['iteration']:.0f}", record) for record in books.iterations]
    table = make_table("SPIN, iteration by iteration", "iteration", columns, rows)
    console.print(table)
    console.print(
        "NLL: nats per token, at the iteration's end. Accuracy, margin (multiplied by beta) and "
        "loss: means over\nthe iteration's training. Length: tokens of the opponent's responses "
        "at its start.",
        style="dim",
    )
    if books.ended:
        console.print(f"The run is finished: {books.ended}.", soft_wrap=True, markup=False)


def make_table(
    title: str, first: str, columns: Sequence[Column], rows: Sequence[tuple[str, Figures]]
) -> Table:
    """Return a table of figures; one that a row does not have is shown as a dash.

    Args:
        title: The table's.
        first: Title of the column of the rows' names.
        columns: What is shown of each row.
        rows: Name and figures.
    """
    table = Table(title=title)
    table.add_column(first)
    for column in columns:
        table.add_column(column.title, justify="right")
    for name, figures in rows:
        table.add_row(name, *[shown_figure(figures, column) for column in columns])
    return table


def shown_figure(figures: Figures, column: Column) -> str:
    """Return a figure as the column shows it."""
    value = figures.get(column.key)
    return "-" if value is None or math.isnan(value) else column.form.format(value)


@dataclass(frozen=True)
class Curve:
    """A line of a panel: its label, and a value per model (the base model first) or None."""

    label: str
    values: Sequence[float | None]
    style: str = "o-"


def draw(books: Books, path: Path) -> None:
    """Draw the run's curves to a PNG: held-out NLL, accuracy, margin and response length."""
    records = (books.baseline, *books.iterations)

    def curve(label: str, key: str, style: str = "o-") -> Curve:
        return Curve(label, [record.get(key) for record in records], style)

    panels = {
        "held-out NLL (nats per token)": [
            curve(column.title, column.key) for column in held_out_columns(books)
        ],
        "accuracy in training": [curve("SPIN", "train/SpinAccuracy")],
        "margin in training": [curve("SPIN", "train/SpinMargin")],
        "generated length (tokens)": [curve("SPIN", "spin/generated_length")],
    }
    draw_panels(panels, path)


def draw_panels(panels: Mapping[str, Sequence[Curve]], path: Path) -> None:
    """Draw panels of curves over the base model and the iterations, side by side, to a PNG.

    Args:
        panels: Curves by the panel's title.
        path: Of the PNG.
    """
    import matplotlib

    matplotlib.use("agg")  # no display is asked for
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
