"""Another trainer's config, key by key: what is mapped, refused, explained, and what is unknown."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from decimal import Decimal
from fnmatch import fnmatchcase
from typing import Any

from spin_composer.errors import InputError, format_value
from spin_composer.importers.draft import Change
from spin_composer.importers.fresh import FreshYaml
from spin_composer.importers.read import Unresolved
from spin_composer.importers.yaml_text import comment_lines
from spin_composer.settings.fields import is_int, is_number, suggest_key

Explained = Mapping[str, str]
"""Reasons why settings are not carried over, by pattern of their names (``model.data.*.shuffle``);
the first that fits counts."""
Refused = Mapping[str, tuple[tuple[object, ...], str]]
"""By pattern: the values that mean nothing, and what to do about any other."""

NO_DROPOUT = "dropout is off in SPIN, for policy and opponent alike"


class ForeignConfig:
    """The values of a config by dotted name; lists are values. Each is to be taken once.

    Args:
        values: The config as nested mappings, resolved.
        where: The file's name in messages.
        trainer: The name of what it is a config of.
    """

    def __init__(self, values: Mapping[str, Any], where: str, trainer: str) -> None:
        self.where = where
        self.trainer = trainer
        self.values = dict(_leaves(values))
        self._taken: set[str] = set()
        self._neutral: set[str] = set()
        self._reasons: dict[str, str] = {}

    def take(self, key: str, default: Any = None) -> Any:
        """Return a value, which counts as mapped; ``default`` if it is absent or null.

        Raises:
            InputError: It refers to what the config does not have.
        """
        self._taken.add(key)
        found = self.values.get(key)
        if isinstance(found, Unresolved):
            raise InputError(
                f"{self.where}: {key}={found} refers to what this file does not have (the model's "
                f"own config may). Add {key}=VALUE to the command."
            )
        return default if found is None else found

    def take_number(self, key: str, default: float) -> float:
        """Return a number, which counts as mapped; ``default`` if it is absent or null.

        Raises:
            InputError: It is another value.
        """
        found = self.take(key, default)
        if not is_number(found):
            raise self.refuse(key, "give a number")
        return float(found)

    def take_count(self, key: str, default: int | None = None) -> int | None:
        """Return an integer, likewise; None if there is neither value nor default."""
        found = self.take(key, default)
        if found is not None and not is_int(found):
            raise self.refuse(key, "give an integer")
        return found

    def take_one_of(self, key: str, known: Collection[str], default: str, remedy: str = "") -> str:
        """Return one of the known texts, likewise."""
        found = self.take(key, default)
        if not isinstance(found, str) or found not in known:
            raise self.refuse(key, f"use one of {', '.join(known)}{remedy}")
        return found

    def take_texts(self, key: str, default: Collection[str] = ()) -> list[str]:
        """Return a list of texts, likewise; a single text is a list of one."""
        found = self.take(key, list(default))
        found = [found] if isinstance(found, str) else found
        if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
            raise self.refuse(key, "give a list of texts")
        return found

    def take_first(self, *keys: str) -> tuple[str, Any]:
        """Return the first of several keys whose value is not null, and the value.

        The others are explained by it; if all are null, the first key is returned.
        """
        first, *others = [key for key in keys if self.values.get(key) is not None] or keys[:1]
        for key in others:
            self._taken.add(key)
            self._reasons.setdefault(key, f"{first} is used")
        return first, self.take(first)

    def take_mapping(self, key: str) -> dict[str, Any]:
        """Return the values below a key by their names, which count as mapped; without nulls."""
        below = f"{key}."
        names = [name for name in self.values if name.startswith(below)]
        found = {name.removeprefix(below): self.take(name) for name in names}
        return {name: value for name, value in found.items() if value is not None}

    def explain(self, key: str, reason: str) -> None:
        """Say why a value is not carried over, unless a setting is put for it."""
        self._taken.add(key)
        self._reasons[key] = reason

    def refuse(self, key: str, remedy: str) -> InputError:
        """Return the error for a value that SPIN cannot do."""
        value = format_value(self.values.get(key))
        return InputError(f"{self.where}: {key}={value} cannot be carried over: {remedy}.")

    def check_refused(self, refused: Refused) -> None:
        """Raise for the values of a table that mean something.

        Raises:
            InputError: A line for each.
        """
        lines = []
        for key, value in self.values.items():
            pattern = next((one for one in refused if fnmatchcase(key, one)), None)
            if pattern is None:
                continue
            neutral, remedy = refused[pattern]
            if value not in neutral:
                lines.append(str(self.refuse(key, remedy)))
            self._neutral.add(key)
        if lines:
            raise InputError("\n".join(lines))

    def explain_rest(self, draft: FreshYaml, explained: Explained) -> None:
        """Explain what no setting was put for, one comment for each reason; a null says nothing.

        Raises:
            InputError: A line for each key that is in no table, with the nearest known one.
        """
        reasons: dict[str, list[str]] = {}
        unknown: list[str] = []
        for key, value in self.values.items():
            if value is None:
                continue
            reason = self._reason(key, draft.named, explained)
            if reason is None:
                unknown.append(key)
            elif reason:
                reasons.setdefault(reason, []).append(f"{key}={format_value(value)}")
        if unknown:
            tables = {*self._taken, *self._neutral, *explained}
            known = sorted(key for key in tables if "*" not in key)
            raise InputError("\n".join(self._unknown(key, known) for key in unknown))
        if reasons:
            draft.yaml.append(f"\n# Not carried over from {self.trainer}:\n")
        for reason, keys in reasons.items():
            names = ", ".join(keys)
            draft.changes.append(Change(names, reason))
            draft.yaml.append("\n".join(comment_lines(f"{names}: {reason}")) + "\n")

    def _reason(self, key: str, named: Collection[str], explained: Explained) -> str | None:
        """Return why a value is not carried over: empty if it is, None if nothing says so."""
        if key in named:
            return ""
        if key in self._reasons:
            return self._reasons[key]
        if key in self._neutral:
            return "is so here without a setting"
        pattern = next((one for one in explained if fnmatchcase(key, one)), None)
        return None if pattern is None else explained[pattern]

    def _unknown(self, key: str, known: list[str]) -> str:
        if key in self._taken:  # an empty text, for example
            return str(self.refuse(key, "give another value, or take it out"))
        return (
            f"{self.where}: {key} is not a known key of {self.trainer}. {suggest_key(key, known)}"
        )


def duration(share: object) -> str:
    """Return a share of an iteration as Composer's text, without an exponent: ``0.00001dur``."""
    return f"{Decimal(str(share)):f}dur" if is_number(share) else f"{share}dur"


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
