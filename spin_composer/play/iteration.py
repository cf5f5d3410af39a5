"""The plan of an iteration's play, made once at its start: manifest, units, missing units."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from spin_composer.data.examples import ExampleDataset
from spin_composer.distributed import from_rank_zero
from spin_composer.errors import StoreError
from spin_composer.play.degenerate import BY_TEXT
from spin_composer.play.plan import (
    BetweenUnit,
    PlayUnit,
    Unit,
    earlier_iterations,
    plan_units,
)
from spin_composer.play.prepare import check_iteration
from spin_composer.settings.ditto import DITTO
from spin_composer.settings.spin import LayoutName, SpinSettings
from spin_composer.store.base import Store
from spin_composer.store.manifest import (
    FIXED_AT_START,
    FORMAT_VERSION,
    FORMAT_VERSIONS,
    LEGACY_VALUES,
    REAL_PAIRS_VERSION,
    Manifest,
    manifest_value,
    num_played_units,
    num_replayed_units,
    require_equal_manifests,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class IterationPlan:
    """The plan of an iteration's play; the same on every rank, except for ``verified``."""

    iteration: int
    manifest: Manifest
    """The complete manifest, including the opponent's fingerprint."""
    units: list[Unit]
    """All units; the one at position u is stored as unit u."""
    wanted: range
    """The units that this run or job is responsible for."""
    missing: list[int]
    """Those of them that are not in the store, in order, less ``left``."""
    verified: frozenset[int] = field(default=frozenset())
    """Existing units whose bytes this process has verified; on rank 0 only."""
    left: int = 0
    """Missing units that a job leaves to the run: they join responses that other jobs make."""

    @property
    def has_prompts(self) -> bool:
        """Whether any prompt is still to be answered."""
        return any(isinstance(self.units[unit], PlayUnit) for unit in self.missing)


@dataclass(frozen=True)
class RunContext:
    """What all manifests of a run have in common: data, tokenizer, seed, sampling."""

    settings: SpinSettings
    seed: int
    examples: ExampleDataset
    tokenizer: PreTrainedTokenizerBase
    precision: str
    generation: Mapping[str, object]
    """The engine's ``manifest_fields``."""
    layout: LayoutName = "padded"
    """How the opponent's pairs are scored."""


def plan_iteration(
    store: Store, run: RunContext, iteration: int, opponent: str, merged: bool | None
) -> IterationPlan:
    """Plan an iteration and run all checks of its play; a collective that writes nothing.

    Args:
        store: The run's store.
        run: Input of the manifest.
        iteration: Index of the iteration.
        opponent: Fingerprint of the current policy.
        merged: Whether LoRA adapters would be merged; None if there are none. A started iteration
            is continued as its manifest says.

    Raises:
        StoreError: If a replayed iteration is not in the store, or the store is damaged or belongs
            to another run.
        EnvironmentFailure: If the disk has too little space.
    """
    found = from_rank_zero(lambda: existing_manifest(store, run.settings, iteration))
    manifest, units = build_manifest(store, run, iteration, found)
    manifest = manifest | {"opponent": opponent}
    if found is None:
        manifest["merged"] = merged
    settings = run.settings
    only = settings.play_only
    wanted = range(len(units)) if only is None else only.select_units(len(units))
    # A play-only job does not repair the store: the run holds the lock.
    repair = settings.repair and only is None
    verified: list[frozenset[int]] = [frozenset()]

    def check() -> list[int]:
        checked = check_iteration(store, manifest, units, run.examples, repair, wanted)
        verified[0] = checked.verified
        return checked.missing

    missing = from_rank_zero(check)
    to_make = missing
    if only is not None:
        to_make = [unit for unit in missing if not isinstance(units[unit], BetweenUnit)]
    left = len(missing) - len(to_make)
    return IterationPlan(iteration, manifest, units, wanted, to_make, verified[0], left)


def build_manifest(
    store: Store, run: RunContext, iteration: int, found: Manifest | None
) -> tuple[Manifest, list[Unit]]:
    """Return an iteration's manifest, without its opponent, and its units; a collective.

    Args:
        store: The run's store.
        run: Input of the manifest.
        iteration: Index of the iteration.
        found: The stored manifest if the iteration has been started, else None.

    Raises:
        StoreError: If a replayed iteration is not in the store.
    """
    settings, examples = run.settings, run.examples
    if found is None:
        replayed = from_rank_zero(lambda: _played_before(store, iteration, settings))
        recorded: Manifest = {
            "degenerate": BY_TEXT,
            "replayed": {str(k): n for k, n in replayed.items()},
        }
    else:
        replayed = num_replayed_units(found)
        recorded = {name: manifest_value(found, name) for name in FIXED_AT_START}
    units = plan_units(settings, run.seed, iteration, len(examples), replayed)
    manifest = {
        "format_version": REAL_PAIRS_VERSION,
        "iteration": iteration,
        "seed": run.seed,
        "num_units": len(units),
        "unit_size": settings.unit_size,
        "samples_per_iteration": settings.samples_per_iteration,
        "replay": settings.replay,
        "generation": dict(run.generation),
        "precision": run.precision,
        "num_examples": len(examples),
        "data": examples.fingerprint,
        "tokenize": examples.tokenize,
        "tokenizer": tokenizer_fingerprint(run.tokenizer),
        "stop_token_id": examples.stop_token_id,
    }
    if run.layout != LEGACY_VALUES["layout"]:  # else as an earlier version, which knows no other
        manifest["layout"] = run.layout
    if settings.responses_per_prompt != LEGACY_VALUES["responses_per_prompt"]:
        manifest["responses_per_prompt"] = settings.responses_per_prompt
    if settings.game == DITTO:
        del manifest["replay"]  # it replays all that is recorded
        shares = asdict(settings.ditto)
        manifest |= {"format_version": FORMAT_VERSION, "game": DITTO, "ditto": shares}
    return manifest | recorded, units


def existing_manifest(
    store: Store, settings: SpinSettings, iteration: int
) -> Manifest | None:
    """Return the stored manifest of an iteration that has been started, or None."""
    try:
        found = store.find_manifest(iteration)
    except StoreError:
        if not settings.repair:
            raise
        return None  # it is set aside, or rejected, before anything is played
    if found is None or found.get("format_version") not in FORMAT_VERSIONS:
        return None  # another format version is rejected when manifests are compared
    return None if store.is_unused(iteration) else found


def require_same_play(store: Store, wanted: Manifest) -> None:
    """Check that an iteration's play is still the one that a job began to make units of.

    The manifest is read where all nodes see it: a node's own copy is that of the job's beginning.

    Raises:
        StoreError: If another play of the iteration has been started, or it was deleted.
    """
    iteration = wanted["iteration"]
    found = store.find_manifest(iteration) or {}
    require_equal_manifests(found, wanted, str(store.folder(iteration)))


def _played_before(store: Store, iteration: int, settings: SpinSettings) -> dict[int, int]:
    """Return the number of units that each replayed iteration played, from its manifest."""
    remedy = "set algorithms.spin.replay=0"
    if settings.game == DITTO:
        remedy = "start another run"
    played = {}
    for earlier in earlier_iterations(iteration, settings):
        found = store.find_manifest(earlier)
        if found is None:
            raise StoreError(
                f"{store.folder(earlier)} is missing, and iteration {iteration} replays its pairs. "
                f"Restore the self-play store, or {remedy}."
            )
        played[earlier] = num_played_units(found)
    return played


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash of a tokenizer's vocabulary and chat template."""
    content = [sorted(tokenizer.get_vocab().items()), tokenizer.chat_template]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
