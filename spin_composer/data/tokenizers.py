"""The tokenizer of a data command, made just as a training run makes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spin_composer.errors import InputError, shown


def load_tokenizer(name: str, kwargs: Mapping[str, Any] | None = None) -> Any:
    """Return the tokenizer that ``tokenizer: {name, kwargs}`` of a YAML means.

    Raises:
        InputError: It cannot be loaded, or has no EOS token.
    """
    from spin_composer.foundry.finetuning import build_tokenizer, registered_tokenizers

    given = dict(kwargs or {})
    if name not in registered_tokenizers:  # transformers would ask on the terminal
        given.setdefault("trust_remote_code", False)
    try:
        return build_tokenizer(name, given)
    except Exception as error:
        raise InputError(
            f"tokenizer={shown(name)} cannot be loaded ({type(error).__name__}: "
            f"{shown(str(error), 160)}). Give a Hugging Face name or a tokenizer's folder."
        ) from error
