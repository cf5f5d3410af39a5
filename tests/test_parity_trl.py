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
    """The script of benchmarks/, which is not a package."""
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


def curves(losses: list[float], norms: list[float]) -> dict[str, list[float]]:
    return {"losses": losses, "gradient_norms": norms}


def test_curves_are_equal_only_within_the_tolerances(parity: Any) -> None:
    ours = {"a": curves([0.7, 0.5], [3.0, 2.0]), "b": curves([0.7, 0.6], [3.0, 2.5])}
    near, near_norm = 0.5 * parity.TOLERANCE, 2.0 * (1 + 0.5 * parity.NORM_TOLERANCE)
    control = curves([0.7, 0.51], [3.03, 2.1])
    theirs = {"a": curves([0.7, 0.5 + near], [3.0, near_norm]), "b": ours["b"]}
    theirs[parity.CONTROL] = control
    found = parity.compared(ours, theirs)
    assert [row["ok"] for row in found.values()] == [True, True, True]
    assert found["a"]["largest_difference"] == pytest.approx(near)
    for broken in ([0.7, 0.5 + 4 * near], [0.7], [], [0.7, math.nan]):
        assert not parity.compared(ours, theirs | {"a": curves(broken, [3.0, 2.0])})["a"]["ok"]
    for equal in (ours["a"] | {"losses": control["losses"]}, control | {"losses": [0.7, 0.5]}):
        blind = parity.compared(ours, theirs | {parity.CONTROL: equal})
        assert not blind[parity.CONTROL]["ok"], "who sees no difference proves nothing"


def test_a_gradient_of_another_scale_is_seen_where_the_losses_are_the_same(parity: Any) -> None:
    ours = {"accumulation": curves([0.7, 0.5], [3.0, 2.0])}
    theirs = {"accumulation": curves([0.7, 0.5], [12.0, 8.0]), parity.CONTROL: curves([1], [1])}
    assert not parity.compared(ours, theirs)["accumulation"]["ok"]


def test_the_peer_stands_by_itself_and_its_versions_are_pinned() -> None:
    peer = ROOT / "benchmarks" / "parity_trl_peer.py"
    assert not [name for name in imported(peer) if name.split(".")[0].startswith("spin_")]
    lines = (ROOT / "benchmarks" / "parity_trl.txt").read_text(encoding="utf-8").splitlines()
    locked = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    for line in lines:
        assert line.startswith("#") or "==" in line or f"\n{line}==" in locked, line
