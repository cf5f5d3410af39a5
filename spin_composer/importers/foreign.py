"""Another trainer's config, key by key: what is mapped, refused, explained, and what is unknown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from spin_composer.errors import InputError, format_value
from spin_composer.importers.draft import Change, Draft
from spin_composer.importers.read import Unresolved
from spin_composer.importers.yaml_text import comment_lines
from spin_composer.settings.fields import is_number, suggest_key

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

    def take_texts(self, key: str, default: Sequence[str] = ()) -> list[str]:
        """Return a list of texts, likewise."""
        found = self.take(key, list(default))
        if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
            raise self.refuse(key, "give a list of texts")
        return found

    def take_first(self, *keys: str) -> Any:
        """Return the first of several values that is not null; only that one counts as mapped."""
        key = next((key for key in keys if self.values.get(key) is not None), keys[0])
        return self.take(key)

    def take_mapping(self, key: str) -> dict[str, Any]:
        """Return the values below a key by their names, which count as mapped; without nulls."""
        below = f"{key}."
        names = [name for name in self.values if name.startswith(below)]
        found = {name.removeprefix(below): self.take(name) for name in names}
        return {name: value for name, value in found.items() if value is not None}

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
            self._taken.add(key)
        if lines:
            raise InputError("\n".join(lines))

    def explain_rest(self, draft: Draft, explained: Explained) -> None:
        """Explain what was not taken, one comment for each reason; a null says nothing.

        Raises:
            InputError: A line for each key that is in no table, with the nearest known one.
        """
        reasons: dict[str, list[str]] = {}
        unknown = []
        for key, value in self.values.items():
            if key in self._taken:
                continue
            pattern = next((one for one in explained if fnmatchcase(key, one)), None)
            if pattern is None:
                unknown.append(key)
            elif value is not None:
                reasons.setdefault(explained[pattern], []).append(f"{key}={format_value(value)}")
        if unknown:
            known = sorted({*self._taken, *(one for one in explained if "*" not in one)})
            raise InputError(
                "\n".join(
                    f"{self.where}: {key} is not a known key of {self.trainer}. "
                    f"{suggest_key(key, known)}"
                    for key in unknown
                )
            )
        named = " ".join(change.setting for change in draft.changes).replace(",", " ").split()
        silent = [key for key in self.values if key in self._taken and key not in named]
        for key in silent:
            if self.values[key] is not None:
                value = f"{key}={format_value(self.values[key])}"
                reasons.setdefault("is so here without a setting", []).append(value)
        if reasons:
            draft.yaml.append(f"\n# Not carried over from {self.trainer}:\n")
        for reason, keys in reasons.items():
            names = ", ".join(keys)
            draft.changes.append(Change(names, reason))
            draft.yaml.append("\n".join(comment_lines(f"{names}: {reason}")) + "\n")


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
