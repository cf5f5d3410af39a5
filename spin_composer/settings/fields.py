"""Checks of settings: each failure is one line that names the field, the value and the remedy."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

from spin_composer.errors import InputError, shown

T = TypeVar("T")

SECTION = "algorithms.spin"
"""Where a YAML has the algorithm's settings: their prefix in messages."""


def fill(cls: type[T], given: Mapping[str, Any] | T, where: str) -> T:
    """Build the settings dataclass ``cls`` from a mapping, refusing keys that it does not have.

    Args:
        cls: A dataclass of settings.
        given: Field names and values, or an instance of ``cls``, which is returned as it is.
        where: Dotted name of the section, for messages.

    Raises:
        InputError: If ``given`` is no mapping or has an unknown key; the nearest known key is
            named.
    """
    if isinstance(given, cls):
        return given
    if not isinstance(given, Mapping):
        raise InputError(f"{where} must be a mapping of settings, got {shown(given)}.")
    known = [f.name for f in fields(cls)]  # pyright: ignore[reportArgumentType]
    unknown = [key for key in given if key not in known]
    if unknown:
        raise InputError(f"{where}.{unknown[0]} is not a setting. {nearest(unknown[0], known)}")
    return cls(**given)


def nearest(name: object, known: Sequence[str]) -> str:
    """Return a sentence that names the known key nearest to ``name``, or all of them."""
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    return f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(sorted(known))}."


def check(ok: bool, name: str, value: object, wanted: str, remedy: str = "") -> None:
    """Raise an InputError that names the setting, what it must be, and its value, if not ``ok``."""
    if not ok:
        raise InputError(f"{name} must be {wanted}, got {shown(value)}. {remedy}".rstrip())


def is_int(value: object) -> bool:
    """Tell whether a setting is an integer; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Tell whether a setting is a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value)
