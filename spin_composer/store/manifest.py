"""An iteration's manifest: what its play depends on, and the comparison of manifests.

A manifest without a field was written before the field was introduced. :data:`LEGACY_VALUES` has
the behavior of that time, so that a later version can continue an earlier version's store.
"""

from __future__ import annotations

import json
from typing import Any

from spin_composer.errors import StoreError
from spin_composer.settings.dataset import LEGACY_TOKENIZATION

FORMAT_VERSION = 3
"""Of iterations whose units may have a kind and two finish reasons per pair (``store.unit``)."""
REAL_PAIRS_VERSION = 2
"""Of iterations whose better responses are all real. They are written as before version 3: an
earlier version of this package can go on with them, and one that it began is finished as it was."""
FORMAT_VERSIONS = (REAL_PAIRS_VERSION, FORMAT_VERSION)
"""The versions that are read."""

Manifest = dict[str, Any]
"""The fields of a manifest as read from JSON; they depend on the version that wrote it."""

LEGACY_VALUES: Manifest = {
    "tokenize": LEGACY_TOKENIZATION,
    "degenerate": "ids",
    "merged": None,
    "replayed": None,
    "layout": "padded",
    "responses_per_prompt": 1,
    "game": "spin",
}
"""The meaning of an absent field: rows were tokenized turn by turn; generated responses were
compared with the real ones by ids; each process decided by its free memory whether to merge LoRA
adapters; the replayed units were computed from the iteration's settings
(:func:`num_replayed_units`); pairs were padded, each prompt was answered once, and the game was
SPIN, as they still are where the fields are absent."""

FIXED_AT_START = ("degenerate", "merged", "replayed")
"""Fields that no setting determines: a started iteration is continued as its manifest says."""


def manifest_value(manifest: Manifest, field: str) -> Any:
    """Return a field of a manifest; if it is absent, its legacy value."""
    return manifest.get(field, LEGACY_VALUES.get(field))


def normalize_manifest(manifest: Manifest) -> Manifest:
    """Return a manifest as it would be read back from JSON."""
    return json.loads(json.dumps({"format_version": REAL_PAIRS_VERSION, **manifest}))


def differing_fields(found: Manifest, wanted: Manifest) -> list[str]:
    """Return the fields in which two manifests differ, sorted."""
    fields = sorted({*wanted, *found})
    return [
        field for field in fields if manifest_value(found, field) != manifest_value(wanted, field)
    ]


def require_equal_manifests(found: Manifest, wanted: Manifest, where: str) -> None:
    """Check that the manifest found in ``where`` equals the expected one.

    Raises:
        StoreError: Names the fields that differ.
    """
    if fields := differing_fields(found, wanted):
        named = ", ".join(
            f"{k} (store {manifest_value(found, k)!r}, run {manifest_value(wanted, k)!r})"
            for k in fields
        )
        raise StoreError(
            f"{where} was played by another run; it differs in {named}. Delete it to play again, "
            "or set algorithms.spin.store to another folder."
        )


def num_played_units(manifest: Manifest) -> int:
    """Return how many units an iteration plays itself; replayed ones come after them."""
    prompts = manifest["num_examples"]
    if isinstance(manifest["samples_per_iteration"], int):
        prompts = min(prompts, manifest["samples_per_iteration"])
    return -(-prompts // manifest["unit_size"])


def num_replayed_units(manifest: Manifest) -> dict[int, int]:
    """Return how many units of each earlier iteration an iteration replays.

    Raises:
        KeyError: If the manifest does not have the necessary fields.
    """
    recorded = manifest_value(manifest, "replayed")
    if recorded is not None:
        return {int(iteration): units for iteration, units in recorded.items()}
    iteration = manifest["iteration"]
    earlier = range(max(0, iteration - manifest["replay"]), iteration)
    return dict.fromkeys(earlier, num_played_units(manifest))
