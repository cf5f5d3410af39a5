"""Writes a run's figures step by step (``report.steps``), on rank 0.

Lines are collected and written every few seconds, and before each checkpoint: what a kill loses is
past the newest checkpoint, and the resumed run writes it again.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from composer.core import State
from composer.utils import dist

from spin_composer.alarms.rules import Alarm
from spin_composer.report.steps import LEARNING_RATE, TOKENS_PER_SECOND, StepRow, parse_row
from spin_composer.store.base import Store
from spin_composer.store.durable import write_atomically
from spin_composer.store.layout import STEPS

log = logging.getLogger(__name__)

_FLUSH_SECONDS = 5.0

Position = tuple[int, int, int]
"""Iteration, epoch and step."""


class StepLog:
    """The lines of ``steps.jsonl``; its methods are called at Composer's events, on all ranks."""

    def __init__(self) -> None:
        self._store: Store | None = None
        self._start: Position | None = None
        """Where this process started; None once the file has no line past it."""
        self._lines: list[str] = []
        self._flushed = 0.0
        self._early: list[StepRow] = []
        """Evaluations before ``fit()``."""
        self._play: dict[str, float] = {}
        self._alarms: list[Alarm] = []
        """Raised since the last line; alarms of play stand in the line of the first step."""
        self._learning_rate = 0.0
        self._batch_began = 0.0

    def open(self, store: Store, state: State) -> None:
        """Set the store, at ``FIT_START``; nothing is written before the first line is."""
        early, self._early = self._early, []
        if dist.get_global_rank() != 0:
            return
        t = state.timestamp
        self._store, self._start = store, (int(t.iteration), int(t.epoch), int(t.batch))
        self._lines, self._flushed = [], time.monotonic()
        if int(t.batch) == 0:  # else the file has them
            self._lines += [row.as_json() for row in early]

    def start_iteration(self, play: Mapping[str, float]) -> None:
        """Keep the metrics of an iteration's play for the line of its first step."""
        self._play = dict(play)

    def before_dataloader(self) -> None:
        """Start the clock of a step, which includes loading its batch."""
        self._batch_began = time.perf_counter()

    def batch_start(self, state: State) -> None:
        """Keep the learning rate that the step is made with."""
        self._learning_rate = float(state.optimizers[0].param_groups[0]["lr"])

    def add_batch(self, state: State, values: Mapping[str, float]) -> None:
        """Add a trained batch with its metrics, by logged name."""
        seconds = time.perf_counter() - self._batch_began
        assert state.previous_timestamp is not None  # a batch is trained
        tokens = int(state.timestamp.token) - int(state.previous_timestamp.token)
        own = {LEARNING_RATE: self._learning_rate, TOKENS_PER_SECOND: tokens / seconds}
        self._add(_row(state, {**own, **values, **self._play}))
        self._play = {}
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def add_alarms(self, alarms: Sequence[Alarm]) -> None:
        """Add alarms to the next line."""
        self._alarms += alarms

    def add_evaluation(self, state: State) -> None:
        """Add the metrics of the evaluation loader that has just been evaluated."""
        if dist.get_global_rank() != 0:
            return
        label = str(state.dataloader_label)
        names = (state.eval_metrics or {}).get(label, {})
        values = {
            f"metrics/{label}/{name}": float(state.eval_metric_values[name]) for name in names
        }
        row = _row(state, values)
        if self._store is None:
            self._early.append(row)
        else:
            self._add(row)

    def close_iteration(self, state: State, values: Mapping[str, float]) -> None:
        """Add figures of the iteration that has just ended; the clock already shows the next."""
        self._add(_row(state, values, iteration=int(state.timestamp.iteration) - 1))

    def flush(self) -> None:
        """Write the collected lines; before a checkpoint, which is never ahead of them."""
        if self._store is None or not self._lines:
            return
        path = self._store.root / STEPS
        if self._start is not None:
            self._remove_later_lines(self._store, self._start)
            self._start = None
        with open(path, "a", encoding="utf-8") as file:
            file.write("".join(self._lines))
            file.flush()
            os.fsync(file.fileno())
        self._lines, self._flushed = [], time.monotonic()

    def publish(self) -> None:
        """Write the collected lines, where other machines see them too."""
        self.flush()
        if self._store is not None:
            self._store.publish(STEPS)

    def close(self, state: State) -> None:
        """Write the last lines, at ``FIT_END``."""
        if self._alarms:
            t = state.timestamp
            has_ended = not (int(t.epoch_in_iteration) or int(t.batch_in_epoch))
            self._add(_row(state, {}, iteration=int(t.iteration) - has_ended))
        self.publish()
        self._store = None

    def _add(self, row: StepRow) -> None:
        raised, self._alarms = self._alarms, []
        if self._store is not None:
            values = {**row.values, **{f"alarms/{alarm.name}": 1.0 for alarm in raised}}
            self._lines.append(replace(row, values=values, alarms=tuple(raised)).as_json())
        if raised:
            self.flush()

    def _remove_later_lines(self, store: Store, start: Position) -> None:
        """Remove the lines of steps after ``start``: an earlier process wrote them, and was killed.

        On another machine the file is in the object store alone.
        """
        path = store.root / STEPS
        here = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        kept = max((_until(text, start) for text in (here, store.read_published(STEPS))), key=len)
        if kept != here:
            write_atomically(path, kept)


def _row(state: State, values: Mapping[str, float], iteration: int | None = None) -> StepRow:
    t = state.timestamp
    of = int(t.iteration) if iteration is None else iteration
    return StepRow(int(t.batch), of, int(t.epoch), time.time(), values)


def _until(text: str | None, position: Position) -> str:
    """Return a file's lines up to a position, or to one that is not whole; none at step 0."""
    kept: list[str] = []
    for line in (text or "").splitlines(keepends=True):
        try:
            row = parse_row(line)
        except ValueError:
            log.warning(f"{STEPS}: line {len(kept) + 1} is not whole; it and what follows go.")
            break
        if position[-1] == 0 or row.position > position:
            break
        kept.append(line if line.endswith("\n") else f"{line}\n")
    return "".join(kept)
