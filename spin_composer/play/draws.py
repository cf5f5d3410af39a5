"""DITTO's pairs with earlier responses: which of them are drawn, and how two are joined to one.

Everything here is a function of seed, iteration and the store, so a unit is the same whoever makes
it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from spin_composer.data.pairs import Pair
from spin_composer.pair_kinds import PairKind
from spin_composer.play.degenerate import Comparison
from spin_composer.play.plan import BETWEEN, BetweenUnit, EarlierUnit
from spin_composer.store.base import Store
from spin_composer.store.unit import UnitReport

Place = tuple[int, int, int]
"""Where a stored pair is: iteration, unit, position in the unit."""


def draw_earlier(store: Store, seed: int, iteration: int, unit: EarlierUnit) -> list[Pair]:
    """Return a unit's draws from the pairs that earlier iterations played, as they were stored.

    Args:
        store: Has the complete units of the earlier iterations on this machine.
        seed: Seed of play.
        iteration: The iteration that draws.
        unit: Which draws.
    """
    sizes = {
        (earlier, number): store.report(earlier, number).pairs
        for earlier, count in sorted(unit.played.items())
        for number in range(count)
    }
    pool = [(*at, i) for at, size in sizes.items() for i in range(size)]
    drawn = draw_places(pool, unit.total, seed, iteration)[unit.draws.start : unit.draws.stop]
    found: dict[Place, Pair] = {}
    for earlier, number in dict.fromkeys(place[:2] for place in drawn):
        for i, pair in enumerate(store.read_unit(earlier, number)):
            found[earlier, number, i] = pair
    return [replace(found[place], kind=PairKind.EARLIER) for place in drawn]


def draw_places(pool: Sequence[Place], total: int, seed: int, iteration: int) -> list[Place]:
    """Return ``total`` places of a pool, sorted, so that few units are read for neighbors.

    A pool that is smaller is gone through several times, each time in another order, so that no
    place is drawn twice more often than another; none are drawn from an empty one.
    """
    rng = _generator(seed, iteration, PairKind.EARLIER)
    drawn: list[Place] = []
    while pool and len(drawn) < total:
        drawn += [pool[i] for i in rng.permutation(len(pool))[: total - len(drawn)]]
    return sorted(drawn)


def join_unit(
    store: Store, seed: int, iteration: int, unit: BetweenUnit, is_same: Comparison
) -> list[Pair]:
    """Return the pairs of a unit whose responses are in other units of its iteration.

    Args:
        store: Has the complete other units on this machine.
        seed: Seed of play.
        iteration: The iteration.
        unit: Which units have the responses.
        is_same: See :func:`join_pairs`.
    """
    newest, earlier = (
        [pair for number in units for pair in store.read_unit(iteration, number)]
        for units in (unit.newest, unit.earlier)
    )
    return join_pairs(newest, earlier, unit.count, seed, iteration, is_same)


def joined_report(pairs: int, began: float, ended: float) -> UnitReport:
    """Return the report of a unit that was joined: nothing was generated or scored for it."""
    return UnitReport(BETWEEN, 0, pairs, 0, 0, 0, 0.0, 0.0, noise=0.0, began=began, ended=ended)


def join_pairs(
    newest: Sequence[Pair],
    earlier: Sequence[Pair],
    count: int,
    seed: int,
    iteration: int,
    is_same: Comparison,
) -> list[Pair]:
    """Return pairs of the iteration's own response over an earlier one to the same row's prompt.

    Args:
        newest: The pairs that the iteration played.
        earlier: The pairs that it drew, scored by the same opponent.
        count: Wanted pairs. There are fewer if there are not so many that differ from each other,
            and none if no row was drawn that the iteration played.
        seed: Seed of play.
        iteration: The iteration.
        is_same: Returns which responses equal which others: two equal ones make no pair.
    """
    rng = _generator(seed, iteration, PairKind.BETWEEN)
    of_row: dict[int, list[Pair]] = defaultdict(list)
    for pair in newest:
        of_row[pair.index].append(pair)
    # In a round each earlier response meets the next one of its row: none of them twice.
    opponents = [rng.permutation(len(of_row[pair.index])).tolist() for pair in earlier]
    joined: list[Pair] = []
    while any(opponents):
        for i in rng.permutation(len(earlier)).tolist():
            while opponents[i]:
                better = of_row[earlier[i].index][opponents[i].pop()]
                if not is_same([better.generated], [earlier[i].generated])[0]:
                    joined.append(_joined(better, earlier[i]))
                    break
            if len(joined) == count:
                return joined
    return joined


def _joined(better: Pair, worse: Pair) -> Pair:
    return replace(
        worse,
        real=better.generated,
        opponent_real=better.opponent_generated,
        finish_better=better.finish,
        kind=PairKind.BETWEEN,
    )


def _generator(seed: int, iteration: int, kind: PairKind) -> np.random.Generator:
    # Units and subsets are seeded with two and three numbers.
    return np.random.default_rng([seed, iteration, 0, int(kind)])
