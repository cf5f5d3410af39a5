"""Where a run's time went, iteration by iteration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from spin_composer.report.history import ITERATION, PLAY_SECONDS, PLAY_SHARE, Metrics

GENERATION_SECONDS, SCORING_SECONDS = "spin/generation_seconds", "spin/scoring_seconds"


@dataclass(frozen=True)
class TimeSpent:
    """The time of an iteration, in seconds; None where the history does not have it."""

    iteration: int
    play: float | None
    """Wall-clock time of play."""
    generation: float | None
    """Of generation within it, summed over ranks."""
    scoring: float | None
    """Of scoring within it, summed over ranks."""
    rest: float | None
    """Wall-clock time of training, evaluation, checkpoints and exports."""


def time_spent(iterations: Sequence[Metrics]) -> list[TimeSpent]:
    """Return the time of each finished iteration, from the history's records."""
    found = []
    played = whole = 0.0  # seconds of the run so far
    for record in iterations:
        play, share = record.get(PLAY_SECONDS), record.get(PLAY_SHARE)
        rest = None
        if play is not None and share:
            played += play
            before, whole = whole, played / share
            rest = max(0.0, whole - before - play)
        found.append(
            TimeSpent(
                int(record[ITERATION]),
                play,
                record.get(GENERATION_SECONDS),
                record.get(SCORING_SECONDS),
                rest,
            )
        )
    return found
