"""The training command of llm-foundry: a config in, a finished Trainer out."""

from __future__ import annotations

from llmfoundry.command_utils import train

__all__ = ["train"]
