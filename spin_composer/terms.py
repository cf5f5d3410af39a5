"""What an iteration is played by: its manifest and its plan, as it was begun or begins now."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from composer.core import State
from composer.utils import dist

from spin_composer.data.examples import ExampleDataset
from spin_composer.data.origin import goes_on_with
from spin_composer.distributed import from_rank_zero
from spin_composer.errors import StoreError
from spin_composer.play.degenerate import BY_TEXT
from spin_composer.play.plan import Unit, plan_units
from spin_composer.store.begun import tokenize_of
from spin_composer.store.local import Store
from spin_composer.store.manifest import (
    FORMAT_VERSION,
    RECORDED,
    meaning,
    played_units,
    replayed_units,
)

if TYPE_CHECKING:
    from spin_composer.game import Game

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Terms:
    """Of one iteration."""

    manifest: dict[str, Any]
    """Without ``opponent``."""
    units: list[Unit]
    """Unit u is stored as unit u."""
    begun: bool
    """Something of it is in the store: it goes on as its manifest says."""


def terms_of(game: Game, state: State, iteration: int, tokenizer: Any) -> Terms:
    """Return an iteration's terms; a collective.

    Raises:
        StoreError: If an iteration that it replays is not in the store.
    """
    settings = game.settings
    found = from_rank_zero(lambda: _begun_manifest(game, iteration))
    if found is None:
        replayed = from_rank_zero(lambda: _played_before(game.store, iteration, settings.replay))
        recorded: dict[str, Any] = {
            "degenerate": BY_TEXT,
            "replayed": {str(k): n for k, n in replayed.items()},
        }
    else:
        replayed = replayed_units(found)
        recorded = {field: meaning(found, field) for field in RECORDED}
    units = plan_units(settings, game.seed, iteration, len(game.examples), replayed)
    manifest = {
        "format_version": FORMAT_VERSION,
        "iteration": iteration,
        "seed": game.seed,
        "num_units": len(units),
        "unit_size": settings.unit_size,
        "samples_per_iteration": settings.samples_per_iteration,
        "replay": settings.replay,
        "generation": settings.generation.of_samples(),
        "precision": str(state.precision),
        "num_examples": len(game.examples),
        "data": game.examples.fingerprint,
        "tokenize": game.examples.tokenize,
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "stop_token_id": game.examples.stop_token_id,
    }
    return Terms(manifest | recorded, units, found is not None)


def _begun_manifest(game: Game, iteration: int) -> dict[str, Any] | None:
    """Return the manifest of an iteration of which something is there, or None."""
    try:
        found = game.store.find_manifest(iteration)
    except StoreError:
        if not game.settings.repair:
            raise
        return None  # it is set aside, or refused, before anything is played
    if found is None or found.get("format_version") != FORMAT_VERSION:
        return None  # another format's is refused when it is compared
    return None if game.store.is_unused(iteration) else found


def _played_before(store: Store, iteration: int, replay: int) -> dict[int, int]:
    """Return how many units the iterations that are replayed played, whatever is set today."""
    played = {}
    for earlier in range(max(0, iteration - replay), iteration):
        found = store.find_manifest(earlier)
        if found is None:
            raise StoreError(
                f"{store.folder(earlier)} is missing, and iteration {iteration} replays its pairs. "
                "Restore the self-play store, or set algorithms.spin.replay=0."
            )
        played[earlier] = played_units(found)
    return played


def tokenised_as_begun(
    examples: ExampleDataset, store: Store, iteration: int, trained: dict[str, Any]
) -> ExampleDataset:
    """Return the rows tokenised as they were when the run began, where the YAML does not say.

    A collective.

    Args:
        examples: As they were made, by today's default unless the YAML says otherwise.
        store: The run's.
        iteration: That the run stands in.
        trained: The manifest in the checkpoint; empty without one.
    """
    if examples.config is None or examples.config.tokenize is not None:
        return examples

    def begun() -> str | None:
        iterations = sorted({0, max(0, iteration - 1), iteration})
        return tokenize_of([*map(store.find_manifest, iterations), trained])

    found: Any = from_rank_zero(begun)
    tokenize = "turns" if found is None else found
    if tokenize in ("", examples.tokenize):
        return examples
    if dist.get_global_rank() == 0:
        log.warning(goes_on_with(tokenize))
    return examples.retokenised(tokenize)


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Return a hash of a tokenizer's vocabulary and chat template."""
    content = [sorted(tokenizer.get_vocab().items()), tokenizer.chat_template]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
