"""Attention by branch: what it costs; that it is exact is in test_packed and test_varlen."""

from __future__ import annotations

from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from spin_composer.model.layout.attention import attend_within
from spin_composer.model.layout.segments import Segment, Segments


def allocated_by(num_pairs: int) -> int:
    """Return the bytes that attention of pairs of 30 tokens allocates, forward and backward."""
    segments = [Segment(30 * i, 10, 10, 10) for i in range(num_pairs)]
    query, key, value = leaves = [
        torch.randn(1, heads, 30 * num_pairs, 16, requires_grad=True) for heads in (4, 2, 2)
    ]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        out = attend_within(query, key, value, Segments(segments), None, None, kernel=None)
        torch.autograd.grad(out.sum(), leaves)
    profiler: Any = recorded.profiler
    events = profiler.kineto_results.events()
    return sum(max(0, e.nbytes()) for e in events if e.name() == "[memory]")


def test_work_grows_with_the_number_of_pairs_and_not_with_its_square() -> None:
    few, many = allocated_by(4), allocated_by(32)
    assert few < many < 8.5 * few
