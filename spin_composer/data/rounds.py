"""Rows of long conversations, cut to what the paper plays: their first round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spin_composer.errors import InputError, shown


def first_round(row: Mapping[str, Any]) -> dict[str, list[dict[str, str]]]:
    """Return the first user turn and its answer, after a system turn if there is one.

    A ``preprocessing_fn`` for llm-foundry's loaders and ours:
    ``spin_composer.data.rounds:first_round``. SPIN's authors play the first round of each
    conversation of UltraChat (arXiv 2401.01335, section 6.1).

    Args:
        row: Has ``messages``, a list of ``{"role", "content"}``; other columns are dropped.

    Returns:
        ``{"messages": [...]}``, ending with the first assistant turn.

    Raises:
        InputError: If there is no assistant turn.
    """
    messages = row.get("messages")
    for position, message in enumerate(messages or []):
        if message.get("role") == "assistant":
            kept = (messages or [])[: position + 1]
            return {"messages": [{k: m[k] for k in ("role", "content")} for m in kept]}
    raise InputError(
        f"messages={shown(messages)}: no assistant turn. Leave the row out (on_bad_row: skip)."
    )
