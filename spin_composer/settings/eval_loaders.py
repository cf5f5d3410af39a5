"""The ``eval_loader`` of a YAML: ``name: spin`` tokenizes held-out rows as training does."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from spin_composer.errors import InputError, format_value
from spin_composer.settings.dataset import (
    DEFAULT_TOKENIZATION,
    DatasetConfig,
    check_loader_keys,
    dataset_block,
    read_config,
)
from spin_composer.settings.fields import is_int
from spin_composer.settings.section import Config

log = logging.getLogger(__name__)

_TOKENIZATION_KEYS = (
    "tokenize", "generation_prompt", "date_string", "stop_token", "special_tokens_in_text",
)  # fmt: skip
"""Keys of the dataset block that say how a row becomes ids."""
_LIMITS = ("max_seq_len", "max_prompt_len", "truncate_prompt")
"""Keys that determine how a long row is cut."""
_INTERNAL_KEYS = ("label", "evaluation", "run")
"""Keys that are not arguments of the loader: the label, and those that the transform sets."""
_TEXT_MODE = ("special_tokens_in_text", "text")
"""The only value of that key that changes ids; the others decide how such a row is reported."""


def check_eval_loaders(cfg: Config, training: DatasetConfig | None) -> None:
    """Check the evaluation loaders named ``spin`` without loading anything.

    Args:
        cfg: A training config.
        training: The ``train_loader``'s dataset block; None if this is not a SPIN run.

    Raises:
        InputError: A key is invalid, or a row would be tokenized differently than in training.
    """
    ours = [(where, loader) for where, loader in loaders(cfg) if loader.get("name") == "spin"]
    if not ours:
        return
    if cfg.get("eval_loader") and cfg.get("eval_loaders"):
        raise InputError(
            "eval_loader and eval_loaders are both given, and only the first is evaluated. Write "
            "all of them in eval_loaders, each with a label."
        )
    size = cfg.get("device_eval_batch_size", 1)
    if not is_int(size) or size < 1:
        raise InputError(
            "device_eval_batch_size must be a whole number of rows, 1 or more, got "
            f"{format_value(size)}."
        )
    for where, loader in ours:
        if where != "eval_loader" and not loader.get("label"):
            raise InputError(f"{where}.label is not set. Name each of several evaluation sets.")
        check_loader_keys((key for key in loader if key not in _INTERNAL_KEYS), where)
        remedy = "Give it the train_loader's dataset block with held-out rows."
        dataset = dataset_block(loader.get("dataset"), where, remedy)
        config = read_config(dataset, f"{where}.dataset")
        if training is not None:
            _compare(config, training, f"{where}.dataset")


def route_eval_loaders(cfg: dict[str, Any]) -> None:
    """Mark the loaders named ``spin`` as evaluation loaders; a labeled one becomes a list.

    llm-foundry uses the same names for training and evaluation loaders, and reads a label in
    ``eval_loaders`` only.
    """
    for _, loader in loaders(cfg):
        if loader.get("name") == "spin":
            loader["evaluation"] = True
    single = cfg.get("eval_loader")
    if isinstance(single, dict) and single.get("evaluation") and "label" in single:
        if single["label"]:
            cfg["eval_loaders"] = [cfg.pop("eval_loader")]
        else:
            single.pop("label")


def loaders(cfg: Config) -> list[tuple[str, Any]]:
    """Return each evaluation loader of a config with its name in messages."""
    found: list[tuple[str, Any]] = []
    for key in ("eval_loader", "eval_loaders"):
        given = cfg.get(key) or []
        several = isinstance(given, list)
        for i, loader in enumerate(given if several else [given]):
            if isinstance(loader, Mapping):
                found.append((f"{key}[{i}]" if several else key, loader))
    return found


def _compare(config: DatasetConfig, training: DatasetConfig, where: str) -> None:
    """Reject different token ids than in training; warn of different limits on long rows."""
    for key in _TOKENIZATION_KEYS:
        default = DEFAULT_TOKENIZATION if key == "tokenize" else None
        here, there = (getattr(one, key) or default for one in (config, training))
        name, plain = _TEXT_MODE
        if here == there or (key == name and plain not in (here, there)):
            continue
        raise InputError(
            f"{where}.{key} is {format_value(here)} and train_loader.dataset.{key} is "
            f"{format_value(there)}: held-out rows would be measured by other ids than are trained "
            "on. Write the same in both."
        )
    for key in _LIMITS:
        here, there = getattr(config, key), getattr(training, key)
        if here != there:
            log.warning(
                f"{where}.{key} is {format_value(here)} and train_loader.dataset.{key} is "
                f"{format_value(there)}: long held-out rows are cut at another place than "
                "training's."
            )
