"""What is read and tokenized as llm-foundry's fine-tuning does it.

Imported within functions only: llm-foundry takes seconds to import.
"""

from __future__ import annotations

from llmfoundry import registry
from llmfoundry.data.finetuning.collator import Seq2SeqFinetuningCollator
from llmfoundry.data.finetuning.tasks import (
    _DEFAULT_CHAT_TEMPLATE as DEFAULT_CHAT_TEMPLATE,
)
from llmfoundry.data.finetuning.tasks import (
    HUGGINGFACE_FOLDER_EXTENSIONS,
    SUPPORTED_EXTENSIONS,
    dataset_constructor,
    tokenize_formatted_example,
)
from llmfoundry.utils.builders import build_tokenizer
from llmfoundry.utils.file_utils import dist_mkdtemp
from llmfoundry.utils.logging_utils import SpecificWarningFilter

registered_tokenizers = registry.tokenizers
"""Builders of tokenizers by name; any other name is Hugging Face's."""

__all__ = [
    "DEFAULT_CHAT_TEMPLATE",
    "HUGGINGFACE_FOLDER_EXTENSIONS",
    "SUPPORTED_EXTENSIONS",
    "Seq2SeqFinetuningCollator",
    "SpecificWarningFilter",
    "build_tokenizer",
    "dataset_constructor",
    "dist_mkdtemp",
    "registered_tokenizers",
    "tokenize_formatted_example",
]
