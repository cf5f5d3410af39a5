"""llm-foundry's training command: takes a config and returns the Trainer after training."""

from __future__ import annotations

from llmfoundry.command_utils import train

__all__ = ["train"]
