"""The progress of play over all ranks: prompts answered, pairs scored, time left.

A unit takes minutes, so progress counts the prompts and pairs within units. Each rank has a
:class:`Meter`; its counts are added up in the key-value store, and rank 0 shows the sums. The
speeds of generation and of scoring are measured in this play only; existing units do not count.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

from composer.utils import dist
from tqdm import tqdm

_FIRST_LINE_SECONDS, _LINE_SECONDS = 10.0, 60.0
"""Intervals of progress lines if the output is not a terminal."""

Clock = Callable[[], float]


@dataclass
class Counts:
    """Progress of one rank, or of all ranks."""

    answered: int = 0
    """Prompts."""
    tokens: int = 0
    scored: int = 0
    """Pairs."""
    answering_ms: int = 0
    """Summed over ranks."""
    scoring_ms: int = 0
    skipped_prompts: int = 0
    """Prompts that another process has answered."""
    skipped_pairs: int = 0
    """Pairs that another process has scored, or whose response equals the real one."""


FIELDS = tuple(Counts.__dataclass_fields__)


class Meter:
    """Counts the progress of one rank; thread-safe.

    Args:
        clock: Returns the time in seconds.
    """

    def __init__(self, clock: Clock = time.monotonic):
        self.clock = clock
        self.counts = Counts()
        self._taken = Counts()
        self._lock = threading.Lock()
        self._before = (0, 0)
        self._running: dict[str, float] = {}
        """When each activity was last added up; a unit may be answered while another is scored."""

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Measure the time of answering a unit's prompts, counted by :meth:`record_answered`."""
        self._before = (self.counts.answered, self.counts.tokens)
        with self._timed("answering_ms"):
            yield

    def record_answered(self, answered: int, tokens: int) -> None:
        """Set the numbers of prompts answered and tokens generated so far in this unit."""
        with self._lock:
            self.counts.answered = self._before[0] + answered
            self.counts.tokens = self._before[1] + tokens

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """Measure the time of scoring."""
        with self._timed("scoring_ms"):
            yield

    def record_scored(self, pairs: int) -> None:
        """Count scored pairs."""
        with self._lock:
            self.counts.scored += pairs

    def skip(self, prompts: int, pairs: int) -> None:
        """Count work that another process has done, or that is not needed."""
        with self._lock:
            self.counts.skipped_prompts += prompts
            self.counts.skipped_pairs += pairs

    def pop_changes(self) -> dict[str, int]:
        """Return the changes since the last call; a token count may also decrease."""
        with self._lock:
            self._tick()
            added = {n: getattr(self.counts, n) - getattr(self._taken, n) for n in FIELDS}
            self._taken = Counts(**vars(self.counts))
        return {name: more for name, more in added.items() if more}

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        with self._lock:
            self._running[name] = self.clock()
        try:
            yield
        finally:
            with self._lock:
                self._tick()
                del self._running[name]

    def _tick(self) -> None:
        """Add the elapsed time of the running activities, in whole milliseconds."""
        for name, since in self._running.items():
            more = int(1000 * (self.clock() - since))
            setattr(self.counts, name, getattr(self.counts, name) + more)
            self._running[name] = since + more / 1000


@dataclass(frozen=True)
class Totals:
    """The amount of work of a play."""

    units: int
    prompts: int
    pairs: int
    existing_units: int = 0
    """Units made before, not part of the other numbers."""
    max_new_tokens: int = sys.maxsize
    """The longest response has as many."""


def seconds_left(totals: Totals, counts: Counts, units: int, elapsed: float) -> float | None:
    """Estimate the remaining seconds of play from the speeds measured so far.

    Args:
        totals: The amount of work.
        counts: Progress of all ranks.
        units: Finished units; at most one rank works on each remaining one.
        elapsed: Seconds since the start, including time that ranks spend on other things.

    Returns:
        None until a prompt has been answered. Until a pair has been scored, the time of generation
        alone. While the first responses of a batch end, its others have tokens too, so the time
        per answered prompt is too long by up to the size of the batch; what the missing responses
        take at their longest bounds it.
    """
    prompts = totals.prompts - counts.answered - counts.skipped_prompts
    pairs = totals.pairs - counts.scored - counts.skipped_pairs
    work = 0.0  # in seconds of one rank
    if prompts > 0:
        if not counts.answered:
            return None
        ms = prompts * counts.answering_ms / counts.answered
        if counts.tokens:
            most = (totals.prompts - counts.skipped_prompts) * totals.max_new_tokens
            ms = min(ms, (most - counts.tokens) * counts.answering_ms / counts.tokens)
        work += ms / 1000
    if pairs > 0 and counts.scored:
        work += pairs * counts.scoring_ms / counts.scored / 1000
    elif pairs > 0 and prompts <= 0:
        return None
    done = (counts.answering_ms + counts.scoring_ms) / 1000
    alone = 1 / max(1, totals.units - units)
    return work * max(elapsed / done if done else 0.0, alone)


class Progress:
    """Shows the progress of all ranks on rank 0: a bar on a terminal, else a line periodically.

    Args:
        iteration: Index of the iteration.
        totals: The amount of work.
        clock: Returns the time in seconds.
        stream: Output; stderr if None.
    """

    def __init__(
        self,
        iteration: int,
        totals: Totals,
        clock: Clock = time.monotonic,
        stream: TextIO | None = None,
    ):
        self.name = f"iteration {iteration}: play"
        self.totals = totals
        self.meter = Meter(clock)
        self.clock = clock
        self.stream = stream or sys.stderr
        self.started = clock()
        self._next_line = self.started + _FIRST_LINE_SECONDS
        self._last = (Counts(), 0)
        self._lock = threading.Lock()
        self._shows = dist.get_global_rank() == 0
        self._bar: tqdm | None = None
        if self._shows and self.stream.isatty():
            self._bar = tqdm(
                total=totals.prompts + totals.pairs,
                desc=self.name,
                bar_format="{l_bar}{bar:20}| {postfix}",
                file=self.stream,
                dynamic_ncols=True,
            )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        with self._lock:
            if self._bar is not None:
                self._bar.close()
            elif self._shows and error is None:
                self._print(self.text(*self._last))
            self._shows = False

    def show(self, counts: Counts, units: int) -> None:
        """Show the progress of all ranks; thread-safe.

        Args:
            counts: Progress of all ranks.
            units: Finished units.
        """
        with self._lock:
            if not self._shows:
                return
            self._last = (counts, units)
            if self._bar is not None:
                skipped = counts.skipped_prompts + counts.skipped_pairs
                self._bar.n = min(self._bar.total, counts.answered + counts.scored + skipped)
                self._bar.set_postfix_str(self.text(counts, units), refresh=True)
            elif self.clock() >= self._next_line and units < self.totals.units:
                self._next_line = self.clock() + _LINE_SECONDS
                self._print(self.text(counts, units))

    def text(self, counts: Counts, units: int) -> str:
        """Return the progress as text."""
        elapsed = max(self.clock() - self.started, 1e-9)
        totals, parts = self.totals, []
        if prompts := totals.prompts - counts.skipped_prompts:
            speed = f"{counts.tokens} tokens, {counts.tokens / elapsed:.0f}/s"
            parts.append(f"{counts.answered} of {prompts} prompts answered ({speed})")
        parts.append(f"{counts.scored} of {totals.pairs - counts.skipped_pairs} pairs scored")
        if totals.existing_units:
            parts.append(f"{totals.existing_units} units existed")
        if units >= totals.units:
            return ", ".join([*parts, f"done in {format_duration(elapsed)}"])
        left = seconds_left(totals, counts, units, elapsed)
        if left is None:
            return ", ".join(parts)
        scoring = "" if counts.scored else ", and scoring"
        return ", ".join([*parts, f"{format_duration(left)} left{scoring}"])

    def _print(self, text: str) -> None:
        print(f"{self.name}: {text}", file=self.stream, flush=True)


def format_duration(seconds: float) -> str:
    """Return seconds as ``4:05:06``, or ``05:06`` where there are no hours."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"
