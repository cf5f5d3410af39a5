"""The phases of a run's start by Composer's events; the line that sums them up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from composer.core import Event
from composer.utils import dist

from spin_composer import startup
from spin_composer.startup import Phase

PHASES: Mapping[Event, tuple[Phase, Phase]] = {
    Event.INIT: ("checks", "Trainer"),
    Event.BEFORE_LOAD: ("checks", "checkpoint"),
    Event.AFTER_LOAD: ("checks", "Trainer"),
    Event.EVAL_STANDALONE_START: ("Trainer", "evaluation"),
    Event.EVAL_STANDALONE_END: ("evaluation", "Trainer"),
    Event.FIT_START: ("checks", "first batch"),
    Event.ITERATION_START: ("play", "first batch"),
}
"""What the algorithm does at an event, and what Composer does after it."""


@contextmanager
def start_phase(event: Event) -> Iterator[None]:
    """Measure what the algorithm does at an event; print the line at the first batch."""
    if event == Event.BATCH_START:
        startup.first_batch_reached(dist.get_global_rank() == 0)
    if event not in PHASES:
        yield
        return
    during, after = PHASES[event]
    startup.begin(during)
    yield
    startup.begin(after)
