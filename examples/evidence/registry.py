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
    title="Few rows in the demo's world, from a start that SFT has exhausted",
    about=(
        "The same with 100 careful rows, each eight times, and the start has had SFT on them until "
        "the held-out NLL rose: the state in which SPIN's paper begins. The learning rate is a "
        "sixth of the demo's."
    ),
    num_rows=100,
    answers=8,
    exhausted=True,
    changes=(("optimizer.lr", 1.0e-4),),
)
