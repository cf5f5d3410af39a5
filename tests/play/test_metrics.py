"""The metrics of play are the iteration's: added up over units, each by its registered function."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from spin_composer.play.metrics import PLAY_METRICS, PlayReport, register_play_metric
from spin_composer.store.unit import UnitReport

PLAYED = UnitReport("play", 8, 6, 2, 1, 40, 2.0, 0.5, 1e-7, began=1.0, ended=4.0)
UNITS = (
    PLAYED,
    replace(PLAYED, prompts=4, pairs=4, degenerate=0, noise=3e-7, logprob_gap=0.01),
    replace(PLAYED, kind="replay", prompts=5, pairs=5, degenerate=0, generated_tokens=0),
    replace(PLAYED, kind="between", prompts=0, pairs=2, degenerate=0, scoring_seconds=0.0),
)
EXPECTED = {
    "spin/server_gap": 0.01,
    "spin/pairs": 16,
    "spin/replayed_pairs": 5,
    "spin/between_pairs": 2,
    "spin/generated_length": 80 / 12,
    "spin/truncated_fraction": 2 / 12,
    "spin/degenerate_fraction": 2 / 12,
    "spin/generated_tokens_per_second_per_rank": 20,
    "spin/generation_seconds": 4,
    "spin/scoring_seconds": 1.5,
    "spin/scoring_noise": 3e-7,
    "spin/left_out_pairs": 1,
    "spin/play_seconds": 9,
}


def test_metrics_equal_their_definitions_and_are_logged_in_the_order_of_the_registry() -> None:
    found = PlayReport(UNITS, batch_size=4, seconds=9.0).metrics()
    assert found == pytest.approx(EXPECTED)
    assert list(found) == list(EXPECTED) == list(PLAY_METRICS)


def test_a_metric_that_a_play_does_not_have_is_not_logged() -> None:
    assert not {"spin/server_gap", "spin/between_pairs"} & set(PlayReport((PLAYED,)).metrics())


def test_a_play_without_units_divides_by_nothing() -> None:
    assert set(PlayReport(()).metrics().values()) == {0}


@pytest.fixture
def registry() -> Iterator[dict]:
    """The registry of play's metrics, which is as before afterward."""
    before = dict(PLAY_METRICS)
    yield PLAY_METRICS
    PLAY_METRICS.clear()
    PLAY_METRICS.update(before)


def test_a_metric_is_one_registered_function(registry: dict) -> None:
    @register_play_metric("spin/longest_unit", "pairs")
    def longest_unit(play: PlayReport) -> float:
        """Pairs of the largest unit."""
        return max(unit.pairs for unit in play.units)

    assert PlayReport(UNITS).metrics()["spin/longest_unit"] == 6
    with pytest.raises(ValueError, match="'spin/longest_unit' is registered already"):
        register_play_metric("spin/longest_unit", "pairs")(longest_unit)
