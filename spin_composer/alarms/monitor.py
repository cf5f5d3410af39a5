"""Looks for alarms while a run goes, and raises each once."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from typing import Any

from spin_composer.alarms.rules import (
    ALARMS,
    OF_BATCHES,
    REWARD_GENERATED,
    REWARD_REAL,
    Alarm,
    Figures,
    Judged,
    Moment,
    RunFigures,
    mean,
)
from spin_composer.store.layout import iteration_number

log = logging.getLogger(__name__)

_LOOKS = 20
"""How often an iteration's batches are looked at: each look reads all of them."""
_START = "start"
"""The start model's name in a judge's result."""


class AlarmMonitor:
    """The alarms of a run; its state is part of the checkpoint, so a resumed run repeats none.

    All ranks are given the same figures, and so raise the same alarms.

    Args:
        switches: By alarm: false, it is off. Others are on.
    """

    def __init__(self, switches: Mapping[str, bool]):
        self._rules = {name: rule for name, rule in ALARMS.items() if switches.get(name, True)}
        self._raised: list[str] = []
        self._plays: list[dict[str, float]] = []
        self._batches: list[dict[str, float]] = []
        self._margins: dict[int, float] = {}
        self._iteration = self._num_batches = 0
        self._beta, self._per_token = 1.0, False

    def start_iteration(
        self, play: Figures, iteration: int, num_batches: int, beta: float, per_token: bool
    ) -> list[Alarm]:
        """Start an iteration after its play; return the alarms of it.

        Args:
            play: Metrics of its play and figures of its responses.
            iteration: Index of the iteration.
            num_batches: Batches that it will train.
            beta: Of its loss.
            per_token: Whether rewards are divided by numbers of tokens.
        """
        self._plays.append(dict(play))
        self._batches = []
        self.resume_iteration(iteration, num_batches, beta, per_token)
        return self._look(Moment.PLAY)

    def resume_iteration(
        self, iteration: int, num_batches: int, beta: float, per_token: bool
    ) -> None:
        """Continue an iteration after a restart; see :meth:`start_iteration`."""
        self._iteration, self._num_batches = iteration, num_batches
        self._beta, self._per_token = beta, per_token

    def add_batch(self, values: Figures) -> list[Alarm]:
        """Add a batch's metrics, by logged name; return the alarms of training."""
        self._batches.append({name: values[name] for name in OF_BATCHES if name in values})
        every = max(1, self._num_batches // _LOOKS)
        return self._look(Moment.TRAINING) if len(self._batches) % every == 0 else []

    def close_iteration(self) -> None:
        """Keep the margin of an iteration that has ended."""
        real, generated = (mean(self._batches, x) for x in (REWARD_REAL, REWARD_GENERATED))
        self._margins[self._iteration] = (real - generated) / self._beta

    def add_judged(self, judged: Mapping[int, Judged]) -> list[Alarm]:
        """Look at what a judge measured so far; return the alarms of it."""
        return self._look(Moment.JUDGED, judged)

    def _look(self, moment: Moment, judged: Mapping[int, Judged] | None = None) -> list[Alarm]:
        figures = RunFigures(
            self._plays, self._batches, self._num_batches, self._beta, self._per_token,
            self._margins, judged or {},
        )  # fmt: skip
        found: list[Alarm] = []
        for name, alarm in self._rules.items():
            if alarm.moment is moment and name not in self._raised:
                finding = alarm.rule(figures)
                if finding is not None:
                    self._raised.append(name)
                    found.append(Alarm(name, self._iteration, finding, alarm.advice))
        return found

    def state_dict(self) -> dict[str, object]:
        """Return what a resumed run needs, in plain types; batches by column, which is small."""
        return {
            "raised": list(self._raised),
            "plays": list(self._plays),
            "batches": {x: [b.get(x, math.nan) for b in self._batches] for x in OF_BATCHES},
            "margins": dict(self._margins),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`; of an older version's checkpoint there is none."""
        self._raised = list(state.get("raised", []))
        self._plays = list(state.get("plays", []))
        columns = state.get("batches", {})
        rows = zip(*columns.values(), strict=True)
        self._batches = [dict(zip(columns, row, strict=True)) for row in rows]
        self._margins = dict(state.get("margins", {}))


def read_judged(text: str | None) -> dict[int, Judged]:
    """Return what a judge measured, by the iteration that trained the policy; the start's by -1.

    An export whose name has no iteration (``ba7``) is left out.

    Args:
        text: Text of ``judge.json``; None if nothing is judged.
    """
    try:
        models = json.loads(text)["models"] if text else []
        found = {str(m["name"]): m["measures"]["classifier_accuracy"] for m in models}
        judged = {n: Judged(x["value"], x["standard_error"]) for n, x in found.items()}
        numbers = {n: -1 if n == _START else iteration_number(n) for n in judged}
        return {number: judged[n] for n, number in numbers.items() if number is not None}
    except (ValueError, KeyError, TypeError) as error:
        log.warning(f"judge.json is not readable ({error!r}): no alarm looks at it.")
        return {}
