"""The tokenization that a run was started with, from its store's manifests."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from composer.utils import dist

from spin_composer.data.examples import ExampleDataset
from spin_composer.data.origin import original_tokenize_warning
from spin_composer.distributed import from_rank_zero
from spin_composer.errors import StoreError
from spin_composer.settings.dataset import LEGACY_TOKENIZATION
from spin_composer.settings.spin import SpinSettings
from spin_composer.store.base import Store
from spin_composer.store.layout import MANIFESTS
from spin_composer.store.manifest import Manifest, manifest_value

log = logging.getLogger(__name__)


def started_with_legacy_turns(settings: SpinSettings, run_name: str) -> bool:
    """Return whether a run was started before ``tokenize`` was a setting.

    Its rows are then tokenized as at that time. This does not look into object stores: see
    :func:`with_original_tokenization`.
    """
    if settings.remote_store is not None:
        return False
    root = Path(settings.store.format(run_name=run_name))
    return recorded_tokenize(map(_read, sorted(root.glob(MANIFESTS)))) is None


def recorded_tokenize(
    manifests: Iterable[Manifest | None],
) -> Literal["rendering", "turns", ""] | None:
    """Return how the rows of a run were tokenized; ``""`` if there are no manifests.

    None if one of the manifests has no such field: the run was started before it was a setting.
    """
    found = [manifest for manifest in manifests if manifest]
    if not found:
        return ""
    return (
        None if any("tokenize" not in m for m in found) else manifest_value(found[-1], "tokenize")
    )


def _read(path: Path) -> Manifest | None:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):  # named when the iteration is opened
        return None
    return found if isinstance(found, dict) else None


def with_original_tokenization(
    examples: ExampleDataset, store: Store, iteration: int, trained: Manifest, repair: bool
) -> ExampleDataset:
    """Return the rows tokenized as when the run was started, unless the YAML sets ``tokenize``.

    A collective.

    Args:
        examples: Rows tokenized by today's default, or as the YAML says.
        store: The run's store.
        iteration: The run's current iteration.
        trained: The manifest in the checkpoint; empty without one.
        repair: Manifests that cannot be read are set aside later; else they are an error.
    """
    if examples.config is None:
        return examples

    def at_start() -> tuple[Literal["rendering", "turns", ""] | None, set[str]]:
        iterations = sorted({0, max(0, iteration - 1), iteration})
        found = [*(find_manifest(store, one, repair) for one in iterations), trained]
        return recorded_tokenize(found), {str(m["data"]) for m in found if m and "data" in m}

    recorded, data = from_rank_zero(at_start)
    tokenize = LEGACY_TOKENIZATION if recorded is None else recorded
    if examples.config.tokenize is None and tokenize and tokenize != examples.tokenize:
        if dist.get_global_rank() == 0:
            log.warning(original_tokenize_warning(tokenize))
        examples = examples.retokenized(tokenize)
    return _with_original_stop(examples, data)


def find_manifest(store: Store, iteration: int, repair: bool) -> Manifest | None:
    """Return an iteration's manifest, None if there is none; with ``repair`` also if it is damaged.

    Raises:
        StoreError: If it is damaged, without ``repair``.
    """
    try:
        return store.find_manifest(iteration)
    except StoreError:
        if not repair:
            raise
        return None


def _with_original_stop(examples: ExampleDataset, recorded: set[str]) -> ExampleDataset:
    """Return the rows as they ended when the run began, if that is how its store has them."""
    if not recorded or examples.fingerprint in recorded:
        return examples
    earlier = examples.with_earlier_stop()
    if earlier is None or earlier.fingerprint not in recorded:
        return examples  # other data: refused, field by field
    if dist.get_global_rank() == 0:
        log.warning(
            "train_loader.dataset: this run began with responses that end with EOS, token "
            f"{earlier.stop_token_id}, which the chat template never writes, and goes on so. Today "
            f"they end with token {examples.stop_token_id}, which begins the next turn: begin a "
            "new run for that."
        )
    return earlier
