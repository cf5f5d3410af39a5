"""Types of settings, and what they are called in messages and in the documentation's tables.

A field's type says what it accepts; :func:`describe_type` puts that into words. ``Requirement`` in
its ``Annotated`` gives a field words of its own, and the remedy that its error ends with.
"""

from __future__ import annotations

import difflib
import math
import types
from collections.abc import Collection, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Annotated, Any, Literal, TypeGuard, Union, get_args, get_origin

from pydantic import Field, GetCoreSchemaHandler
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, core_schema

from spin_composer.errors import InputError, format_value

SECTION = "algorithms.spin"
"""Where a YAML has the algorithm's settings: their prefix in messages."""

Number = int | float
"""A finite number, kept as it was given: a manifest holds 1 where the YAML has 1."""
Count = Annotated[int, Field(ge=0)]
PositiveInt = Annotated[int, Field(ge=1)]
Positive = Annotated[Number, Field(gt=0)]
NonNegative = Annotated[Number, Field(ge=0)]
Text = Annotated[str, Field(pattern=r"\S")]
"""A text that is not blank."""

_NAMES: dict[object, str] = {
    bool: "true or false", int: "an integer", float: "a number", str: "a text",
    dict: "a mapping of keys to values", list: "a list",
}  # fmt: skip


@dataclass(frozen=True)
class Requirement:
    """A field's own words, as metadata of its type."""

    be: str = ""
    """What it must be; the words of its type if not given."""
    remedy: str = ""
    """A sentence that its error ends with."""


@dataclass(frozen=True)
class OneOf:
    """Metadata of a text that is a name in a registry, which may grow after the import."""

    names: Collection[str]

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Return the schema of a text that is one of the names."""
        return core_schema.no_info_after_validator_function(self._known, handler(source))

    def _known(self, name: str) -> str:
        if name not in self.names:
            raise ValueError
        return name


def describe_type(annotation: object, metadata: Sequence[object] = ()) -> str:
    """Return what a setting of this type must be: ``an integer >= 0, or null``.

    Args:
        annotation: The type, as a field declares it.
        metadata: What ``Annotated`` says beside it.
    """
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        return describe_type(inner, [*more, *metadata])
    said = [m.be for m in metadata if isinstance(m, Requirement) and m.be]
    if said:
        return said[0]
    for registry in (m for m in metadata if isinstance(m, OneOf)):
        return f"one of {', '.join(registry.names)}"
    if get_origin(annotation) in (Union, types.UnionType):
        return _describe_union(get_args(annotation), metadata)
    if get_origin(annotation) is Literal:
        values: tuple[str, ...] = get_args(annotation)
        return f"one of {', '.join(values)}" if len(values) > 1 else ", ".join(map(repr, values))
    if is_dataclass(annotation):
        return "a mapping of settings"
    return _add_bounds(_NAMES[get_origin(annotation) or annotation], metadata)


def _describe_union(members: tuple[object, ...], metadata: Sequence[object]) -> str:
    if set(members) == {int, float}:
        return describe_type(float, metadata)
    words = [describe_type(member, metadata) for member in members if member is not type(None)]
    return " or ".join(words) + (", or null" if type(None) in members else "")


def _add_bounds(noun: str, metadata: Sequence[object]) -> str:
    """Add the bounds that the metadata declares to a noun."""
    bounds: dict[str, object] = {}
    for given in metadata:
        for bound in given.metadata if isinstance(given, FieldInfo) else [given]:
            for name in ("ge", "gt", "le", "lt"):
                if hasattr(bound, name):
                    bounds[name] = getattr(bound, name)
    least, most = {"ge", "gt"} & set(bounds), {"le", "lt"} & set(bounds)
    if least and most:
        (low,), (high,) = least, most
        opening, closing = "[" if low == "ge" else "(", "]" if high == "le" else ")"
        return f"{noun} in {opening}{bounds[low]}, {bounds[high]}{closing}"
    if noun == _NAMES[int] and bounds == {"ge": 1}:
        return "a positive integer"
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    return " ".join([noun, *(f"{signs[name]} {value}" for name, value in bounds.items())])


def suggest_key(name: object, known: Sequence[str]) -> str:
    """Return a sentence that names the known key nearest to ``name``, or all of them."""
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    return f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(sorted(known))}."


def requirement_message(name: str, value: object, describe_type: str, remedy: str = "") -> str:
    """Return the line that says what a setting must be, what it is, and what to do."""
    return f"{name} must be {describe_type}, got {format_value(value)}. {remedy}".rstrip()


def check(ok: bool, name: str, value: object, describe_type: str, remedy: str = "") -> None:
    """Raise an InputError that names the setting, what it must be, and its value, if not ``ok``."""
    if not ok:
        raise InputError(requirement_message(name, value, describe_type, remedy))


def require(ok: bool, name: str, value: object, describe_type: str, remedy: str = "") -> None:
    """Raise what a validator raises, if not ``ok``: the section puts its name before ``name``."""
    if not ok:
        raise ValueError(requirement_message(name, value, describe_type, remedy))


def is_int(value: object) -> TypeGuard[int]:
    """Tell whether a setting is an integer; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Tell whether a setting is a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value)
