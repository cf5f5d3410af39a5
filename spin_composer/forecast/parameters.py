"""The parameters of a YAML's model, counted without weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from spin_composer.settings.section import Config


@dataclass(frozen=True)
class Parameters:
    """Numbers of a model's parameters, and what its KV cache holds."""

    total: int
    """All, tied ones once."""
    trained: int
    """Those that are trained: LoRA's adapters, or all."""
    weight_bytes: int
    """Bytes of a weight in training."""
    cache_numbers: int | None
    """Numbers in the KV cache per token; None if the config does not say."""


def count_parameters(model: Config) -> Parameters | None:
    """Build a YAML's model on the meta device and count.

    Args:
        model: The ``model`` section.

    Returns:
        The counts; None for MPT, whose class is llm-foundry's.

    Raises:
        InputError: The config or LoRA's settings cannot be used.
    """
    if model.get("pretrained_model_name_or_path") is None:
        return None
    import torch
    from transformers import AutoModelForCausalLM

    from spin_composer.pretrained.config import weights_dtype
    from spin_composer.pretrained.limits import build_config
    from spin_composer.pretrained.load import lora_config

    config = build_config(model)
    trusted = bool(model.get("trust_remote_code", False))
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(config, trust_remote_code=trusted)
        total = sum(p.numel() for p in built.parameters())
        trained = total
        if isinstance(adapters := model.get("peft_config"), Mapping):
            from peft import get_peft_model

            built = get_peft_model(built, lora_config(adapters))
            total = sum(p.numel() for p in built.parameters())
            trained = sum(p.numel() for p in built.parameters() if p.requires_grad)
    return Parameters(total, trained, weights_dtype(config).itemsize, _cache_numbers(config))


def _cache_numbers(config: object) -> int | None:
    """Return how many numbers a token's keys and values are, over all layers."""
    layers = getattr(config, "num_hidden_layers", None)
    heads = getattr(config, "num_attention_heads", None)
    width = getattr(config, "hidden_size", None)
    if not (isinstance(layers, int) and isinstance(heads, int) and isinstance(width, int)):
        return None
    of_keys = getattr(config, "num_key_value_heads", None) or heads
    head = getattr(config, "head_dim", None) or width // heads
    return 2 * layers * of_keys * head
