"""Unwrap the ComposerModel and the Hugging Face model from DDP, PEFT and FSDP."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from composer.core import State
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from spin_composer.fsdp import unwrap

if TYPE_CHECKING:
    from peft import PeftModel

    from spin_composer.model.lm import SpinLM


def composer_model(state: State) -> SpinLM:
    """Return the SpinLM inside ``state.model``, which DDP may have wrapped."""
    model = state.model
    return cast("SpinLM", model.module if isinstance(model, DistributedDataParallel) else model)


def inner_model(model: nn.Module) -> PreTrainedModel:
    """Return the Hugging Face model, without PEFT's and FSDP1's wrappers.

    Args:
        model: A Hugging Face model, a PeftModel around one, or FSDP1's wrapper of either.
    """
    inner = unwrap(model)
    if hasattr(inner, "peft_config"):
        inner = cast("PeftModel", inner).get_base_model()
    return cast(PreTrainedModel, unwrap(inner))


def plain_class(model: PreTrainedModel) -> type[PreTrainedModel]:
    """Return a model's class; under FSDP2, the class that it had before."""
    return next(
        cls
        for cls in type(model).__mro__
        if issubclass(cls, PreTrainedModel) and not issubclass(cls, FSDPModule)
    )
