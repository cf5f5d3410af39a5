"""Changes of a YAML's settings by their dotted names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

REMOVED = object()
"""In place of a value: the setting is taken out."""


def set_all(config: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Set or remove settings in place, and return the config.

    Args:
        config: Sections as in a YAML.
        changes: Values by dotted names: ``algorithms.spin.beta``.
    """
    for name, value in changes.items():
        *sections, key = name.split(".")
        section = config
        for part in sections:
            section = section.setdefault(part, {})
        if value is REMOVED:
            section.pop(key, None)
        else:
            section[key] = value
    return config
