"""Which parameters are trained, and what a checkpoint keeps of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from spin_composer.fsdp import plain_name


def trainable_names(model: nn.Module) -> set[str]:
    """Return the names, as a state dict has them, of the parameters that are trained."""
    named = model.named_parameters(remove_duplicate=False)
    return {plain_name(name).removeprefix("module.") for name, p in named if p.requires_grad}


def kept_in_checkpoints(state: Mapping[str, Any], names: set[str], prefix: str) -> dict[str, Any]:
    """Return what a PEFT model's checkpoint holds: adapters, and every other trained parameter.

    Composer keeps what has ``lora_`` in its name only: a resumed run would go on with the base
    model's ``modules_to_save`` under the optimizer's state of the trained ones.

    Args:
        state: The whole state dict.
        names: Of :func:`trainable_names`.
        prefix: That the state dict's names have and ``names`` have not.
    """
    return {
        name: value
        for name, value in state.items()
        if "lora_" in name or plain_name(name).removeprefix(prefix) in names
    }
