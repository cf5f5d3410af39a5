"""The plan of an iteration: which prompts are played, in which units, with which seeds."""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import numpy as np
import pytest
from fixtures.units import units_of_run

from spin_composer.play.plan import (
    PlayUnit,
    ReplayUnit,
    Unit,
    plan_units,
    too_few_units_warning,
    unit_seed,
)
from spin_composer.settings.spin import SpinSettings


def plan(iteration: int, num_examples: int = 23, seed: int = 7, **settings: Any) -> list[Unit]:
    return units_of_run(SpinSettings(**{"unit_size": 5, **settings}), seed, iteration, num_examples)


def played(units: list[Unit]) -> np.ndarray:
    """Return the indices of all prompts that are played."""
    return np.concatenate([u.indices for u in units if isinstance(u, PlayUnit)])


def test_all_examples_are_played_once_in_order() -> None:
    units = plan(0)
    assert [len(u.indices) for u in units if isinstance(u, PlayUnit)] == [5, 5, 5, 5, 3]
    assert played(units).tolist() == list(range(23))


def test_a_prompt_is_answered_as_often_as_is_asked_in_one_unit() -> None:
    units = [unit for unit in plan(0, responses_per_prompt=3) if isinstance(unit, PlayUnit)]
    assert [len(unit.indices) for unit in units] == [15, 15, 15, 15, 9]
    assert units[1].indices.tolist() == [index for index in range(5, 10) for _ in range(3)]
    assert too_few_units_warning(units, 5) is None
    assert "unit_size to 3 or less" in str(too_few_units_warning(units, 8))


def test_units_are_a_function_of_settings_and_position_alone() -> None:
    # There is no rank to give: what a unit holds cannot depend on who makes it.
    names = list(inspect.signature(plan_units).parameters)
    assert names == ["settings", "seed", "iteration", "num_examples", "replayed"]
    once, twice = plan(3, samples_per_iteration=11), plan(3, samples_per_iteration=11)
    assert [str(unit) for unit in once] == [str(unit) for unit in twice]


def test_subsets_hold_no_example_twice_and_are_fresh_each_iteration() -> None:
    subsets = [played(plan(k, num_examples=1000, samples_per_iteration=100)) for k in range(4)]
    for subset in subsets:
        assert len(set(subset.tolist())) == 100
        assert np.all((subset >= 0) & (subset < 1000))
    shared = [np.isin(a, b).sum() for a, b in itertools.pairwise(subsets)]
    assert all(2 <= count <= 25 for count in shared)  # 10 expected of independent draws
    assert len({tuple(subset) for subset in subsets}) == 4


def test_subsets_depend_on_the_seed() -> None:
    a, b = (played(plan(0, 1000, seed, samples_per_iteration=100)) for seed in (1, 2))
    assert a.tolist() != b.tolist()


def test_a_subset_larger_than_the_data_is_all_of_it() -> None:
    assert played(plan(2, samples_per_iteration=99)).tolist() == list(range(23))


@pytest.mark.parametrize(
    ("iteration", "replay", "sources"),
    [(0, 1, []), (1, 0, []), (1, 1, [0]), (3, 1, [2]), (3, 2, [1, 2]), (2, 9, [0, 1])],
)
def test_the_played_units_of_earlier_iterations_are_replayed(
    iteration: int, replay: int, sources: list[int]
) -> None:
    units = plan(iteration, replay=replay)
    assert all(isinstance(unit, PlayUnit) for unit in units[:5])
    expected = [ReplayUnit(source, unit) for source in sources for unit in range(5)]
    assert units[5:] == expected  # never a replayed unit of a replayed unit


def test_unit_seeds_are_distinct() -> None:
    seeds = {
        unit_seed(seed, iteration, unit)
        for seed in (0, 1, 17, 2**31 - 1)
        for iteration in range(8)
        for unit in range(64)
    }
    assert len(seeds) == 4 * 8 * 64
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert unit_seed(17, 3, 5) == unit_seed(17, 3, 5)


def test_more_ranks_than_units_are_told_the_unit_size_that_keeps_them_busy() -> None:
    # replayed units are only rescored: five are played, of 23 prompts
    units = plan(1)
    assert too_few_units_warning(units, 5) is None
    assert too_few_units_warning(units, 7) == (
        "5 unit(s) for 7 ranks: 2 of them are idle. Set algorithms.spin.unit_size to 4 or less."
    )
    assert too_few_units_warning(plan(1, unit_size=3), 7) is None


def test_no_one_is_warned_where_smaller_units_would_only_make_a_second_round() -> None:
    assert (
        too_few_units_warning(plan(0, unit_size=4), 7) is None
    )  # six of 4 and less; of 3 there are eight
    assert "to 1 or less" in str(too_few_units_warning(plan(0), 24))
    assert too_few_units_warning(plan(0, unit_size=1), 24) is None
