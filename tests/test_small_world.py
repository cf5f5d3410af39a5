"""The game on a world that can be enumerated: what SPIN is for, measured without sampling error.

Distances are total variation from the data's distribution, exact over all 46656 sequences. The
figures of each game on one machine stand beside the margins that are asked for.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from spin_composer import HFSpinLM
from tests.fixtures.world import base_model, data_distribution, total_variation, world_trainer

ITERATIONS, EPOCHS = 8, 2
BETA = 2.0


class Swapped(HFSpinLM):
    """Takes the generated response for the real one, and the other way round."""

    def _with_loss(self, batch: Any, lengths: Any, pair_loss: Any) -> Any:
        def swapped(policy: Any, opponent: Any, lengths: Any) -> Any:
            return pair_loss(policy.flip(1), opponent.flip(1), lengths.flip(1))

        return super()._with_loss(batch, lengths, swapped)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Game:
    """A finished game: the distance reached, and what was logged on the way."""

    distance: float
    accuracies: list[float]
    """Per iteration, mean over its batches."""
    losses: list[float]
    """Per batch."""
    real_rewards: list[float]
    """Per batch."""


def play(
    folder: Path, model: Any, iterations: int = ITERATIONS, epochs: int = EPOCHS, **kwargs: Any
) -> Game:
    if kwargs.get("loss") != "space":
        kwargs = {"beta": BETA, **kwargs}
    trainer = world_trainer(folder, copy.deepcopy(model), iterations, epochs, **kwargs)
    trainer.fit()
    records = trainer.state.algorithms[0].records.history.state_dict()["records"]
    (memory,) = trainer.logger.destinations
    losses, rewards = (
        [float(value) for _, value in memory.data[name]]
        for name in ("loss/train/total", "metrics/train/SpinRewardReal")
    )
    game = Game(
        total_variation(trainer.state.model.model),
        [record["train/SpinAccuracy"] for record in records],
        losses,
        rewards,
    )
    trainer.close()
    return game


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Sum in one order, so that a figure is the same on every run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def base() -> Any:
    return base_model()


@pytest.fixture(scope="module")
def spin(base: Any, tmp_path_factory: pytest.TempPathFactory) -> Game:
    return play(tmp_path_factory.mktemp("spin"), base)


def test_the_distance_is_a_distance(base: Any) -> None:
    assert float(data_distribution().sum()) == pytest.approx(1, abs=1e-12)
    assert 0.75 < total_variation(base) < 0.9
    with torch.no_grad():
        silent = copy.deepcopy(base)
        silent.lm_head.weight.zero_()
    uniform = torch.full_like(data_distribution(), 1 / 8**6)  # two of eight tokens are no symbols
    missing = 1 - float(uniform.sum())
    expected = float((uniform - data_distribution()).abs().sum() + missing) / 2
    assert total_variation(silent) == pytest.approx(expected, abs=1e-6)


def test_spin_lowers_the_distance_by_a_quarter(base: Any, spin: Game) -> None:
    assert spin.distance < 0.75 * total_variation(base)


@pytest.mark.slow
def test_refreshing_the_opponent_beats_one_long_iteration(
    base: Any, spin: Game, tmp_path: Path
) -> None:
    long = play(tmp_path, base, iterations=1, epochs=ITERATIONS * EPOCHS)
    assert len(long.losses) == len(spin.losses)  # the same number of optimizer steps
    assert spin.distance < long.distance - 0.08


def test_swapped_labels_get_worse_than_the_base(base: Any, tmp_path: Path) -> None:
    swapped = play(tmp_path, base, iterations=2, wrap=Swapped.from_model)
    assert swapped.distance > total_variation(base) + 0.08


def test_first_step_loss_is_log_two(spin: Game) -> None:
    per_iteration = len(spin.losses) // ITERATIONS
    first = spin.losses[::per_iteration]
    assert len(first) == ITERATIONS
    assert first == pytest.approx([math.log(2)] * ITERATIONS, abs=1e-4)
    assert all(loss < math.log(2) for loss in spin.losses[per_iteration - 1 :: per_iteration][:3])


def test_accuracy_falls_toward_one_half(spin: Game) -> None:
    early, late = sum(spin.accuracies[:2]) / 2, sum(spin.accuracies[-2:]) / 2
    assert early > 0.58
    assert late < early - 0.04
    assert abs(late - 0.5) < 0.08


def test_space_lowers_the_distance_and_begins_at_its_own_loss(base: Any, tmp_path: Path) -> None:
    space = play(tmp_path, base, iterations=4, loss="space")  # .63; SPIN by then .66
    assert space.distance < 0.9 * total_variation(base)
    first = space.losses[:: len(space.losses) // 4]
    assert first == pytest.approx([2 * math.log(2)] * 4, abs=1e-4)


def test_dpop_lets_real_responses_fall_less_than_spin(
    base: Any, spin: Game, tmp_path: Path
) -> None:
    dpop = play(tmp_path, base, iterations=1, loss="dpop", dpop_lambda=5.0)
    assert dpop.distance < total_variation(base)
    assert dpop.losses[0] == pytest.approx(math.log(2), abs=1e-4)
    # of a batch's mean, in the first iteration: -.9 for -1.3
    assert min(dpop.real_rewards) > min(spin.real_rewards[: len(dpop.losses)]) + 0.2


def test_ditto_lowers_the_distance_with_twenty_rows(base: Any, tmp_path: Path) -> None:
    few = {"game": "ditto", "num_rows": 20, "responses_per_prompt": 10}
    ditto = play(tmp_path, base, iterations=4, epochs=1, **few)  # .78, of .82
    assert ditto.distance < 0.97 * total_variation(base)
    assert ditto.losses[0] == pytest.approx(math.log(2), abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_truths_hold_for_other_seeds(seed: int, tmp_path: Path) -> None:
    base = base_model(seed=seed)
    start = total_variation(base)
    spin = play(tmp_path / "spin", base, seed=seed)
    long = play(tmp_path / "long", base, iterations=1, epochs=ITERATIONS * EPOCHS, seed=seed)
    swapped = play(tmp_path / "swap", base, iterations=2, wrap=Swapped.from_model, seed=seed)
    assert spin.distance < 0.75 * start
    assert spin.distance < long.distance
    assert swapped.distance > start
