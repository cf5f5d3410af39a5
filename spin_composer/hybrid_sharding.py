"""Replicas of shards under FSDP2 (HSDP): the degrees that Composer's FSDP2 config leaves out.

Composer 0.32 makes the mesh of ranks from a config's ``data_parallel_replicate_degree`` and
``data_parallel_shard_degree``, then wraps, saves and loads by whatever mesh there is. Its
``FSDP2Config`` has neither as a field, and drops them with a warning when it is made from
``parallelism_config={"fsdp": {...}}`` (a YAML's ``fsdp_config``): all ranks would share one
replica.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from composer.utils.parallelism import FSDP2Config

_DEGREES = ("data_parallel_replicate_degree", "data_parallel_shard_degree")
_composers = FSDP2Config.from_compatible_attrs


@dataclass
class HybridFSDP2Config(FSDP2Config):
    """FSDP2's settings with the two degrees, named as FSDP1's."""

    data_parallel_replicate_degree: int | None = None  # pyright: ignore[reportIncompatibleMethodOverride]
    """Replicas of the model; None: one, and no dimension of the mesh."""
    data_parallel_shard_degree: int = -1  # pyright: ignore[reportIncompatibleMethodOverride]
    """Ranks that share one replica; -1: all that there are for it."""


def keep_degrees() -> None:
    """Let Composer's Trainer keep both degrees under FSDP2; call it before the Trainer is made.

    Another time changes nothing, nor does it where a later Composer keeps them itself.
    """
    if not set(_DEGREES) <= FSDP2Config.settable_attrs():
        FSDP2Config.from_compatible_attrs = staticmethod(_from_compatible_attrs)


def _from_compatible_attrs(attrs: Mapping[str, Any]) -> FSDP2Config:
    degrees = {name: attrs[name] for name in _DEGREES if attrs.get(name) is not None}
    config = _composers({name: attrs[name] for name in attrs if name not in degrees})
    if not degrees:
        return config
    given = {name: getattr(config, name) for name in FSDP2Config.settable_attrs()}
    return HybridFSDP2Config(**given, **degrees)
