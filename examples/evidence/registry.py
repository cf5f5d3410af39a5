"""The worlds that need no files."""

from __future__ import annotations

from examples.evidence.demo_world import DemoWorld
from examples.evidence.exact_world import ExactWorld
from examples.evidence.worlds import World


def small_worlds() -> list[World]:
    """Return the worlds that are made on the spot, in the order of docs/evidence.md."""
    return [ExactWorld(), FEW, DemoWorld()]


FEW = DemoWorld(
    name="few",
    num_rows=100,
    answers=8,
    exhausted=True,
    changes=(("optimizer.lr", 1.0e-4),),
)
"""100 careful rows, each eight times, from a start that SFT on them has exhausted: the state in
which SPIN's paper begins. The learning rate is a sixth of the demo's."""
