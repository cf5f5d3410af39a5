"""The public surface: names, signatures, settings with their defaults, entry points."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from importlib import import_module
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
SERVER = {"engine": "server", "server": {"command": "serve {model} {port}"}}


def lines() -> dict[str, list[str]]:
    """Return the surface, a list of lines per part of it."""
    package = import_module("spin_composer")
    objects = {name: getattr(package, name) for name in package.__all__}
    return {
        "spin_composer.__all__": list(package.__all__),
        **{name: list(_arguments(made)) for name, made in objects.items() if callable(made)},
        "algorithms.spin": list(_settings(package.SPIN(), "algorithms.spin")),
        "algorithms.spin with a server and play_only": list(
            _settings(package.SPIN(generation=SERVER, play_only={}), "algorithms.spin")
        ),
        "entry points": list(_entry_points()),
    }


def _arguments(made: Any) -> Iterator[str]:
    """Yield the arguments of a function or class, without their types' modules."""
    for argument in inspect.signature(made).parameters.values():
        default = "" if argument.default is argument.empty else f" = {argument.default!r}"
        yield f"{argument}".split(":")[0].split("=")[0].strip() + default


def _settings(algorithm: Any, where: str) -> Iterator[str]:
    """Yield the settings of an algorithm, name and value, wherever it keeps them."""
    (settings,) = [
        value
        for value in vars(algorithm).values()
        if is_dataclass(value) and "beta" in {field.name for field in fields(value)}
    ]
    yield from _fields(settings, where)


def _fields(settings: Any, where: str) -> Iterator[str]:
    for field in fields(settings):
        value = getattr(settings, field.name)
        if is_dataclass(value):
            yield from _fields(value, f"{where}.{field.name}")
        else:
            yield f"{where}.{field.name} = {value!r}"


def _entry_points() -> Iterator[str]:
    """Yield group, name and the object's own name; the module that it lies in may change."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for name, value in project["scripts"].items():
        yield f"console_scripts: {name} = {value}"
    for group, entries in project["entry-points"].items():
        for name, value in entries.items():
            loaded: Any = EntryPoint(name, value, group).load()
            yield f"{group}: {name} = {loaded.__name__}"
