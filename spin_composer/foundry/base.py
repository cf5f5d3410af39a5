"""What the models are built on: llm-foundry's ComposerModels, MPT, and models without weights."""

from __future__ import annotations

from llmfoundry.models import ComposerMPTCausalLM
from llmfoundry.models.hf import ComposerHFCausalLM
from llmfoundry.models.layers.custom_embedding import SharedEmbedding
from llmfoundry.models.mpt import MPTConfig
from llmfoundry.models.utils import init_empty_weights

__all__ = [
    "ComposerHFCausalLM",
    "ComposerMPTCausalLM",
    "MPTConfig",
    "SharedEmbedding",
    "init_empty_weights",
]
