"""Pieces of ``make parity`` that need no TRL: what is handed over, how curves are judged."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fixtures.models import pair_batch, sequences_of

from spin_composer import SPIN, SpinScheduler
from tests.test_architecture import imported

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def parity() -> Any:
    """The script of benchmarks/, which is no package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import parity_trl

        yield parity_trl
    sys.modules.pop("parity_trl")


def test_the_peer_gets_the_pairs_ids(parity: Any) -> None:
    batch = pair_batch(num_pairs=3, seed=1)
    sides = sequences_of(batch)
    rows = parity.pairs_of(batch)
    assert [row["prompt_ids"] for row in rows] == [p.tolist() for p, _ in sides[::2]]
    assert [row["chosen_ids"] for row in rows] == [r.tolist() for _, r in sides[::2]]
    assert [row["rejected_ids"] for row in rows] == [r.tolist() for _, r in sides[1::2]]


def test_the_peers_schedule_is_ours(parity: Any) -> None:
    scheduler = SpinScheduler(t_warmup=f"{parity.WARMUP_BATCHES}ba")
    algorithm = SPIN(iteration_length="2ep")

    def ours(step: int) -> float:
        t = SimpleNamespace(epoch_in_iteration=step // 10, batch_in_epoch=step % 10, iteration=0)
        state: Any = SimpleNamespace(dataloader_len=10, timestamp=t, algorithms=[algorithm])
        return parity.LEARNING_RATE * scheduler(state)

    assert parity.learning_rates(20) == pytest.approx([ours(step) for step in range(20)])


def test_curves_are_equal_only_within_the_tolerance(parity: Any) -> None:
    ours = {"a": [0.7, 0.5], "b": [0.7, 0.6]}
    near = 0.5 * parity.TOLERANCE
    theirs = {"a": [0.7, 0.5 + near], "b": [0.7, 0.6], parity.CONTROL: [0.7, 0.51]}
    found = parity.compared(ours, theirs)
    assert [row["ok"] for row in found.values()] == [True, True, True]
    assert found["a"]["largest_difference"] == pytest.approx(near)
    for broken in ([0.7, 0.5 + 4 * near], [0.7], [], [0.7, math.nan]):
        assert not parity.compared(ours, theirs | {"a": broken})["a"]["ok"]
    blind = parity.compared(ours, theirs | {parity.CONTROL: [0.7, 0.5]})
    assert not blind[parity.CONTROL]["ok"], "a comparison that sees no difference proves nothing"


def test_the_peer_stands_by_itself_and_its_versions_are_pinned() -> None:
    peer = ROOT / "benchmarks" / "parity_trl_peer.py"
    assert not [name for name in imported(peer) if name.split(".")[0].startswith("spin_")]
    lines = (ROOT / "benchmarks" / "parity_trl.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all("==" in line for line in pins)
    locked = (ROOT / "requirements-foundry.lock").read_text(encoding="utf-8")
    (torch,) = [line for line in pins if line.startswith("torch==")]
    assert torch in locked, "another torch would be downloaded again"
