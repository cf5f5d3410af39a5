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
    title="Few rows in the demo's world, from a start that SFT has exhausted: 40 rows",
    about=(
        "As above with 40 careful rows, and the start has had SFT on them, until the held-out NLL "
        "rose: the state in which SPIN's paper begins."
    ),
    num_rows=40,
    exhausted=True,
)
