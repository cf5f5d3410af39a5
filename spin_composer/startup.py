"""Where the time from a process's start to its first training batch goes, in one line.

A phase lasts until the next one begins, so that the phases sum to the whole time.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Literal, get_args

Phase = Literal[
    "the program before",  # of a run in Python: all before SPIN's first part
    "imports", "tokenizer and loggers", "rows", "model", "Trainer", "checkpoint", "evaluation",
    "checks", "store", "play", "first batch",
]  # fmt: skip


class StartClock:
    """Divides the time since a start into phases.

    Args:
        started: The start, by ``clock``.
        clock: Returns the time in seconds.
    """

    def __init__(self, started: float, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._started = self._since = started
        self._phase: Phase = "the program before"
        self._seconds: dict[Phase, float] = {}
        self.has_stopped = False
        """The first batch has been reached."""

    @property
    def phases(self) -> set[Phase]:
        """The phases that have ended."""
        return set(self._seconds)

    def begin(self, phase: Phase) -> None:
        """Begin a phase, which ends the one before."""
        now = self._clock()
        self._seconds[self._phase] = self._seconds.get(self._phase, 0.0) + now - self._since
        self._phase, self._since = phase, now

    @contextmanager
    def within(self, phase: Phase) -> Iterator[None]:
        """Measure a phase within another one, which goes on afterward."""
        outer = self._phase
        self.begin(phase)
        try:
            yield
        finally:
            self.begin(outer)

    def rename_all(self, phase: Phase) -> None:
        """Count all the time until now as one phase."""
        self.begin(phase)
        self._seconds = {phase: sum(self._seconds.values())}

    def stop(self) -> str:
        """Return the line: the seconds from the start to now, and of each phase, in their sum."""
        self.begin(self._phase)
        self.has_stopped = True
        tenths = round(10 * (self._since - self._started))
        phases = sorted(self._seconds, key=get_args(Phase).index)
        parts = _round_to_sum([10 * self._seconds[phase] for phase in phases], tenths)
        named = [
            f"{phase} {part / 10:.1f}" for phase, part in zip(phases, parts, strict=True) if part
        ]
        return f"SPIN start: {tenths / 10:.1f} s to the first batch: {', '.join(named)}"


def _round_to_sum(values: list[float], total: int) -> list[int]:
    """Round values to whole numbers of a given sum, those up that lose the most otherwise."""
    rounded = [int(value) for value in values]
    by_loss = sorted(range(len(values)), key=lambda i: rounded[i] - values[i])
    for i in by_loss[: total - sum(rounded)]:
        rounded[i] += 1
    return rounded


@cache
def process_clock() -> StartClock:
    """Return the clock of this process, from its start."""
    return StartClock(time.monotonic() - _process_age())


def _process_age() -> float:
    """Return the seconds since this process started, to a hundredth.

    psutil's ``create_time`` is up to a second off: it adds to the boot's time in whole seconds.
    """
    after_name = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    started = int(after_name[19]) / os.sysconf("SC_CLK_TCK")  # field 22, starttime
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


os.register_at_fork(after_in_child=process_clock.cache_clear)


def begin(phase: Phase) -> None:
    """Begin a phase of this process's start."""
    process_clock().begin(phase)


@contextmanager
def within(phase: Phase) -> Iterator[None]:
    """Measure a phase of this process's start within another one; also a decorator."""
    with process_clock().within(phase):
        yield


def first_batch_reached(is_rank_zero: bool) -> None:
    """Print where the time went: on rank 0, at the first call in a process."""
    clock = process_clock()
    if not clock.has_stopped:
        line = clock.stop()
        if is_rank_zero:
            print(line, file=sys.stderr, flush=True)
