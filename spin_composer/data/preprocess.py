"""``preprocessing_fn``: the user's function from a raw row to a known format."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import Any

from spin_composer.data.bad_row import BadRow, Location
from spin_composer.errors import InputError, format_value
from spin_composer.extras import install_extra
from spin_composer.foundry.installed import (
    foundry_is_imported,
    foundry_is_installed,
    require_foundry,
)
from spin_composer.settings.dataset import DatasetConfig

Preprocess = Callable[[Any], Any]

_KEY = "train_loader.dataset.preprocessing_fn"
FOUNDRY_DATASETS = frozenset(
    {"tatsu-lab/alpaca", "HuggingFaceH4/databricks_dolly_15k", "bigscience/P3", "Muennighoff/P3"}
    | {"Muennighoff/flan", "teknium/OpenHermes-2.5", "math-ai/StackMathQA"}
    | {"AI-MO/NuminaMath-CoT"}
)
"""Hub data sets for which llm-foundry registers a function."""


def make_preprocessor(config: DatasetConfig) -> Preprocess | None:
    """Return the function that the config names, or that llm-foundry registers for the data set.

    Raises:
        InputError: It cannot be imported, or it is llm-foundry's, which is not installed.
    """
    named = config.preprocessing_fn
    if named is None:
        return _of_hub(config.hf_name)
    if isinstance(named, Mapping):
        return partial(_renamed, dict(named))
    return _imported(named) if ":" in named else _registered(named)


def runs_custom_code(config: DatasetConfig) -> bool:
    """Tell whether rows are preprocessed by code that is neither ours nor llm-foundry's.

    What it depends on is not known: other modules, files, random numbers, earlier rows.

    Raises:
        InputError: As of :func:`make_preprocessor`.
    """
    function = make_preprocessor(config)
    if function is None or isinstance(config.preprocessing_fn, Mapping):
        return False
    module = getattr(function, "__module__", None) or ""
    return module.partition(".")[0] not in ("spin_composer", "llmfoundry")


def _renamed(columns: Mapping[str, str], row: Any) -> dict[str, Any]:
    """Return a row with its columns renamed."""
    return {"prompt": row[columns["prompt"]], "response": row[columns["response"]]}


def _of_hub(name: str | None) -> Preprocess | None:
    if name is None or os.path.exists(name):
        return None  # llm-foundry registers functions for hub names only
    if name not in FOUNDRY_DATASETS and not foundry_is_imported():
        return None  # importing it to ask takes seconds
    if foundry_is_installed():
        from spin_composer.foundry.finetuning import registered_preprocessor

        return registered_preprocessor(name)
    raise InputError(
        f"train_loader.dataset.hf_name={format_value(name)} is read by a function of "
        f"llm-foundry's, which is not installed. {install_extra('foundry')} Or set "
        "preprocessing_fn: module:function."
    )


def _registered(named: str) -> Preprocess:
    require_foundry(f"{_KEY}={format_value(named)} is not module:function, and a registered name")
    from spin_composer.foundry.finetuning import registered_preprocessor

    function = registered_preprocessor(named)
    if function is None:
        raise InputError(
            f"{_KEY}={format_value(named)} is not registered with llm-foundry. Write a function of "
            "your own as module:function."
        )
    return function


def _imported(named: str) -> Preprocess:
    module, _, function = named.partition(":")
    if module.partition(".")[0] == "llmfoundry":
        require_foundry(f"{_KEY}={format_value(named)}")
    # Like `python -m`: a console script's sys.path lacks the current folder.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return getattr(import_module(module), function)
    except Exception as error:
        raise InputError(
            f"{_KEY}={format_value(named)} cannot be imported ({format_value(str(error), 120)}). "
            "Write it as module:function."
        ) from error


def preprocess_row(preprocess: Preprocess, row: object, where: Location) -> object:
    """Apply the function to one row.

    Raises:
        BadRow: The function failed.
    """
    try:
        return preprocess(row)
    except Exception as error:
        raise BadRow(
            where, "preprocessing_fn failed",
            f"preprocessing_fn fails with {type(error).__name__}: {format_value(str(error))} on "
            f"the row {format_value(row)}", "Correct the function, or the row.",
        ) from error  # fmt: skip
