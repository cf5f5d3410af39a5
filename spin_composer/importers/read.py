"""Reading another trainer's YAML with the overrides of its command line, as Hydra does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from spin_composer.errors import InputError
from spin_composer.settings.yaml import not_a_mapping

_RESOLVERS = {
    "multiply": lambda a, b: a * b,
    "add": lambda *numbers: sum(numbers),
    "subtract": lambda a, b: a - b,
    "int_div": lambda a, b: a // b,
    "div": lambda a, b: a / b,
    "not": lambda a: not a,
}
"""The functions that NeMo registers for its configs."""


def read_config(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Return a config with the overrides of its command line, resolved.

    Args:
        path: The YAML.
        overrides: Hydra's: ``key=value``, ``+key=value``, ``++key=value``, ``~key``.

    Raises:
        InputError: The file or an override cannot be read, or a ``${...}`` cannot be resolved.
    """
    known = {name for name in _RESOLVERS if OmegaConf.has_resolver(name)}
    # OmegaConf 2.4 has another name for it.
    register = getattr(OmegaConf, "register_resolver", OmegaConf.register_new_resolver)
    for name in _RESOLVERS.keys() - known:
        register(name, _RESOLVERS[name])
    try:
        config = OmegaConf.load(path)
        given = []
        for override in overrides:
            key = override.partition("=")[0].lstrip("+")
            if override.startswith("~"):
                _delete(config, key.lstrip("~"))
            elif "=" not in override:
                raise InputError(f"{override!r} is not a setting. Write key=value.")
            else:
                given.append(override.lstrip("+"))
        merged = OmegaConf.merge(config, OmegaConf.from_cli(given))
        plain = OmegaConf.to_container(merged, resolve=True)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist. Give the YAML of the run.") from None
    except (YAMLError, OmegaConfBaseException, OSError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: {' '.join(str(error).split())}") from None
    finally:
        for name in _RESOLVERS.keys() - known:
            OmegaConf.clear_resolver(name)
    if not isinstance(plain, dict):
        raise not_a_mapping(path)
    return {str(key): value for key, value in plain.items()}


def _delete(config: Any, key: str) -> None:
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    if node is None or name not in node:
        raise InputError(f"~{key}: there is no such key. Remove the override.")
    del node[name]
