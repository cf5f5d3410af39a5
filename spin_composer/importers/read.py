"""Reading another trainer's YAML with the overrides of its command line, as Hydra does."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import (
    InterpolationKeyError,
    InterpolationToMissingValueError,
    OmegaConfBaseException,
)
from yaml import YAMLError

from spin_composer.errors import InputError
from spin_composer.settings.yaml_file import load_settings

_RESOLVERS = {
    "multiply": lambda a, b: a * b,
    "add": lambda *numbers: sum(numbers),
    "subtract": lambda a, b: a - b,
    "int_div": lambda a, b: a // b,
    "div": lambda a, b: a / b,
    "not": lambda a: not a,
}
"""The functions that NeMo registers for its configs."""


class Unresolved(str):
    """A ``${...}`` that refers to what the config does not have, as it is written.

    NeMo-Aligner merges the config of the checkpoint with its own, which refers to it.
    """

    __slots__ = ()


def read_config(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Return a config with the overrides of its command line, resolved.

    Args:
        path: The YAML.
        overrides: Hydra's: ``key=value``, ``+key=value``, ``++key=value``, ``~key``; or
            transformers': ``--key=value``.

    Returns:
        Nested mappings; a ``${...}`` that refers to a key that is not there is :class:`Unresolved`.

    Raises:
        InputError: The file, an override or a ``${...}`` cannot be read.
    """
    config = load_settings(path)
    known = {name for name in _RESOLVERS if OmegaConf.has_resolver(name)}
    # OmegaConf 2.4 has another name for it.
    register = getattr(OmegaConf, "register_resolver", OmegaConf.register_new_resolver)
    for name in _RESOLVERS.keys() - known:
        register(name, _RESOLVERS[name])
    try:
        for removed, given in groupby(overrides, lambda one: one.startswith("~")):
            config = (_delete if removed else _merge)(config, list(given))
        return {str(key): value for key, value in _resolve(config).items()}
    except InputError:
        raise
    except (YAMLError, OmegaConfBaseException, TypeError, ValueError) as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}") from None
    finally:
        for name in _RESOLVERS.keys() - known:
            OmegaConf.clear_resolver(name)


def _resolve(node: Any) -> Any:
    """Return a config as mappings and lists; every key by itself, so that one may be unresolved."""
    written = OmegaConf.to_container(node, resolve=False)
    if isinstance(written, dict):
        return {key: _value(node, key, text) for key, text in written.items()}
    return [_value(node, place, text) for place, text in enumerate(written)]  # pyright: ignore


def _value(node: Any, key: Any, written: Any) -> Any:
    if not (isinstance(written, (dict, list)) or OmegaConf.is_interpolation(node, key)):
        return written
    try:
        found = node[key]
    except (InterpolationKeyError, InterpolationToMissingValueError):
        return Unresolved(written)
    return _resolve(found) if OmegaConf.is_config(found) else found


def _merge(config: Any, overrides: Sequence[str]) -> Any:
    given = []
    for override in overrides:
        if "=" not in override:
            raise InputError(f"{override!r} is not a setting. Write key=value.")
        given.append(override.lstrip("+").removeprefix("--"))
    return OmegaConf.merge(config, OmegaConf.from_cli(given))


def _delete(config: Any, overrides: Sequence[str]) -> Any:
    for override in overrides:
        key = override.partition("=")[0].lstrip("~")
        parent, _, name = key.rpartition(".")
        node = OmegaConf.select(config, parent) if parent else config
        if node is None or name not in node:
            raise InputError(f"~{key}: there is no such key. Remove the override.")
        del node[name]
    return config
