"""A section of a YAML as a dataclass that pydantic fills and validates.

Invalid settings raise one InputError with a line per setting: its name, what it must be, its value
and the remedy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field, fields
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, ConfigDict, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import ArgsKwargs, ErrorDetails
from typing_extensions import dataclass_transform

from spin_composer.errors import InputError
from spin_composer.settings.fields import (
    Requirement,
    describe_type,
    requirement_message,
    suggest_key,
)

T = TypeVar("T")

Config = Mapping[str, Any]
"""A run's YAML, or a part of it, as it was read: nothing is validated yet."""

# Strict: true is not an integer and "3" is not a number. Defaults are validated as well.
_CONFIG = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, validate_default=True)


@dataclass_transform(field_specifiers=(field,))
def section(
    where: str, frozen: bool = False, subsections: Mapping[str, type] | None = None
) -> Callable[[type[T]], type[T]]:
    """Return a decorator that makes a class the dataclass of a section of settings.

    The types of its fields declare what they accept (see :mod:`spin_composer.settings.fields`). A
    validator raises ``ValueError`` with the message without its prefix: the section's name
    (``.port must be ...``) or, for a field's validator, the field's name. Without a text, the
    message is derived from the field's type.

    Args:
        where: Dotted name of the section, for messages.
        frozen: Instances cannot be changed.
        subsections: Classes made by :func:`section`; each becomes a field of the given name that
            is None unless it is set.
    """

    def decorate(cls: type[T]) -> type[T]:
        for name, inner in (subsections or {}).items():
            cls.__annotations__[name] = Annotated[inner | None, section_validator(inner)]
            setattr(cls, name, None)
        settings: Any = dataclass(config=_CONFIG, frozen=frozen)(cls)

        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            names = [f.name for f in fields(settings)]
            _validate(self, {**dict(zip(names, args, strict=False)), **kwargs}, where)

        __init__.__qualname__ = f"{cls.__qualname__}.__init__"
        settings.__init__ = __init__
        settings.__where__ = where
        return settings

    return decorate


def fill(cls: type[T], given: Config | T, where: str | None = None) -> T:
    """Build a section's settings from a mapping.

    Args:
        cls: A class made by :func:`section`.
        given: Field names and values, or an instance of ``cls``, which is returned as it is.
        where: Dotted name of the section, for messages, where it has several places.

    Raises:
        InputError: A line for each setting that is unknown or wrong.
    """
    where = where or str(cls.__where__)  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(given, cls):
        return given
    if not isinstance(given, Mapping):
        raise InputError(requirement_message(where, given, "a mapping of settings"))
    settings = cls.__new__(cls)
    _validate(settings, {str(key): value for key, value in given.items()}, where)
    return settings


def section_validator(cls: type) -> BeforeValidator:
    """Return the validator of a field that holds a section: fills it from a mapping."""
    return BeforeValidator(lambda given: None if given is None else fill(cls, given))


def to_plain(value: Any) -> Any:
    """Convert OmegaConf containers and other iterables to dicts and lists."""
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
        return value
    return [to_plain(item) for item in value]


def _validate(settings: Any, given: Config, where: str) -> None:
    """Fill a section's fresh instance, as the ``__init__`` that pydantic gives it does."""
    values = {key: to_plain(value) for key, value in given.items()}
    try:
        validator = type(settings).__pydantic_validator__
        validator.validate_python(ArgsKwargs((), values), self_instance=settings)
    except ValidationError as error:
        lines: dict[tuple[int | str, ...], str] = {}
        for details in error.errors(include_url=False):
            lines.setdefault(details["loc"][:1], _message(type(settings), details, values, where))
        raise InputError("\n".join(lines.values())) from None


def _message(cls: type[Any], details: ErrorDetails, values: Config, where: str) -> str:
    """Return our message for one of pydantic's errors."""
    cause = details.get("ctx", {}).get("error")
    if isinstance(cause, InputError):  # of a nested section
        return str(cause)
    if not details["loc"]:
        return f"{where}{cause}"
    key = str(details["loc"][0])
    name = f"{where}.{key}"
    if cause is not None and str(cause):
        return f"{name}{cause}"
    if details["type"] == "unexpected_keyword_argument":
        return f"{name} is not a setting. {suggest_key(key, [f.name for f in fields(cls)])}"
    declared = cls.__pydantic_fields__[key]
    remedies = [m.remedy for m in declared.metadata if isinstance(m, Requirement)]
    remedy = next(iter(remedies), "")
    if details["type"] == "missing":
        return f"{name} is not set. {remedy}".rstrip()
    value = values.get(key, declared.default)
    return requirement_message(
        name, value, describe_type(declared.annotation, declared.metadata), remedy
    )
