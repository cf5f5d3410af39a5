"""DITTO's draws and joins beside a plain reference: which pairs, of what, and how many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from fixtures.units import units_of_run

from spin_composer.data.pairs import LENGTH, STOP, Pair
from spin_composer.pair_kinds import PairKind
from spin_composer.play.degenerate import same_ids
from spin_composer.play.draws import draw_places, join_pairs
from spin_composer.play.plan import BetweenUnit, EarlierUnit, PlayUnit, Unit
from spin_composer.settings.spin import SpinSettings


def plan(iteration: int, num_examples: int = 20, **settings: object) -> list[Unit]:
    given = {"game": "ditto", "unit_size": 8, "responses_per_prompt": 7, **settings}
    return units_of_run(SpinSettings(**given), 5, iteration, num_examples)  # type: ignore[arg-type]


def counts(units: Sequence[Unit]) -> tuple[int, int, int]:
    """Return the planned pairs of the three kinds."""
    newest = sum(len(unit.indices) for unit in units if isinstance(unit, PlayUnit))
    earlier = sum(len(unit.draws) for unit in units if isinstance(unit, EarlierUnit))
    return newest, earlier, sum(unit.count for unit in units if isinstance(unit, BetweenUnit))


# --- the plan ---------------------------------------------------------------------------------


def test_the_first_iteration_has_pairs_of_its_own_responses_only() -> None:
    assert counts(plan(0)) == (140, 0, 0)
    assert all(isinstance(unit, PlayUnit) for unit in plan(0))


@pytest.mark.parametrize(
    ("shares", "wanted"),
    [
        ((0.7, 0.2, 0.1), (140, 40, 20)),
        ((0.5, 0.3, 0.2), (140, 84, 56)),
        ((0.2, 0.7, 0.1), (140, 490, 70)),
        ((0.9, 0.1, 0.0), (140, 16, 0)),
        ((1, 0, 0), (140, 0, 0)),
    ],
)
def test_the_planned_pairs_have_the_shares_that_are_set(
    shares: tuple[float, float, float], wanted: tuple[int, int, int]
) -> None:
    names = ("newest", "earlier", "between")
    units = plan(2, ditto=dict(zip(names, shares, strict=True)))
    assert counts(units) == wanted
    drawn = [i for unit in units if isinstance(unit, EarlierUnit) for i in unit.draws]
    assert drawn == list(range(wanted[1]))  # each draw is in one unit
    assert all(len(u.draws) <= 8 and u.total == wanted[1] for u in units if is_earlier(u))


def is_earlier(unit: Unit) -> bool:
    return isinstance(unit, EarlierUnit)


def test_responses_come_from_all_earlier_iterations_and_are_joined_last() -> None:
    units = plan(3)
    played = len([unit for unit in units if isinstance(unit, PlayUnit)])
    earlier = [unit for unit in units if isinstance(unit, EarlierUnit)]
    assert [unit.played for unit in earlier] == [{0: 3, 1: 3, 2: 3}] * 5
    joined = units[-1]
    assert isinstance(joined, BetweenUnit)
    assert (joined.newest, joined.earlier) == (range(played), range(played, played + 5))
    assert sum(isinstance(unit, BetweenUnit) for unit in units) == 1


# --- draws ------------------------------------------------------------------------------------

POOL = [(k, unit, i) for k in range(3) for unit in range(2) for i in range(5)]


@pytest.mark.parametrize("total", [0, 7, 30, 31, 95])
def test_no_place_is_drawn_twice_more_often_than_another(total: int) -> None:
    drawn = draw_places(POOL, total, seed=1, iteration=3)
    assert len(drawn) == total
    assert drawn == sorted(drawn)
    times = Counter(drawn)
    assert set(times) <= set(POOL)
    assert {times[place] for place in POOL} <= {total // 30, -(-total // 30)}


def test_draws_depend_on_seed_and_iteration_alone() -> None:
    first = draw_places(POOL, 9, seed=1, iteration=3)
    assert first == draw_places(list(POOL), 9, seed=1, iteration=3)
    assert first != draw_places(POOL, 9, seed=2, iteration=3)
    assert first != draw_places(POOL, 9, seed=1, iteration=4)
    assert draw_places([], 9, seed=1, iteration=3) == []


def test_every_earlier_iteration_is_drawn_from_alike() -> None:
    drawn = [p for seed in range(200) for p in draw_places(POOL, 6, seed, iteration=3)]
    shares = Counter(iteration for iteration, _, _ in drawn)
    assert all(340 < shares[iteration] < 460 for iteration in range(3)), shares  # 400 each


# --- joins ------------------------------------------------------------------------------------


def pair(row: int, response: int, score: float, finish: int = STOP) -> Pair:
    prompt, real = (np.array([number], np.int32) for number in (row, 900 + row))
    generated = np.array([response], np.int32)
    kind = PairKind.EARLIER if response >= 100 else PairKind.NEWEST
    return Pair(prompt, real, generated, -0.5, score, row, finish, kind)


NEWEST = [pair(row, 10 * row + n, -10.0 * row - n, LENGTH) for row in range(6) for n in range(3)]
EARLIER = [pair(row, 100 + i, -100.0 - i) for i, row in enumerate([0, 0, 1, 3, 5, 8])]


def test_joined_pairs_are_two_responses_to_a_row_with_the_scores_that_they_had() -> None:
    newest = {int(p.generated[0]): p for p in NEWEST}
    earlier = {int(p.generated[0]): p for p in EARLIER}
    joined = join_pairs(NEWEST, EARLIER, 5, seed=1, iteration=2, is_same=same_ids)
    assert len(joined) == 5  # row 8 was not played in this iteration
    for found in joined:
        better, worse = newest[int(found.real[0])], earlier[int(found.generated[0])]
        assert found.index == better.index == worse.index
        assert found.prompt.tolist() == worse.prompt.tolist()
        assert found.opponent_real == better.opponent_generated
        assert found.opponent_generated == worse.opponent_generated
        assert (found.finish_better, found.finish) == (better.finish, worse.finish)
        assert found.kind is PairKind.BETWEEN
    assert len({int(found.generated[0]) for found in joined}) == 5  # each once before one twice


def test_no_two_responses_are_joined_twice_and_all_are_when_as_many_are_asked_for() -> None:
    joined = join_pairs(NEWEST, EARLIER, 99, seed=1, iteration=2, is_same=same_ids)
    found = {(int(p.real[0]), int(p.generated[0])) for p in joined}
    assert len(found) == len(joined) == 15
    assert found == {
        (int(a.generated[0]), int(b.generated[0]))
        for a in NEWEST
        for b in EARLIER
        if a.index == b.index
    }


def test_joins_depend_on_seed_and_iteration_alone() -> None:
    def ids(seed: int, iteration: int) -> list[tuple[int, int]]:
        joined = join_pairs(NEWEST, EARLIER, 4, seed, iteration, same_ids)
        return [(int(p.real[0]), int(p.generated[0])) for p in joined]

    assert ids(1, 2) == ids(1, 2)
    assert len({tuple(ids(seed, k)) for seed in range(4) for k in range(4)}) > 12


def test_equal_responses_are_not_joined() -> None:
    same = [pair(1, 7, -1.0), pair(1, 8, -2.0)]
    old = [pair(1, 7, -3.0)]
    joined = join_pairs(same, old, 9, seed=1, iteration=2, is_same=same_ids)
    assert [(int(p.real[0]), int(p.generated[0])) for p in joined] == [(8, 7)]
    assert join_pairs(same[:1], old, 9, 1, 2, same_ids) == []
    assert join_pairs([], old, 9, 1, 2, same_ids) == []
    assert join_pairs(same, [], 9, 1, 2, same_ids) == []
