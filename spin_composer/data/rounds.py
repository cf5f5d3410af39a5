"""Long conversations, cut to their first round, as in the paper."""

from __future__ import annotations

from spin_composer.data.rows import Columns, Row
from spin_composer.data.turns import carries_text
from spin_composer.errors import InputError, format_value


def first_round(row: Columns) -> Row:
    """Return the first user turn and its answer, after a system turn if there is one.

    A ``preprocessing_fn`` for llm-foundry's loaders and ours:
    ``spin_composer.data.rounds:first_round``. SPIN's authors play the first round of each
    conversation of UltraChat (arXiv 2401.01335, section 6.1).

    Args:
        row: Has ``messages``, a list of ``{"role", "content"}``, perhaps with further keys that
            carry text, and perhaps ``tools`` and ``chat_template_kwargs``; all else is dropped.

    Returns:
        ``{"messages": [...]}``, ending with the first assistant turn, and the tools.

    Raises:
        InputError: If there is no assistant turn.
    """
    messages = row.get("messages")
    for position, message in enumerate(messages or []):
        if message.get("role") == "assistant":
            kept = (messages or [])[: position + 1]
            turns = [
                {k: v for k, v in m.items() if k in ("role", "content") or carries_text(k, v)}
                for m in kept
            ]
            beside = ("tools", "chat_template_kwargs")
            return {"messages": turns, **{key: row[key] for key in beside if row.get(key)}}
    raise InputError(
        f"messages={format_value(messages)}: no assistant turn. Leave the row out (on_bad_row: "
        "skip)."
    )
