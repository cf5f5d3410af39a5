"""LoRA adapters merged into copies of the weights for the time of generation.

Unmerged, each adapted layer makes two more products per token, and a step of generation is bound
by the number of its kernels. The weights themselves are not touched: merging in place and taking
it back would not give the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def mergeable(model: nn.Module) -> list[Any]:
    """Return the adapted layers of a PEFT model that are plain linear layers plus LoRA."""
    return [module for module in model.modules() if _is_plain(module)]


@contextmanager
def merged_adapters(model: nn.Module, dtype: torch.dtype | None) -> Iterator[None]:
    """Let the layers that :func:`mergeable` finds compute with merged weights.

    A layer of another kind (DoRA, an embedding, quantised weights) goes on as it is.

    Args:
        model: A PEFT model whose parameters are gathered, or any other, which is left alone.
        dtype: Of the merged weights: autocast's, so that no product casts them anew; None keeps
            the layers' own.
    """
    with ExitStack() as stack:
        for layer in mergeable(model):
            base = layer.base_layer
            merged = merged_weight(layer)
            assert merged is not None
            stack.enter_context(_shadowed(base, "weight", merged.to(dtype or base.weight.dtype)))
            stack.enter_context(_shadowed(layer, "forward", base.__call__))
        yield


@contextmanager
def _shadowed(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Put an attribute of the instance before a registered parameter or a method of the class.

    One may stand there already: FSDP1's weight in the forward's dtype.
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
def merged_weight(layer: Any) -> Tensor | None:
    """Return an adapted layer's weight with its active adapters, fp32; None if it has none."""
    if not hasattr(layer, "get_delta_weight") or not hasattr(layer, "base_layer"):
        return None
    weight = layer.base_layer.weight.detach().float()
    if not layer.disable_adapters:
        for adapter in layer.active_adapters:
            if adapter in layer.lora_A or adapter in layer.lora_embedding_A:
                weight = weight + layer.get_delta_weight(adapter).detach().float()
    return weight


def unmergeable(model: nn.Module) -> list[str]:
    """Return the kinds of adapted layers that :func:`merged_weight` does not speak for."""
    kinds: set[str] = set()
    layers: Iterator[Any] = model.modules()
    for layer in layers:
        if not hasattr(layer, "base_layer"):
            continue
        if not hasattr(layer, "get_delta_weight") or not hasattr(layer, "lora_A"):
            kinds.add(type(layer).__name__)
        elif len(layer.lora_magnitude_vector):
            kinds.add("DoRA")
        elif any(layer.lora_bias.values()):
            kinds.add("LoRA with lora_bias")
    return sorted(kinds)


def _is_plain(layer: Any) -> bool:
    # The class itself: layers of quantised weights are subclasses.
    linear = type(getattr(layer, "base_layer", None)) is nn.Linear
    if not linear or not hasattr(layer, "get_delta_weight"):
        return False
    active = [adapter for adapter in layer.active_adapters if adapter in layer.lora_A]
    unlike = layer.disable_adapters or layer.merged or not active or layer.lora_magnitude_vector
    return not unlike and not any(layer.lora_bias.get(adapter) for adapter in active)
