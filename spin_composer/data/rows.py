"""Types of SFT rows as read from JSON: raw, and in llm-foundry's format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Columns = Mapping[str, Any]
"""A raw row: values of any type by column name."""
Row = dict[str, Any]
"""A row in llm-foundry's format: ``prompt`` and ``response``, or ``messages`` and, if the row has
them, ``tools`` and ``chat_template_kwargs``."""
Turn = dict[str, Any]
"""One of a row's ``messages``: ``role``, ``content`` and further keys with text."""
Call = dict[str, Any]
"""One of a turn's ``tool_calls``: ``type``, and ``function`` with ``name`` and ``arguments``."""
