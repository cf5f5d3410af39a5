"""The units of an iteration and their prompts, independent of the number of ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spin_composer.settings.ditto import DITTO
from spin_composer.settings.spin import ALL, SpinSettings

PLAY, REPLAY, BETWEEN = "play", "replay", "between"


@dataclass(frozen=True)
class PlayUnit:
    """A unit of prompts to answer: ``indices`` [P] into the data set.

    A prompt that is answered several times stands there as often, in a row.
    """

    indices: NDArray[np.int64]


@dataclass(frozen=True)
class ReplayUnit:
    """A unit of an earlier iteration whose pairs the current opponent rescores."""

    iteration: int
    unit: int


@dataclass(frozen=True)
class EarlierUnit:
    """DITTO's pairs of the data over earlier iterations, rescored by the current opponent.

    The unit has some of the iteration's draws (``play.draws``) from all pairs that were played.
    """

    draws: range
    """Which of the draws, in their order."""
    total: int
    """Draws of the iteration, in all of its units of this kind."""
    played: Mapping[int, int]
    """Number of played units by earlier iteration."""


@dataclass(frozen=True)
class BetweenUnit:
    """DITTO's pairs of a response of this iteration over an earlier one, joined by their row.

    Both responses were scored for units of this iteration, so no forward pass is needed, and one
    unit is enough.
    """

    count: int
    """Pairs, at most."""
    newest: range
    """The units of this iteration with the better responses."""
    earlier: range
    """Those with the others."""


Unit = PlayUnit | ReplayUnit | EarlierUnit | BetweenUnit


def plan_units(
    settings: SpinSettings,
    seed: int,
    iteration: int,
    num_examples: int,
    replayed: Mapping[int, int],
) -> list[Unit]:
    """Return the units of an iteration, a pure function of its arguments.

    The unit at position u is stored as unit u. Played units come first, then replayed ones,
    iteration by iteration; DITTO's joined pairs are last.

    Args:
        settings: Settings of this iteration; earlier ones may have been played with others.
        seed: Seed of play.
        iteration: Index of the iteration.
        num_examples: Rows of the SFT set.
        replayed: Number of units to replay, by earlier iteration.
    """
    played = _play_units(settings, seed, iteration, num_examples)
    if settings.game == DITTO:
        return [*played, *(_ditto_units(settings, played, replayed) if replayed else ())]
    units: list[Unit] = list(played)
    for earlier, count in sorted(replayed.items()):
        units += [ReplayUnit(earlier, unit) for unit in range(count)]
    return units


def _play_units(
    settings: SpinSettings, seed: int, iteration: int, num_examples: int
) -> list[PlayUnit]:
    indices = np.arange(num_examples)
    if settings.samples_per_iteration != ALL:
        count = min(int(settings.samples_per_iteration), num_examples)
        rng = np.random.default_rng([seed, iteration])
        indices = np.sort(rng.choice(num_examples, count, replace=False))
    size, each = settings.unit_size, settings.responses_per_prompt
    return [
        PlayUnit(np.repeat(indices[i : i + size], each)) for i in range(0, len(indices), size)
    ]


def earlier_iterations(iteration: int, settings: SpinSettings) -> range:
    """Return the iterations whose pairs an iteration rescores, all of them or some."""
    first = 0 if settings.game == DITTO else max(0, iteration - settings.replay)
    return range(first, iteration)


def _ditto_units(
    settings: SpinSettings, played: Sequence[PlayUnit], earlier: Mapping[int, int]
) -> list[Unit]:
    """Return the units of DITTO's pairs with earlier responses, in proportion to the played ones.

    Pairs are counted as planned: a response that equals the real one makes none later.
    """
    newest = sum(len(unit.indices) for unit in played)
    num_earlier, num_between = settings.ditto.planned_pairs(newest)
    size = settings.unit_size
    units: list[Unit] = [
        EarlierUnit(range(i, min(i + size, num_earlier)), num_earlier, dict(earlier))
        for i in range(0, num_earlier, size)
    ]
    if num_between and units:
        first, last = len(played), len(played) + len(units)
        units.append(BetweenUnit(num_between, range(first), range(first, last)))
    return units


def too_few_units_warning(units: Sequence[Unit], num_ranks: int) -> str | None:
    """Return a warning if smaller units would keep more ranks busy, or None."""
    sizes = [len(np.unique(unit.indices)) for unit in units if isinstance(unit, PlayUnit)]
    even = -(-sum(sizes) // num_ranks)  # prompts per rank, if every rank had one unit
    if len(sizes) >= num_ranks or max(sizes, default=0) <= even:
        return None
    return (
        f"{len(sizes)} unit(s) for {num_ranks} ranks: {num_ranks - len(sizes)} of them are idle. "
        f"Set algorithms.spin.unit_size to {even} or less."
    )


def unit_seed(seed: int, iteration: int, unit: int) -> int:
    """Return the sampling seed of a unit, distinct for distinct arguments (63 bits)."""
    state = np.random.SeedSequence([seed, iteration, unit]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))
