"""How far play is, over all ranks: prompts answered, pairs scored, and the time that is left.

A unit takes minutes, so what counts are the prompts and pairs within units. Each rank has a
:class:`Meter`; its counts are added to those of the others in the key-value store, and rank 0
shows the sums. Answering and scoring have a speed each, measured in this play alone: units that
were there before count for nothing.
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
"""When a log, which is no terminal, gets a line."""

Clock = Callable[[], float]


@dataclass
class Counts:
    """What was done, of one rank or of all."""

    answered: int = 0
    """Prompts."""
    tokens: int = 0
    scored: int = 0
    """Pairs."""
    answering_ms: int = 0
    """Summed over ranks."""
    scoring_ms: int = 0
    skipped_prompts: int = 0
    """Not to be answered after all: another process has made their unit."""
    skipped_pairs: int = 0
    """Not to be scored after all: also those whose response equals the real one."""


FIELDS = tuple(Counts.__dataclass_fields__)


class Meter:
    """Counts what one rank does; another thread may take the counts meanwhile.

    Args:
        clock: In seconds.
    """

    def __init__(self, clock: Clock = time.monotonic):
        self.clock = clock
        self.counts = Counts()
        self._taken = Counts()
        self._lock = threading.Lock()
        self._before = (0, 0)
        self._running: tuple[str, float] | None = None

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Within, a unit's prompts are answered; :meth:`record_answered` tells how far that is."""
        self._before = (self.counts.answered, self.counts.tokens)
        with self._timed("answering_ms"):
            yield

    def record_answered(self, answered: int, tokens: int) -> None:
        """Count the prompts of this unit that are answered, and the tokens made for it so far."""
        with self._lock:
            self.counts.answered = self._before[0] + answered
            self.counts.tokens = self._before[1] + tokens

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """Within, pairs are scored."""
        with self._timed("scoring_ms"):
            yield

    def record_scored(self, pairs: int) -> None:
        """Count pairs that are scored."""
        with self._lock:
            self.counts.scored += pairs

    def skip(self, prompts: int, pairs: int) -> None:
        """Count what is not to be done after all."""
        with self._lock:
            self.counts.skipped_prompts += prompts
            self.counts.skipped_pairs += pairs

    def pop_changes(self) -> dict[str, int]:
        """Return what has been added since the last time; a token count may also fall."""
        with self._lock:
            self._tick()
            added = {n: getattr(self.counts, n) - getattr(self._taken, n) for n in FIELDS}
            self._taken = Counts(**vars(self.counts))
        return {name: more for name, more in added.items() if more}

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        with self._lock:
            self._running = (name, self.clock())
        try:
            yield
        finally:
            with self._lock:
                self._tick()
                self._running = None

    def _tick(self) -> None:
        """Add the time of what is under way, to whole milliseconds."""
        if self._running is not None:
            name, since = self._running
            more = int(1000 * (self.clock() - since))
            setattr(self.counts, name, getattr(self.counts, name) + more)
            self._running = (name, since + more / 1000)


@dataclass(frozen=True)
class Totals:
    """What a play is to do."""

    units: int
    prompts: int
    pairs: int
    existing_units: int = 0
    """Made before, and in none of the other numbers."""


def seconds_left(totals: Totals, counts: Counts, units: int, elapsed: float) -> float | None:
    """Return how long play will take yet at the speeds measured so far, as far as can be told.

    Args:
        totals: What is to be done.
        counts: What was done, by all ranks.
        units: How many of the units are done: no more ranks than the others can be at work.
        elapsed: Seconds since its start. It holds what ranks spend on nothing that is counted.

    Returns:
        None while no prompt has been answered.
    """
    prompts = totals.prompts - counts.answered - counts.skipped_prompts
    pairs = totals.pairs - counts.scored - counts.skipped_pairs
    work = 0.0  # in seconds of one rank
    if prompts > 0:
        if not counts.answered:
            return None
        work += prompts * counts.answering_ms / counts.answered / 1000
    if pairs > 0 and counts.scored:
        work += pairs * counts.scoring_ms / counts.scored / 1000
    elif pairs > 0 and prompts <= 0:
        return None
    done = (counts.answering_ms + counts.scoring_ms) / 1000
    alone = 1 / max(1, totals.units - units)
    return work * max(elapsed / done if done else 0.0, alone)


class Progress:
    """Shows rank 0's user how far all ranks are: a bar on a terminal, else a line now and then.

    Args:
        iteration: Which one is played.
        totals: What is to be done.
        clock: In seconds.
        stream: Where it is shown.
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
        """Show what all ranks have done; may be called by any thread.

        Args:
            counts: Of all ranks.
            units: Of those that were to be made, how many are done.
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
        """Return what is shown."""
        elapsed = max(self.clock() - self.started, 1e-9)
        totals, parts = self.totals, []
        if prompts := totals.prompts - counts.skipped_prompts:
            speed = f"{counts.tokens} tokens, {counts.tokens / elapsed:.0f}/s"
            parts.append(f"{counts.answered} of {prompts} prompts answered ({speed})")
        parts.append(f"{counts.scored} of {totals.pairs - counts.skipped_pairs} pairs scored")
        if totals.existing_units:
            parts.append(f"{totals.existing_units} units were there")
        if units >= totals.units:
            return ", ".join([*parts, f"done in {_format_duration(elapsed)}"])
        left = seconds_left(totals, counts, units, elapsed)
        if left is None:
            return ", ".join(parts)
        more = "" if counts.scored else "more than "
        return ", ".join([*parts, f"{more}{_format_duration(left)} left"])

    def _print(self, text: str) -> None:
        print(f"{self.name}: {text}", file=self.stream, flush=True)


def _format_duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"
