"""Types of settings, and how messages and the documentation describe them.

A field's type declares what it accepts, and :func:`describe_type` describes it. A ``Requirement``
in its ``Annotated`` overrides the description and adds a remedy to the error message.
"""

from __future__ import annotations

import difflib
import math
import types
from collections.abc import Collection, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Annotated, Any, Literal, TypeGuard, Union, get_args, get_origin

from pydantic import AfterValidator, Field, GetCoreSchemaHandler
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, core_schema

from spin_composer.errors import InputError, format_value

SECTION = "algorithms.spin"
"""Prefix of the algorithm's settings in a YAML and in messages."""

Number = int | float
"""A finite number, not converted: a manifest has 1 where the YAML has 1."""
Count = Annotated[int, Field(ge=0)]
PositiveInt = Annotated[int, Field(ge=1)]
Positive = Annotated[Number, Field(gt=0)]
Text = Annotated[str, Field(pattern=r"\S")]
"""A text that is not blank."""

_NAMES: dict[object, str] = {
    bool: "true or false", int: "an integer", float: "a number", str: "a text",
    dict: "a mapping of keys to values", list: "a list",
}  # fmt: skip


@dataclass(frozen=True)
class Requirement:
    """Metadata of a field's type: how messages describe it."""

    description: str = ""
    """What the value must be; derived from the type if empty."""
    remedy: str = ""
    """The sentence that the error message ends with."""


@dataclass(frozen=True)
class OneOf:
    """Metadata of a string that names an entry of a registry, which may grow after the import."""

    names: Collection[str]

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Return the schema of a string that is one of the names."""
        return core_schema.no_info_after_validator_function(self._known, handler(source))

    def _known(self, name: str) -> str:
        if name not in self.names:
            raise ValueError
        return name


def _epochs(given: str | int) -> str:
    digits = str(given).removesuffix("ep")
    if not digits.isdigit() or int(digits) < 1:
        raise ValueError
    return f"{int(digits)}ep"


WHOLE_EPOCHS = Requirement("like '2ep'", "Give it in whole epochs.")
Epochs = Annotated[str | int, AfterValidator(_epochs), WHOLE_EPOCHS]
"""A whole number of epochs, ``2ep`` or ``2``; kept as ``2ep``."""


def count_epochs(epochs: str | int) -> int:
    """Return the number of epochs of an :data:`Epochs` setting."""
    return int(str(epochs).removesuffix("ep"))


def describe_type(annotation: object, metadata: Sequence[object] = ()) -> str:
    """Return what a setting of this type must be: ``an integer >= 0, or null``.

    Args:
        annotation: The type, as a field declares it.
        metadata: The metadata of its ``Annotated``.
    """
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        return describe_type(inner, [*more, *metadata])
    for requirement in (m for m in metadata if isinstance(m, Requirement)):
        if requirement.description:
            return requirement.description
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
    for item in metadata:
        for bound in item.metadata if isinstance(item, FieldInfo) else [item]:
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
    """Return a sentence with the known key closest to ``name``, or with all known keys."""
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    return f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(sorted(known))}."


def requirement_message(name: str, value: object, expected: str, remedy: str = "") -> str:
    """Return the message that a setting must be ``expected``, with its value and the remedy."""
    return f"{name} must be {expected}, got {format_value(value)}. {remedy}".rstrip()


def check(ok: bool, name: str, value: object, expected: str, remedy: str = "") -> None:
    """Raise an InputError unless ``ok``; see :func:`requirement_message`."""
    if not ok:
        raise InputError(requirement_message(name, value, expected, remedy))


def require(ok: bool, name: str, value: object, expected: str, remedy: str = "") -> None:
    """Raise a validator's ValueError unless ``ok``: the section's name is put before ``name``."""
    if not ok:
        raise ValueError(requirement_message(name, value, expected, remedy))


def is_int(value: object) -> TypeGuard[int]:
    """Return whether a setting is an integer; booleans are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Return whether a setting is a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value)
