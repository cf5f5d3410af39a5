"""The trained parameters of a model, and the content of a PEFT model's checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from torch import nn

from spin_composer.fsdp import plain_name

T = TypeVar("T")


def trainable_names(model: nn.Module) -> set[str]:
    """Return the names of the trained parameters, as a state dict has them."""
    named = model.named_parameters(remove_duplicate=False)
    return {plain_name(name).removeprefix("module.") for name, p in named if p.requires_grad}


def checkpoint_state(state: Mapping[str, T], names: set[str], prefix: str) -> dict[str, T]:
    """Return the state of a PEFT model's checkpoint: adapters and all other trained parameters.

    Composer itself would keep only names with ``lora_``: a resumed run would continue with the base
    model's ``modules_to_save`` and the optimizer state of the trained ones.

    Args:
        state: The whole state dict.
        names: The names that :func:`trainable_names` returns.
        prefix: The prefix of the state dict's names, which ``names`` lack.

    Returns:
        The entries of ``state`` that a checkpoint holds, under the same names.
    """
    return {
        name: value
        for name, value in state.items()
        if "lora_" in name or plain_name(name).removeprefix(prefix) in names
    }
