"""llm-foundry's ``preprocessing_fn``: the user's function from a raw row to a known format."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from spin_composer.data.faults import BadRow, Where
from spin_composer.errors import InputError, shown
from spin_composer.settings.dataset import DatasetConfig


def make_preprocessor(config: DatasetConfig) -> Callable[[Any], Any] | None:
    """Return the row function that the config names or that llm-foundry registers for the name."""
    name = config.hf_name
    if config.preprocessing_fn is None and (name is None or os.path.exists(name)):
        return None  # llm-foundry registers functions for hub names only
    from spin_composer.foundry.finetuning import dataset_constructor

    named = config.preprocessing_fn
    if isinstance(named, Mapping):
        ordered = {"prompt": named["prompt"], "response": named["response"]}
        return dataset_constructor.get_preprocessing_fn_from_dict(ordered)
    # As `python -m` does: a console script's sys.path lacks the folder it is called in.
    if named is not None and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return dataset_constructor.get_preprocessing_fn_from_str(named, config.hf_name)
    except Exception as error:
        raise InputError(
            f"train_loader.dataset.preprocessing_fn={shown(named)} cannot be imported "
            f"({shown(str(error.__cause__ or error), 120)}). Write it as module:function."
        ) from error


def preprocess_row(preprocess: Callable[[Any], Any], row: Any, where: Where) -> Any:
    """Apply the function to one row.

    Raises:
        BadRow: The function failed.
    """
    try:
        return preprocess(row)
    except Exception as error:
        raise BadRow(
            where, "preprocessing_fn failed",
            f"preprocessing_fn fails with {type(error).__name__}: {shown(str(error))} on the row "
            f"{shown(row)}", "Correct the function, or the row.",
        ) from error  # fmt: skip
