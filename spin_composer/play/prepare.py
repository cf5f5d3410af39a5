"""Checks before an iteration is played: existing units, and space on the disk.

Everything here runs on one rank, while the others wait for the result.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spin_composer.errors import StoreError
from spin_composer.play.plan import BetweenUnit, EarlierUnit, PlayUnit, ReplayUnit, Unit
from spin_composer.store.base import REGENERATE_UNIT, Store
from spin_composer.store.manifest import Manifest
from spin_composer.store.space import require_space

if TYPE_CHECKING:
    from spin_composer.data.examples import ExampleDataset

log = logging.getLogger(__name__)

_RUN_FIELDS = ("data", "tokenizer", "tokenize", "stop_token_id", "seed")
"""Manifest fields in which a replayed iteration must agree with the one that replays it."""
_TOKEN_BYTES = 4
_ROW_BYTES = 128
"""Upper bound of a row's size besides its tokens: six numbers, and the sizes of three arrays."""
_UNIT_BYTES = 5 * 4096
"""Upper bound of a unit's size besides its rows: two small files, and partial disk blocks."""


@dataclass(frozen=True)
class CheckedIteration:
    """The result of :func:`check_iteration`."""

    missing: list[int]
    """The wanted units that are not complete, in order."""
    verified: frozenset[int]
    """The units whose bytes were verified."""


def check_iteration(
    store: Store,
    manifest: Manifest,
    units: Sequence[Unit],
    examples: ExampleDataset,
    repair: bool,
    wanted: Sequence[int],
) -> CheckedIteration:
    """Check that an iteration can be played and that its existing units can be used.

    Writes nothing, so a rejected run leaves the store unchanged. (With ``repair``, damaged units
    are set aside.)

    Args:
        store: The run's store.
        manifest: The expected manifest.
        units: All units of the iteration; unit u is stored as unit u.
        examples: The SFT set; ``lengths`` [num_examples, 2] are tokens of prompt and response.
        repair: Set damaged units aside, to be made again.
        wanted: The units to make if they are missing.

    Returns:
        Which of those are missing, and which units this process has verified.

    Raises:
        StoreError: If the iteration belongs to another run; if it is damaged, unless ``repair``;
            if a replayed iteration is missing or was played on other data.
        EnvironmentFailure: If the disk has too little space for the missing units.
    """
    iteration = manifest["iteration"]
    store.remove_leftovers(iteration)
    if repair:
        store.set_unreadable_aside(iteration)
    complete = store.complete_units(iteration)
    store.check_open(manifest, complete)
    for earlier in sorted(replayed_units(units)):
        same = {field: manifest[field] for field in _RUN_FIELDS if field in manifest}
        store.check_manifest(store.manifest(earlier) | same)
    verified = _check_units(store, iteration, len(units), repair)
    if repair:  # which may have set some of them aside
        complete = store.complete_units(iteration)
    longest = manifest["generation"]["max_new_tokens"]
    missing = sorted(set(wanted) - complete)
    needed = needed_bytes(store, [units[unit] for unit in missing], examples, longest)
    what = f"the {len(missing)} units that iteration {iteration} still plays take up to"
    require_space(store.root, needed, what)
    return CheckedIteration(missing, verified - frozenset(missing))


def needed_bytes(
    store: Store, units: Sequence[Unit], examples: ExampleDataset, max_new_tokens: int
) -> int:
    """Return an upper bound of the bytes that units take on the disk.

    Raises:
        StoreError: If the size of a replayed unit is unknown.
    """
    played = [unit for unit in units if isinstance(unit, PlayUnit)]
    replayed: dict[int, list[int]] = {}
    for unit in units:
        if isinstance(unit, ReplayUnit):
            replayed.setdefault(unit.iteration, []).append(unit.unit)
    needed = play_bytes(played, examples, max_new_tokens)
    needed += _UNIT_BYTES * sum(map(len, replayed.values()))
    drawn = [unit for unit in units if isinstance(unit, (EarlierUnit, BetweenUnit))]
    earlier = {k for unit in drawn if isinstance(unit, EarlierUnit) for k in unit.played}
    sampled = [store.manifest(k)["generation"]["max_new_tokens"] for k in earlier]
    needed += drawn_bytes(drawn, examples, max([max_new_tokens, *sampled]))
    return needed + sum(
        store.unit_bytes(iteration, numbers, replay_remedy(iteration))
        for iteration, numbers in replayed.items()
    )


def play_bytes(units: Sequence[PlayUnit], examples: ExampleDataset, max_new_tokens: int) -> int:
    """Return an upper bound of the bytes that generated units take on the disk."""
    needed = _UNIT_BYTES * len(units)
    for unit in units:
        tokens = int(examples.lengths[unit.indices].sum()) + max_new_tokens * len(unit.indices)
        needed += _ROW_BYTES * len(unit.indices) + _TOKEN_BYTES * tokens
    return needed


def drawn_bytes(
    units: Sequence[EarlierUnit | BetweenUnit], examples: ExampleDataset, max_new_tokens: int
) -> int:
    """Return an upper bound of the bytes that units of DITTO's other pairs take on the disk.

    Args:
        units: The units.
        examples: The SFT set.
        max_new_tokens: Of this iteration and of those before.
    """
    rows = sum(unit.count if isinstance(unit, BetweenUnit) else len(unit.draws) for unit in units)
    prompt, response = (int(tokens) for tokens in examples.lengths.max(axis=0))
    tokens = prompt + max_new_tokens + max(max_new_tokens, response)
    return _UNIT_BYTES * len(units) + rows * (_ROW_BYTES + _TOKEN_BYTES * tokens)


def replayed_units(units: Sequence[Unit]) -> dict[int, int]:
    """Return by earlier iteration how many of its first units are needed to make units."""
    counts: dict[int, int] = {}
    for unit in units:
        needed: Mapping[int, int] = {}
        if isinstance(unit, ReplayUnit):
            needed = {unit.iteration: unit.unit + 1}
        elif isinstance(unit, EarlierUnit):
            needed = unit.played
        for iteration, count in needed.items():
            counts[iteration] = max(counts.get(iteration, 0), count)
    return counts


def replay_remedy(iteration: int) -> str:
    """Return the remedy for a damaged earlier iteration that is replayed."""
    again = _restore_or_play("all checkpoints after that iteration's start")
    return f"It is replayed, and the opponent of iteration {iteration} is not available: {again}."


def resume_remedy(iteration: int, epochs_per_iteration: int) -> str:
    """Return the remedy for a damaged store when the iteration's opponent is not available."""
    start = iteration * epochs_per_iteration
    which = f"all checkpoints after epoch {start}" if iteration else "all checkpoints"
    return (
        f"The opponent that played iteration {iteration} is gone, so training cannot go on here: "
        f"{_restore_or_play(which)}, which plays what is missing and trains the iteration again."
    )


def _restore_or_play(checkpoints: str) -> str:
    return (
        f"restore it from a copy, or move {checkpoints} out of save_folder and run the same "
        "command with algorithms.spin.repair=true"
    )


def _check_units(store: Store, iteration: int, num_units: int, repair: bool) -> frozenset[int]:
    """Reject damaged units, or set them aside; return the intact ones."""
    sound = set()
    for unit in range(num_units):
        if store.unit_folder(iteration, unit).exists():
            sound.add(unit)
        while problem := store.damage(iteration, unit, thorough=repair):
            if not repair:
                folder = store.unit_folder(iteration, unit)
                raise StoreError(f"{problem}. {REGENERATE_UNIT.format(folder=folder)}")
            aside = store.set_unit_aside(iteration, unit)
            sound.discard(unit)
            log.warning(
                f"{problem}: the unit is set aside as {aside}, made again (algorithms.spin.repair)."
            )
    return frozenset(sound)
