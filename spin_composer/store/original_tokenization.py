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
    examples: ExampleDataset, store: Store, iteration: int, trained: Manifest
) -> ExampleDataset:
    """Return the rows tokenized as when the run was started, unless the YAML sets ``tokenize``.

    A collective.

    Args:
        examples: Rows tokenized by today's default, or as the YAML says.
        store: The run's store.
        iteration: The run's current iteration.
        trained: The manifest in the checkpoint; empty without one.
    """
    if examples.config is None or examples.config.tokenize is not None:
        return examples

    def tokenization_at_start() -> Literal["rendering", "turns", ""] | None:
        iterations = sorted({0, max(0, iteration - 1), iteration})
        return recorded_tokenize([*map(store.find_manifest, iterations), trained])

    found = from_rank_zero(tokenization_at_start)
    tokenize = LEGACY_TOKENIZATION if found is None else found
    if not tokenize or tokenize == examples.tokenize:
        return examples
    if dist.get_global_rank() == 0:
        log.warning(original_tokenize_warning(tokenize))
    return examples.retokenized(tokenize)
