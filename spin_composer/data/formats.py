"""Rows of SFT data: every format that people have, turned into llm-foundry's two.

A row becomes either ``{"prompt": str, "response": str}`` (kind ``plain``) or
``{"messages": [{"role": str, "content": str}, ...]}`` whose last turn is the assistant's (kind
``chat``). Columns that do not belong to the format are ignored. A row that cannot be used raises
``BadRow``: one line with file, line, field, value and remedy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from spin_composer.errors import InputError, shown

Kind = Literal["plain", "chat"]

_KEY_PAIRS = (("prompt", "response"), ("prompt", "completion"), ("input", "output"))
_FORMATS = (
    "prompt + response (or completion), messages, input + output, conversations, real + generated"
)
_SPEAKERS = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "tool": "tool",
}
# What may come before a turn; None is the start of the conversation.
_MAY_FOLLOW: dict[str, tuple[str | None, ...]] = {
    "system": (None,),
    "user": (None, "system", "assistant", "tool"),
    "assistant": ("user", "tool"),
    "tool": ("assistant",),
}


@dataclass(frozen=True, slots=True)
class Where:
    """The place of a row: a file and its line, or a source and the row's number (both from 1)."""

    source: str
    number: int
    unit: Literal["line", "row"] = "line"

    def __str__(self) -> str:
        return (
            f"{self.source}:{self.number}"
            if self.unit == "line"
            else (f"{self.source} row {self.number}")
        )


class BadRow(InputError):
    """A row that cannot be trained on.

    Args:
        where: The row's place.
        reason: A few words that rows with the same fault share (what is counted).
        problem: What is wrong, with field and value.
        remedy: What to do about it.
    """

    def __init__(self, where: Where, reason: str, problem: str, remedy: str) -> None:
        self.where, self.reason, self.problem, self.remedy = where, reason, problem, remedy
        line = f"{where}: {problem}. {remedy}"
        super().__init__(" ".join(line.splitlines()))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.where, self.reason, self.problem, self.remedy)


def to_foundry_row(row: object, where: Where) -> tuple[Kind, dict[str, Any]]:
    """Turn one raw row of any supported format into llm-foundry's.

    Args:
        row: The decoded row.
        where: Its place, for error messages.

    Returns:
        The row's kind and the row with exactly the keys that llm-foundry expects.

    Raises:
        BadRow: The row is of no known format, or cannot be used.
    """
    if not isinstance(row, Mapping):
        raise BadRow(
            where,
            "not an object",
            f"the row is {shown(row)}, not an object with named fields",
            'Write one object per line, such as {"prompt": "...", "response": "..."}.',
        )
    present = {key for key, value in row.items() if value is not None}
    form = _format_of(present, row, where) or _format_of(set(row), row, where)
    if form is None:
        raise _unknown_format(row, where)
    if form == "messages":
        return "chat", {"messages": _checked_turns(row["messages"], "messages", where)}
    if form == "real":
        return "chat", {"messages": _checked_turns(row["real"], "real", where)}
    if form == "conversations":
        return "chat", {"messages": _from_conversations(row, where)}
    prompt_key, response_key = form
    return "plain", {
        "prompt": _text(row[prompt_key], prompt_key, "empty prompt", where, blank_is_empty=False),
        "response": _text(row[response_key], response_key, "empty response", where),
    }


def _format_of(keys: set[Any], row: Mapping, where: Where) -> Any:
    """Return the format that the keys spell: a pair of names, one name, or None."""
    found: list[Any] = [key for key in ("messages", "conversations") if key in keys]
    if "real" in keys and isinstance(row["real"], (list, tuple)):
        found.append("real")
    found += [pair for pair in _KEY_PAIRS if keys.issuperset(pair)]
    if ("input", "output") in found and "instruction" in keys:
        raise BadRow(
            where,
            "instruction column",
            f"the field instruction={shown(row['instruction'])} stands beside input and output "
            "(Alpaca's format), and would be lost",
            "Join it to the prompt with dataset.preprocessing_fn: module:function.",
        )
    if len(found) > 1:
        names = " and ".join("+".join(f) if isinstance(f, tuple) else f for f in found)
        raise BadRow(
            where,
            "two formats in one row",
            f"the fields {names} are two formats in one row",
            "Keep one of them, or choose with dataset.preprocessing_fn: module:function.",
        )
    return found[0] if found else None


def _unknown_format(row: Mapping, where: Where) -> BadRow:
    keys = set(row)
    for first, second in _KEY_PAIRS:
        for have, lack in ((first, second), (second, first)):
            if have in keys:
                return BadRow(
                    where,
                    f"missing {lack}",
                    f"the field {lack} is missing beside {have}={shown(row[have])}",
                    "Add it, or name the columns: "
                    "dataset.preprocessing_fn: {prompt: ..., response: ...}.",
                )
    if "generated" in keys:
        return BadRow(
            where,
            "missing real",
            f"the field real is missing beside generated={shown(row['generated'])}",
            "Add the real conversation, a list of turns.",
        )
    return BadRow(
        where,
        "unknown format",
        f"the fields {shown(sorted(map(str, keys)))} are no known format",
        f"Known are {_FORMATS}; other columns need "
        "dataset.preprocessing_fn: {prompt: ..., response: ...}.",
    )


def _text(value: object, field: str, empty: str, where: Where, blank_is_empty: bool = True) -> str:
    """Return ``value`` if it is text with something in it."""
    if not isinstance(value, str):
        raise BadRow(
            where,
            "wrong type",
            f"{field}={shown(value)} is of type {type(value).__name__}, not text",
            "Make it a string.",
        )
    if not value or (blank_is_empty and not value.strip()):
        raise BadRow(
            where,
            empty,
            f"{field}={shown(value)} is empty",
            "Give it a text, or drop such rows with dataset.on_bad_row: skip.",
        )
    return value


def _checked_turns(turns: object, field: str, where: Where) -> list[dict[str, str]]:
    """Check a list of ``{"role", "content"}`` turns and strip them to these two keys."""
    if not isinstance(turns, (list, tuple)) or not turns:
        problem = "is not a list of turns" if not isinstance(turns, (list, tuple)) else "is empty"
        reason = "wrong type" if not isinstance(turns, (list, tuple)) else "no assistant turn"
        raise BadRow(
            where,
            reason,
            f"{field}={shown(turns)} {problem}",
            'Write [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}].',
        )
    checked = []
    for i, turn in enumerate(turns):
        name = f"{field}[{i}]"
        if not isinstance(turn, Mapping):
            raise BadRow(
                where,
                "wrong type",
                f"{name}={shown(turn)} is not an object",
                'Write {"role": "...", "content": "..."}.',
            )
        for key in ("role", "content"):
            if key not in turn:
                raise BadRow(
                    where,
                    f"missing {key}",
                    f"{name}={shown(dict(turn))} has no {key}",
                    f"Add the {key}.",
                )
        role = _text(turn["role"], f"{name}.role", "empty role", where)
        checked.append(_turn(role, turn["content"], f"{name}.role", f"{name}.content", where))
    _check_order(checked, field, where)
    return checked


def _turn(
    role: str, content: object, role_field: str, content_field: str, where: Where
) -> dict[str, str]:
    if role not in _MAY_FOLLOW:
        raise BadRow(
            where,
            "unknown role",
            f"{role_field}={shown(role)} is not a known role",
            "Roles are system, user, assistant and tool.",
        )
    if role == "user":
        content = _text(content, content_field, "empty prompt", where)
    elif not isinstance(content, str):
        content = _text(content, content_field, "wrong type", where)
    return {"role": role, "content": content}


def _check_order(turns: list[dict[str, str]], field: str, where: Where) -> None:
    """Refuse a conversation that does not lead up to an answer of the assistant."""
    previous: str | None = None
    if all(turn["role"] != "assistant" for turn in turns):
        raise BadRow(
            where,
            "no assistant turn",
            f"{field} has {len(turns)} turns and none of role assistant",
            "The last assistant turn is the response: add it.",
        )
    for i, turn in enumerate(turns):
        if previous not in _MAY_FOLLOW[turn["role"]]:
            before = "at the start" if previous is None else f"after {previous!r}"
            raise BadRow(
                where,
                "roles out of order",
                f"{field}[{i}].role={turn['role']!r} stands {before}",
                "Roles go: system (or none), then user and assistant in turns.",
            )
        previous = turn["role"]
    last = turns[-1]
    if last["role"] != "assistant":
        raise BadRow(
            where,
            "last turn not the assistant's",
            f"{field}[{len(turns) - 1}].role={last['role']!r} is the last turn",
            "End the conversation with the assistant's answer, or cut what follows it.",
        )
    _text(last["content"], f"{field}[{len(turns) - 1}].content", "empty response", where)


def _from_conversations(row: Mapping, where: Where) -> list[dict[str, str]]:
    """Read NeMo-Aligner's chat: ``mask`` is the speaker whose turns are not trained on.

    Without ``mask`` the speakers are known by name (user, human, assistant, gpt, system). The
    labels of the turns (SteerLM's attributes) have no meaning in SPIN.
    """
    turns = row["conversations"]
    if not isinstance(turns, (list, tuple)):
        return _checked_turns(turns, "conversations", where)
    if row.get("type") == "TEXT_TO_VALUE":
        raise BadRow(
            where,
            "label prediction row",
            "type='TEXT_TO_VALUE' asks for labels, not for a text",
            "Train on rows of type VALUE_TO_TEXT or null.",
        )
    mask = row.get("mask")
    if mask is not None:
        mask = _text(mask, "mask", "wrong type", where)
    messages = []
    system = row.get("system")
    if system is not None and not isinstance(system, str):
        _text(system, "system", "wrong type", where)
    if system:
        messages.append({"role": "system", "content": system})
    for i, turn in enumerate(turns):
        name = f"conversations[{i}]"
        for key in ("from", "value"):
            if not isinstance(turn, Mapping) or key not in turn:
                raise BadRow(
                    where,
                    f"missing {key}",
                    f"{name}={shown(turn)} has no {key}",
                    'Write {"from": "User", "value": "..."}.',
                )
        speaker = _text(turn["from"], f"{name}.from", "empty role", where)
        role = _role_of(speaker, mask)
        messages.append(_turn(role, turn["value"], f"{name}.from", f"{name}.value", where))
    if len(messages) <= bool(system):
        return _checked_turns([], "conversations", where)
    _check_order(messages, "conversations", where)
    return messages


def _role_of(speaker: str, mask: str | None) -> str:
    if mask is None:
        return _SPEAKERS.get(speaker.lower(), speaker)
    if speaker.lower() == "system":
        return "system"
    return "user" if speaker == mask else "assistant"
