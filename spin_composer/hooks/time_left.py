"""When a run ends, by the wall-clock time of the iterations that this process has made whole."""

from __future__ import annotations

import sys
import time
from datetime import datetime, timedelta
from typing import TextIO

from composer.utils import dist

from spin_composer.play.progress import Clock, format_duration


class TimeLeft:
    """Prints on rank 0, as an iteration starts, when the run ends; nothing as the first one does.

    An iteration is play, training, evaluation and saving: from its start to the next one's.

    Args:
        clock: Returns the time in seconds.
        stream: Output; stderr if None.
    """

    def __init__(self, clock: Clock = time.monotonic, stream: TextIO | None = None):
        self.num_iterations = 0
        """Of the run; nothing is printed before it is set."""
        self._clock = clock
        self._stream = stream
        self._started: float | None = None
        self._whole = 0
        self._seconds = 0.0

    def start_iteration(self, iteration: int) -> None:
        """Finish the iteration before this one, if this process has made it; print the line."""
        now = self._clock()
        if self._started is not None:
            self._seconds += now - self._started
            self._whole += 1
        self._started = now
        left = self.num_iterations - iteration
        if self._whole and left > 0 and dist.get_global_rank() == 0:
            text = self.text(left * self._seconds / self._whole, datetime.now())
            print(f"iteration {iteration}: {text}", file=self._stream or sys.stderr, flush=True)

    def add_earlier_play(self, seconds: float) -> None:
        """Count what earlier processes have spent on the play of this iteration as its time."""
        self._seconds += seconds

    @staticmethod
    def text(seconds: float, now: datetime) -> str:
        """Return the line for the seconds that are left; another day is named."""
        end = now + timedelta(seconds=seconds)
        day = "" if end.date() == now.date() else f"{end:%Y-%m-%d} "
        return f"the run ends at about {day}{end:%H:%M}, {format_duration(seconds)} left"
