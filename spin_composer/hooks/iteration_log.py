"""Collects a run's history (``report.history``), batch by batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from composer.core import State

from spin_composer.report.history import BATCHES, ITERATION, RunHistory, in_evaluation
from spin_composer.store.durable import write_atomically
from spin_composer.store.layout import HISTORY


class IterationLog:
    """Means of an iteration's training metrics, its play metrics and its evaluation.

    Its state is part of the checkpoint, so a resumed run continues the same history.
    """

    def __init__(self) -> None:
        self._path = Path()
        self._baseline: dict[str, float] = {}
        self._records: list[dict[str, float]] = []
        self._play: dict[str, float] = {}
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._batches = 0
        self.batch: dict[str, float] = {}
        """The last batch's metrics, by logged name, without those that are nan."""

    def open(self, root: Path, state: State) -> None:
        """Set the history's file, and record the evaluation before the first iteration."""
        self._path = root / HISTORY
        if int(state.timestamp.batch) == 0:
            self._baseline = _evaluation(state)

    def start(self, play: Mapping[str, float]) -> None:
        """Start an iteration with its play metrics."""
        self._play, self._sums, self._counts, self._batches = dict(play), {}, {}, 0

    def add_batch(self, state: State) -> None:
        """Add a trained batch; a metric that is nan has none of its pairs in it."""
        values = {f"metrics/train/{k}": x for k, x in state.train_metric_values.items()}
        values |= dict(getattr(state, "total_loss_dict", None) or {})
        numbers = {name: float(value) for name, value in values.items()}
        self.batch = {name: value for name, value in numbers.items() if not math.isnan(value)}
        for name, value in self.batch.items():
            short = name.removeprefix("metrics/")
            self._sums[short] = self._sums.get(short, 0.0) + value
            self._counts[short] = self._counts.get(short, 0) + 1
        self._batches += 1

    def close(self, state: State, figures: Mapping[str, float]) -> None:
        """Finish the iteration before the one of the state's clock."""
        iteration = int(state.timestamp.iteration) - 1
        record = self._record(iteration, state) | dict(figures)
        self._records = [r for r in self._records if r[ITERATION] < iteration] + [record]

    def up_to(self, iteration: int, state: State) -> RunHistory:
        """Return the history up to an iteration, which may still be trained: its means so far."""
        records = [r for r in self._records if r[ITERATION] <= iteration]
        if self._batches and all(r[ITERATION] != iteration for r in records):
            records.append(self._record(iteration, state))
        return RunHistory(self._baseline, records)

    def _record(self, iteration: int, state: State) -> dict[str, float]:
        means = {name: total / self._counts[name] for name, total in self._sums.items()}
        record: dict[str, float] = {ITERATION: iteration, BATCHES: self._batches}
        return record | self._play | means | _evaluation(state)

    def write(self, ended: str = "") -> None:
        """Write the history on rank 0; ``ended`` says who ended the run early, and when."""
        history = RunHistory(self._baseline, self._records, ended)
        write_atomically(self._path, history.as_json())

    def state_dict(self) -> dict[str, object]:
        """Return the history so far, including the current iteration."""
        return {
            "baseline": self._baseline,
            "records": self._records,
            "play": self._play,
            "sums": self._sums,
            "counts": self._counts,
            "batches": self._batches,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self._baseline = dict(state.get("baseline", {}))
        self._records = list(state.get("records", []))
        self._play = dict(state.get("play", {}))
        self._sums = dict(state.get("sums", {}))
        self._batches = state.get("batches", 0)
        # A checkpoint without counts is of a version that added up every batch.
        self._counts = dict(state.get("counts", dict.fromkeys(self._sums, self._batches)))


def _evaluation(state: State) -> dict[str, float]:
    """Return the last evaluation's metrics as ``eval/<label>/<name>``; may be a collective."""
    return {
        in_evaluation(label, name): float(metric.compute())
        for label, metrics in (state.eval_metrics or {}).items()
        for name, metric in metrics.items()
        if metric.update_called
    }
