"""Merging of LoRA adapters into copies of the weights, for generation and for export.

Unmerged, each adapted layer needs two more matrix products per token, and generation is bound by
the number of kernels. The weights themselves are not changed: merging in place and unmerging would
not restore the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from peft.tuners.lora import Conv2d as LoraConv2d
    from peft.tuners.lora import Embedding as LoraEmbedding
    from peft.tuners.lora import Linear as LoraLinear

    _Lora = LoraLinear | LoraEmbedding | LoraConv2d


def mergeable(model: nn.Module) -> list[LoraLinear]:
    """Return the adapted layers of a PEFT model that are plain linear layers with active LoRA."""
    return [module for module in model.modules() if _is_lora(module) and _is_mergeable(module)]


@contextmanager
def merged_adapters(model: nn.Module, dtype: torch.dtype | None) -> Iterator[None]:
    """Within, the layers that :func:`mergeable` finds compute with merged weights.

    Other layers (DoRA, embeddings, quantized weights) compute as before.

    Args:
        model: A PEFT model with gathered parameters, or any other model, which is not changed.
        dtype: The dtype of the merged weights: autocast's, so that they are cast only once; None
            keeps the layers' dtype.
    """
    with ExitStack() as stack:
        for layer in mergeable(model):
            base = layer.base_layer
            assert isinstance(base, nn.Linear)
            merged = merged_weight(layer)
            assert merged is not None
            stack.enter_context(_overridden(base, "weight", merged.to(dtype or base.weight.dtype)))
            stack.enter_context(_overridden(layer, "forward", base.__call__))
        yield


@contextmanager
def _overridden(owner: nn.Module, name: str, value: object) -> Iterator[None]:
    """Within, an instance attribute shadows a registered parameter, or a method of the class.

    There may be one already: FSDP1 stores the weight in the forward's dtype there.
    """
    before = owner.__dict__.get(name)
    owner.__dict__[name] = value
    try:
        yield
    finally:
        owner.__dict__.pop(name)
        if before is not None:
            owner.__dict__[name] = before


@torch.no_grad()
def merged_weight(layer: nn.Module) -> Tensor | None:
    """Return a layer's weight with its active adapters merged, fp32; None if it has no adapters.

    Args:
        layer: A module of a PEFT model.
    """
    if not _is_lora(layer):
        return None
    own = layer.base_layer.weight
    assert isinstance(own, Tensor)
    weight = own.detach().float()
    if not layer.disable_adapters:
        for adapter in layer.active_adapters:
            if adapter in layer.lora_A or adapter in layer.lora_embedding_A:
                weight = weight + layer.get_delta_weight(adapter).detach().float()
    return weight


def unsupported_adapters(model: nn.Module) -> list[str]:
    """Return the kinds of adapters in a model that :func:`merged_weight` cannot merge, sorted."""
    kinds: set[str] = set()
    for layer in model.modules():
        if not hasattr(layer, "base_layer"):
            continue
        if not _is_lora(layer):
            kinds.add(type(layer).__name__)
        elif len(layer.lora_magnitude_vector):
            kinds.add("DoRA")
        elif any(layer.lora_bias.values()):
            kinds.add("LoRA with lora_bias")
    return sorted(kinds)


def _is_lora(layer: nn.Module) -> TypeGuard[_Lora]:
    """Return whether a layer has LoRA weights; PEFT need not be installed."""
    return all(hasattr(layer, name) for name in ("base_layer", "get_delta_weight", "lora_A"))


def _is_mergeable(layer: _Lora) -> TypeGuard[LoraLinear]:
    # Exactly this class: layers of quantized weights are subclasses.
    if type(layer.base_layer) is not nn.Linear:
        return False
    active = [adapter for adapter in layer.active_adapters if adapter in layer.lora_A]
    other = layer.disable_adapters or layer.merged or not active or layer.lora_magnitude_vector
    return not other and not any(layer.lora_bias.get(adapter) for adapter in active)
