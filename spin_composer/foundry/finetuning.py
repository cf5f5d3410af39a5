"""llm-foundry's registries and collator for fine-tuning.

Imported within functions only, and only where llm-foundry is installed; it takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llmfoundry import registry
from llmfoundry.data.finetuning.collator import Seq2SeqFinetuningCollator
from llmfoundry.data.finetuning.tasks import dataset_constructor
from llmfoundry.utils.builders import build_tokenizer

__all__ = [
    "Seq2SeqFinetuningCollator",
    "build_tokenizer",
    "registered_preprocessor",
    "registered_tokenizers",
]

registered_tokenizers = registry.tokenizers
"""Builders of tokenizers by name; any other name is Hugging Face's."""


def registered_preprocessor(name: str) -> Callable[[Any], Any] | None:
    """Return the preprocessing function registered by a name, such as a data set's, or None."""
    return dataset_constructor.get_preprocessing_fn_from_str(None, name)
