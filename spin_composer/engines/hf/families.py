"""The model types that our decode loop supports, and how it runs their attention."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from spin_composer.model.unwrap import plain_class

DECODE_FAMILIES = frozenset(
    {
        "cohere",
        "deepseek_v3",
        "gemma",
        "glm",
        "glm4",
        "glm4_moe",
        "gpt_neox",
        "granite",
        "helium",
        "llama",
        "mistral",
        "mixtral",
        "nemotron",
        "olmo",
        "olmo2",
        "phi",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "qwen3_moe",
        "smollm3",
        "stablelm",
        "starcoder2",
    }
)
"""Model types (``model_type`` of the config) that the decode loop runs: their forward takes a 4D
mask, positions and a cache object, and all of their layers are alike. tests/engines/hf/test_decode
compares each with whole forward passes. Other types take Hugging Face generate: slower, as right.
"""


def unsupported_reason(model: PreTrainedModel, num_tokens: int) -> str | None:
    """Return why the decode loop does not support a model, or None.

    Args:
        model: Of :func:`inner_model`.
        num_tokens: Of the longest sequence.
    """
    config = model.config
    name = plain_class(model).__name__
    kind = getattr(config, "model_type", "")
    if not plain_class(model).__module__.startswith("transformers.") or kind not in DECODE_FAMILIES:
        return f"{name} is not among the models that our decode loop is tested with"
    if getattr(config, "cache_implementation", None):
        return f"{name}'s config asks for a cache of its own ({config.cache_implementation})"
    window = getattr(config, "sliding_window", None)
    if not getattr(config, "use_sliding_window", True):
        window = None
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - {"full_attention", "sliding_attention"}:
        return f"{name} has layers of the kinds {', '.join(sorted(kinds))}"
    if window is not None and num_tokens > window:
        return f"sequences of up to {num_tokens} tokens pass {name}'s sliding window of {window}"
    attention = config._attn_implementation
    if attention not in ("eager", "sdpa") and not model._supports_attention_backend:
        return f"{name} cannot leave attention {attention}, which takes no 4D mask"
    return None


def compute_dtype(model: PreTrainedModel, device: torch.device) -> torch.dtype:
    """Return the dtype that attention computes in: autocast's, or that of the hidden states."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return autocast_dtype(device) or weight.dtype


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Return the dtype that autocast casts products to, or None where it is off."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return None


@contextmanager
def masked_attention(model: PreTrainedModel) -> Iterator[None]:
    """Within, compute attention by an implementation that takes a 4D mask.

    flash_attention_2 would search the mask for padding, and synchronize with the device, in every
    layer of every step; sdpa computes the same result.
    """
    config = model.config
    kept = config._attn_implementation
    if kept not in ("eager", "sdpa"):
        config._attn_implementation = "sdpa"
    try:
        yield
    finally:
        config._attn_implementation = kept
