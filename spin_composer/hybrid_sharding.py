"""Replicas of shards under FSDP2 (HSDP): the degrees that Composer's FSDP2 config leaves out.

Composer 0.32 builds the device mesh from a config's ``data_parallel_replicate_degree`` and
``data_parallel_shard_degree``, and wraps, saves and loads with any mesh. But its ``FSDP2Config``
has neither field, and drops both with a warning when it is created from
``parallelism_config={"fsdp": {...}}`` (a YAML's ``fsdp_config``): all ranks would share one
replica.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from composer.utils.parallelism import FSDP2Config

_DEGREES = ("data_parallel_replicate_degree", "data_parallel_shard_degree")
_composer_from_compatible_attrs = FSDP2Config.from_compatible_attrs


@dataclass
class HybridFSDP2Config(FSDP2Config):
    """FSDP2's settings plus the two degrees, with FSDP1's names."""

    data_parallel_replicate_degree: int | None = None  # pyright: ignore[reportIncompatibleMethodOverride]
    """Replicas of the model; None: one, and the mesh has no dimension for them."""
    data_parallel_shard_degree: int = -1  # pyright: ignore[reportIncompatibleMethodOverride]
    """Ranks that share a replica; -1: all ranks divided by the number of replicas."""


def keep_degrees() -> None:
    """Make Composer's Trainer keep both degrees under FSDP2; call it before creating the Trainer.

    A second call does nothing, and so does the first if a newer Composer keeps them itself.
    """
    if not set(_DEGREES) <= FSDP2Config.settable_attrs():
        FSDP2Config.from_compatible_attrs = staticmethod(_from_compatible_attrs)


def _from_compatible_attrs(attrs: Mapping[str, Any]) -> FSDP2Config:
    degrees = {name: attrs[name] for name in _DEGREES if attrs.get(name) is not None}
    others = {name: attrs[name] for name in attrs if name not in degrees}
    config = _composer_from_compatible_attrs(others)
    if not degrees:
        return config
    given = {name: getattr(config, name) for name in FSDP2Config.settable_attrs()}
    return HybridFSDP2Config(**given, **degrees)
