"""A run's history: metrics of the initial model and of each finished iteration.

It is the file ``iterations.json`` of the run's store, written by ``hooks.iteration_log``, read by
``spin-composer report``, also on a machine without the model or a GPU.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from spin_composer.errors import StoreError
from spin_composer.store.layout import HISTORY

Metrics = Mapping[str, float]

ITERATION, BATCHES = "iteration", "batches"
"""Keys of an iteration's index and of its number of batches."""
LOSS = "loss/train/total"
"""Composer's name of the loss."""
NLL = "LanguageCrossEntropy"
"""Composer's and llm-foundry's name of the negative log-likelihood per token."""
PAIRS = "spin/pairs"
GENERATED_LENGTH = "spin/generated_length"
TRUNCATED_FRACTION = "spin/truncated_fraction"
DEGENERATE_FRACTION = "spin/degenerate_fraction"
PLAY_SECONDS = "spin/play_seconds"
"""The metrics of play (``play.metrics``) that reports show."""
PLAY_SHARE = "play_time_share"
"""The share of the run's time that was spent in play, up to the end of an iteration."""
_BASELINE, _ITERATIONS, _ENDED = "baseline", "iterations", "ended"

GIVE_THE_STORE = "Give the folder that algorithms.spin.store names."
EVALUATION = "eval/"
"""Prefix of the names of evaluation metrics."""


def in_training(metric: str) -> str:
    """Return the name of a training metric's mean over an iteration."""
    return f"train/{metric}"


def in_evaluation(label: str, metric: str) -> str:
    """Return the name of a metric of the evaluation loader with that label."""
    return f"{EVALUATION}{label}/{metric}"


ACCURACY, MARGIN = in_training("SpinAccuracy"), in_training("SpinMargin")
"""The metrics of training (``metrics``) that reports show."""


@dataclass(frozen=True)
class RunHistory:
    """The evaluation before the first iteration, and a record per finished iteration."""

    baseline: Metrics
    """Evaluation metrics of the initial model; empty if there was no evaluation."""
    iterations: Sequence[Metrics]
    """Metrics of the finished iterations, in order, by logged name."""
    ended: str = ""
    """Which callback ended the run early, and when; empty if none did."""

    def as_json(self) -> str:
        """Return the file's text."""
        content: dict[str, object] = {_BASELINE: self.baseline, _ITERATIONS: self.iterations}
        if self.ended:
            content[_ENDED] = self.ended
        return json.dumps(content, indent=1) + "\n"


def read_history(store: Path) -> RunHistory:
    """Return the history of the run whose self-play store is ``store``.

    Args:
        store: The folder ``algorithms.spin.store``, or the history's file.

    Raises:
        StoreError: If there is none yet, or the file is damaged.
    """
    path = store / HISTORY if store.is_dir() else store
    return parse_history(_text(path), path)


def parse_history(text: str | None, where: object) -> RunHistory:
    """Parse a history.

    Args:
        text: The file's text; None if there is no file.
        where: Its name, for messages.

    Raises:
        StoreError: If there is none yet, or it is damaged.
    """
    if text is None:
        raise no_history(where)
    try:
        found = json.loads(text)
        iterations = [_to_metrics(record) for record in found[_ITERATIONS]]
        return RunHistory(_to_metrics(found[_BASELINE]), iterations, str(found.get(_ENDED, "")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(
            f"{where} is damaged ({error!r}). Restore it; the next iteration's end writes it anew."
        ) from None


def find_history(path: Path) -> RunHistory | None:
    """Return the history in a file; None if no iteration of the run is finished.

    Raises:
        StoreError: If the file is damaged.
    """
    text = _text(path)
    return None if text is None else parse_history(text, path)


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return None


def _to_metrics(record: Metrics) -> dict[str, float]:
    return {str(name): float(value) for name, value in record.items()}


def no_history(where: object) -> StoreError:
    """Return the error for a run without a finished iteration."""
    return StoreError(
        f"{where} does not exist: no iteration of that run is finished, or it is not its "
        f"store. {GIVE_THE_STORE}"
    )
