"""Rows of SFT data as JSON holds them: as they come, and in llm-foundry's form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Columns = Mapping[str, Any]
"""A row as its source has it: values of any kind by the columns' names."""
Row = dict[str, Any]
"""A row in llm-foundry's form: ``prompt`` and ``response``, or ``messages`` and, where the row has
them, ``tools`` and ``chat_template_kwargs``."""
Turn = dict[str, Any]
"""One of a row's ``messages``: ``role``, ``content`` and the further keys that carry text."""
Call = dict[str, Any]
"""One of a turn's ``tool_calls``: ``type``, and ``function`` with ``name`` and ``arguments``."""
