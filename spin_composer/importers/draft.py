"""The YAML of a SPIN run in the making, with the reason of each change."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from spin_composer.errors import InputError, format_value
from spin_composer.importers.yaml_text import YamlText, flow_text
from spin_composer.settings.section import to_plain
from spin_composer.settings.yaml import check_keys, validate
from spin_composer.settings.yaml_file import malformed

_SHOWN = 80
"""Most characters of a value that a reason shows."""


@dataclass(frozen=True)
class Change:
    """A change of a setting, and why."""

    setting: str
    """Dotted name."""
    why: str

    def __str__(self) -> str:
        """Return the line for people."""
        return f"{self.setting}: {self.why}"


class Draft:
    """An edited YAML, and the changes made so far.

    Args:
        text: The YAML to begin with.
        where: The file's name in messages.

    Raises:
        InputError: It is no YAML mapping of settings.
    """

    def __init__(self, text: str, where: str) -> None:
        self.yaml = YamlText(text, where)
        self.where = where
        self.changes: list[Change] = []
        self._config: tuple[str, DictConfig] | None = None
        self._parse()

    def value(self, path: str, default: Any = None) -> Any:
        """Return a value with its ``${...}`` resolved; ``default`` if it is absent or null.

        Raises:
            InputError: It refers to what is not there, or what holds it is no mapping.
        """
        parent = path.rpartition(".")[0]
        try:
            holder = OmegaConf.select(self._parse(), parent) if parent else None
            if not (holder is None or isinstance(holder, DictConfig)):
                raise InputError(
                    f"{self.where}: {parent} must be a mapping of settings, got "
                    f"{format_value(to_plain(holder))}."
                )
            found = OmegaConf.select(self._parse(), path)
            if OmegaConf.is_config(found):
                found = OmegaConf.to_container(found, resolve=True)
        except InputError:
            raise
        except (OmegaConfBaseException, ValueError) as error:
            raise InputError(f"{self.where}: {path}: {' '.join(str(error).split())}") from None
        return default if found is None else to_plain(found)

    def _parse(self) -> DictConfig:
        if self._config is None or self._config[0] != self.yaml.text:
            try:
                config = OmegaConf.create(self.yaml.text)
            except YAMLError as error:  # a key twice, an unknown tag
                raise malformed(self.where, error) from None
            except (OmegaConfBaseException, ValueError) as error:
                raise InputError(f"{self.where}: {' '.join(str(error).split())}") from None
            assert isinstance(config, DictConfig)
            self._config = (self.yaml.text, config)
        return self._config[1]

    def change(self, path: str, value: object, why: str) -> None:
        """Set a value; one that is there already stays, uncommented."""
        before = self.yaml.raw(path) if self.yaml.has(path) else None
        if before == value:
            return
        said = f"was {_short(before)}; {why}" if before is not None else why
        self.yaml.set(path, value, said)
        shown = "" if isinstance(value, dict) else _short(value)
        arrow = f"{_short(before)} -> {shown}" if before is not None else shown
        self.changes.append(Change(path, f"{arrow}: {why}" if arrow else why))

    def default(self, path: str, value: object, why: str) -> None:
        """Set a value that is absent or null."""
        if self.yaml.raw(path) is None:
            self.change(path, value, why)

    def drop(self, path: str, why: str) -> None:
        """Remove a key that is there, and say so."""
        if not self.yaml.has(path):
            return
        before = self.yaml.raw(path)
        name = path.rpartition(".")[2]
        self.yaml.remove(path, f"{name}: {_short(before)} is removed; {why}")
        self.changes.append(Change(path, f"{_short(before)} removed: {why}"))

    def remark(self, path: str, text: str) -> None:
        """Explain a value that stays as it is."""
        self.yaml.comment(path, text)
        self.changes.append(Change(path, text))

    def note(self, setting: str, text: str) -> None:
        """Record a change whose comment stands already."""
        self.changes.append(Change(setting, text))

    def config(self) -> dict[str, Any]:
        """Return the whole, resolved.

        Raises:
            InputError: A ``${...}`` refers to what is not there.
        """
        try:
            plain = OmegaConf.to_container(self._parse(), resolve=True)
        except (OmegaConfBaseException, ValueError) as error:
            raise InputError(f"{self.where}: {' '.join(str(error).split())}") from None
        return cast("dict[str, Any]", plain)

    def require_valid(self) -> None:
        """Check the result as a run does before anything is loaded.

        Raises:
            InputError: A line for each setting that SPIN refuses.
        """
        config = self.config()
        problems: list[str] = []
        checks: list[Callable[[], object]] = [lambda: check_keys(config), lambda: validate(config)]
        for check in checks:
            try:
                check()
            except InputError as error:
                problems += str(error).splitlines()
        if problems:
            raise InputError("\n".join(f"{self.where}: {line}" for line in problems))


def print_draft(draft: Draft) -> None:
    """Print the YAML to stdout, and a line for each change to stderr."""
    print(draft.yaml.text, end="")
    sys.stdout.flush()
    for change in draft.changes:
        print(change, file=sys.stderr)


def _short(value: object) -> str:
    """Return a value as a YAML shows it, shortened."""
    text = value if isinstance(value, str) else flow_text(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
