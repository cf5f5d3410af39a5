"""What a run began with, told by its store's manifests before its rows are read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from spin_composer.settings.spin import SpinSettings
from spin_composer.store.manifest import meaning


def began_by_turns(settings: SpinSettings, run_name: str) -> bool:
    """Tell whether a run began when rows were tokenised turn by turn and no setting said so.

    Its rows are then read as they were. A store in an object store is not asked here: see
    :func:`spin_composer.terms.tokenised_as_begun`.
    """
    if settings.remote_store is not None:
        return False
    root = Path(settings.store.format(run_name=run_name))
    return tokenize_of(map(_read, sorted(root.glob("iter-*/manifest.json")))) is None


def tokenize_of(manifests: Iterable[Mapping[str, Any] | None]) -> str | None:
    """Return how the rows of these manifests were tokenised; ``""`` if there are none.

    None if one of them, however early, does not say: the run began before it was a setting.
    """
    found = [manifest for manifest in manifests if manifest]
    if not found:
        return ""
    return None if any("tokenize" not in m for m in found) else meaning(found[-1], "tokenize")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):  # named when the iteration is opened
        return None
    return found if isinstance(found, dict) else None
