"""Total wall-clock time of overlapping time spans."""

from __future__ import annotations

import math
from collections.abc import Iterable


def union_seconds(spans: Iterable[tuple[float, float]], until: float = math.inf) -> float:
    """Return the length in seconds of the union of time spans, up to ``until``.

    Args:
        spans: Starts and ends, in seconds since the epoch. A span that does not end after its start
            (the clock was set back; 0, 0 if it was not recorded) counts nothing.
        until: Cut-off time.
    """
    seconds, reached = 0.0, -math.inf
    for began, ended in sorted(spans):
        began, ended = max(began, reached), min(ended, until)
        if ended > began:
            seconds, reached = seconds + ended - began, ended
    return seconds
