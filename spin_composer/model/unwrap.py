"""The Hugging Face model and its class, without the wrappers of PEFT and FSDP."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.distributed.fsdp import FSDPModule

from spin_composer.fsdp import unwrapped


def inner_model(model: Any) -> Any:
    """Return the Hugging Face model, without PEFT's and FSDP1's wrappers."""
    model = unwrapped(model)
    model = model.get_base_model() if hasattr(model, "peft_config") else model
    return unwrapped(model)


def plain_class(model: Any) -> Any:
    """Return the class that FSDP2 has made a subclass of."""
    return next(
        cls
        for cls in type(model).__mro__
        if issubclass(cls, nn.Module) and not issubclass(cls, FSDPModule)
    )
