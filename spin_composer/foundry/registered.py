"""Checks of a YAML's component names and arguments against llm-foundry's registries.

llm-foundry itself reports a mistyped optimizer only after the model was loaded.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

import torch
from llmfoundry import registry
from llmfoundry.utils.registry_utils import TypedRegistry

from spin_composer.errors import InputError, collect_errors, format_value
from spin_composer.model.lm import HFSpinLM
from spin_composer.settings.fields import suggest_key
from spin_composer.settings.section import Config

_OF_PARAMETER_GROUPS = frozenset({"disable_grad", "param_groups"})
_OF_MODELS = frozenset({"master_weights_dtype"})
_NONE: frozenset[str] = frozenset()
_GIVEN_BY_FOUNDRY = frozenset({"self", "params", "tokenizer", "train_config"})


def check_registered(cfg: Config) -> None:
    """Check a SPIN run's component names, their arguments, and what its device supports.

    Args:
        cfg: A config that ``config.validate`` accepts.

    Raises:
        InputError: A line for each problem.
    """
    collect_errors(lambda: _device(cfg), lambda: check_names(cfg))


def check_names(cfg: Config) -> None:
    """Check a SPIN run's component names and their arguments.

    Args:
        cfg: A config that ``config.validate`` accepts.

    Raises:
        InputError: A line for each problem.
    """
    model = {key: value for key, value in cfg["model"].items() if key != "name"}
    optimizer = {key: value for key, value in cfg["optimizer"].items() if key != "name"}
    checks: list[Callable[[], object]] = [
        lambda: _check_component("model", registry.models, cfg["model"]["name"], model, _OF_MODELS),
        lambda: _check_component(
            "optimizer", registry.optimizers, cfg["optimizer"]["name"], optimizer,
            _OF_PARAMETER_GROUPS,
        ),
    ]  # fmt: skip
    if isinstance(adapters := model.get("peft_config"), Mapping):
        from peft import LoraConfig

        checks.append(lambda: _check_arguments("model.peft_config", LoraConfig, "LoRA", adapters))
    for section, registries in (
        ("algorithms", [registry.algorithms]),
        ("callbacks", [registry.callbacks, registry.callbacks_with_config]),
        ("loggers", [registry.loggers]),
    ):
        for name, given in (cfg.get(section) or {}).items():
            known = [r for r in registries if name in r] or registries
            checks.append(
                lambda s=section, r=known, n=name, g=given: _check_component(
                    f"{s}.{n}", r[0], n, g or {}
                )
            )
    for key in ("eval_loader", "eval_loaders"):
        loaders = cfg.get(key) or []
        for loader in loaders if isinstance(loaders, list) else [loaders]:
            name = loader.get("name")
            checks.append(lambda n=name, k=key: _known(f"{k}.name", registry.dataloaders, n))
    collect_errors(*checks)


def _device(cfg: Config) -> None:
    if torch.cuda.is_available():
        return
    problems = []
    precision = cfg.get("precision", "amp_bf16")  # llm-foundry's default
    if precision not in ("fp32", None):
        problems.append(
            f"precision={format_value(precision)} needs a GPU. Set precision=fp32 on a CPU."
        )
    if cfg.get("device_train_microbatch_size", "auto") == "auto":
        problems.append(
            "device_train_microbatch_size=auto needs a GPU. Set it to a number of pairs on a CPU."
        )
    if problems:
        raise InputError("\n".join(problems))


def _known(where: str, known: TypedRegistry, name: str) -> None:
    if name not in known:
        names = sorted(known.get_all())
        raise InputError(
            f"{where}={format_value(name)} is not registered. {suggest_key(name, names)}"
        )


def _check_component(
    where: str, known: TypedRegistry, name: str, given: object, others: frozenset[str] = _NONE
) -> None:
    """Check that ``name`` is registered and takes the arguments ``given``."""
    _known(f"{where}.name" if where in ("model", "optimizer") else where, known, name)
    if not isinstance(given, Mapping):
        raise InputError(f"{where} must be a mapping of settings, got {format_value(given)}.")
    _check_arguments(where, known.get(name), name, given, others)


def _check_arguments(
    where: str,
    built: Callable[..., object],
    name: str,
    given: Config,
    others: frozenset[str] = _NONE,
) -> None:
    arguments, required = _arguments(built)
    missing = sorted(required - set(given))
    lines = [f"{where}.{key} is not set, and {name} needs it." for key in missing]
    if arguments is not None:
        lines += [
            f"{where}.{key} is not a setting of {name}. "
            f"{suggest_key(key, sorted(arguments | others))}"
            for key in given
            if key not in arguments | others
        ]
    if lines:
        raise InputError("\n".join(lines))


def _arguments(built: Callable[..., object]) -> tuple[set[str] | None, set[str]]:
    """Return the parameters of a class or function (None if any) and the required ones."""
    functions = [built.__init__ if inspect.isclass(built) else built]
    if inspect.isclass(built) and issubclass(built, HFSpinLM):
        functions.append(HFSpinLM.__init__)  # receives arguments that a subclass does not name
    signatures = [list(inspect.signature(f).parameters.values()) for f in functions]
    named = [
        p for each in signatures for p in each if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    needed = {p.name for p in named if p.default is p.empty} - _GIVEN_BY_FOUNDRY
    if any(p.kind == p.VAR_KEYWORD for p in signatures[-1]):
        return None, needed
    return {p.name for p in named} - _GIVEN_BY_FOUNDRY, needed
