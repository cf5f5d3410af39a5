"""Attention by branch: what it costs; that it is exact is in test_packed and test_varlen."""

from __future__ import annotations

import torch
from torch.profiler import ProfilerActivity, profile

from spin_composer.model.layout.attention import attend_within
from spin_composer.model.layout.segments import Segment, Segments


def allocated_by(num_pairs: int) -> int:
    """Return the bytes that attention of pairs of 30 tokens allocates, forward and backward."""
    segments = [Segment(30 * i, 10, 10, 10) for i in range(num_pairs)]
    leaves = [torch.randn(1, h, 30 * num_pairs, 16, requires_grad=True) for h in (4, 2, 2)]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        out = attend_within(*leaves, Segments(segments), None, None, kernel=None)
        torch.autograd.grad(out.sum(), leaves)
    events = recorded.profiler.kineto_results.events()  # type: ignore[union-attr]
    return sum(max(0, e.nbytes()) for e in events if e.name() == "[memory]")


def test_work_grows_with_the_number_of_pairs_and_not_with_its_square() -> None:
    few, many = allocated_by(4), allocated_by(32)
    assert few < many < 8.5 * few
