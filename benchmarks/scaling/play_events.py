"""The play of one iteration as events: ranks claim units, fail together, and go on.

What spin_composer does: ranks claim units one by one from a shared counter; a finished unit is
kept; the failure of one rank ends the run, each rank loses the unit that it is in the middle of,
and after the restart the missing units are claimed in their order. Beside it two other ways: a
queue of its own for each rank, and nothing kept until all is done.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

MOST_RESTARTS = 1000
"""A run that fails more often is given up: its play would hardly ever end."""

Unit = tuple[int, float]
"""Its number, and its seconds on a rank of nominal speed."""


@dataclass
class Outcome:
    """What a play took; all but the first and the last two in rank-seconds."""

    ranks: int
    busy: float = 0.0
    """In units that were kept."""
    lost: float = 0.0
    """In units that a failure threw away."""
    waiting: float = 0.0
    """Of ranks that found no unit left, for the others."""
    down: float = 0.0
    """From failures to the next claim."""
    wall_seconds: float = 0.0
    restarts: int = 0
    finished: bool = True


@dataclass
class _Segment:
    """What happens between two starts of the run."""

    seconds: float
    busy: float
    lost: float
    waiting: float
    finished: bool


def simulate(
    queues: Sequence[Sequence[float]],
    slowness: Sequence[float],
    time_to_failure: Callable[[], float],
    restart_seconds: float,
    start_over: bool = False,
) -> Outcome:
    """Play all units on all ranks, and return what it took.

    Args:
        queues: Seconds of the units in the order in which they are claimed: one queue that all
            ranks share, or one per rank.
        slowness: [R] per rank: 1.5 takes half as long again for each unit.
        time_to_failure: Draws the seconds from a start of the run to its next failure.
        restart_seconds: From a failure to the next claim; no failure in it.
        start_over: A failure throws away all that was done, not only units in the making.
    """
    assert len(queues) in (1, len(slowness))
    result = Outcome(ranks=len(slowness))
    left = _fresh(queues)
    while True:
        segment = _run(left, slowness, time_to_failure())
        result.wall_seconds += segment.seconds
        result.lost += segment.lost
        result.waiting += segment.waiting
        if start_over and not segment.finished:
            result.lost += segment.busy
            left = _fresh(queues)
        else:
            result.busy += segment.busy
        if segment.finished:
            return result
        if result.restarts == MOST_RESTARTS:
            result.finished = False
            return result
        result.restarts += 1
        result.wall_seconds += restart_seconds
        result.down += restart_seconds * result.ranks


def _fresh(queues: Sequence[Sequence[float]]) -> list[deque[Unit]]:
    return [deque(enumerate(queue)) for queue in queues]


def _run(left: list[deque[Unit]], slowness: Sequence[float], until: float) -> _Segment:
    """Take units from ``left`` until none is left or the run fails at ``until``.

    Units in the making at the failure go back to where they were claimed.
    """
    at_work: list[tuple[float, int, float, Unit]] = []  # end, rank, start, unit
    free_since = [0.0] * len(slowness)
    busy = now = 0.0

    def claim(rank: int) -> None:
        queue = left[rank % len(left)]
        if queue:
            unit = queue.popleft()
            heapq.heappush(at_work, (now + unit[1] * slowness[rank], rank, now, unit))

    for rank in range(len(slowness)):
        claim(rank)
    while at_work and at_work[0][0] <= until:
        now, rank, start, _ = heapq.heappop(at_work)
        busy += now - start
        free_since[rank] = now
        claim(rank)
    finished = not at_work
    if not finished:
        now = until
    lost = sum(now - start for _, _, start, _ in at_work)
    working = {rank for _, rank, _, _ in at_work}
    waiting = sum(now - since for rank, since in enumerate(free_since) if rank not in working)
    for _, rank, _, unit in sorted(at_work, key=lambda work: work[3], reverse=True):
        left[rank % len(left)].appendleft(unit)
    return _Segment(now, busy, lost, waiting, finished)
