"""Time that was spent by several, wall clock: what overlaps counts once."""

from __future__ import annotations

import math
from collections.abc import Iterable


def union_seconds(spans: Iterable[tuple[float, float]], until: float = math.inf) -> float:
    """Return how many seconds before ``until`` lie in at least one of the spans.

    Args:
        spans: Beginnings and ends, in seconds since the epoch. One that does not end after its
            beginning (a clock that was set back; 0, 0 where neither was noted) counts nothing.
        until: Where to cut them off.
    """
    seconds, reached = 0.0, -math.inf
    for began, ended in sorted(spans):
        began, ended = max(began, reached), min(ended, until)
        if ended > began:
            seconds, reached = seconds + ended - began, ended
    return seconds
