"""The spellings of one conversation: templates differ in which of them they can write.

A turn without content may hold null or an empty text, arguments of calls an object or JSON text,
and a role the row's own word or the usual one. They mean the same; a template that knows only one
of them leaves the turn out, prints Python's words, or fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from spin_composer.data.rows import Turn
from spin_composer.data.tool_calls import with_text_arguments

THOUGHTS = ("reasoning_content", "thinking", "reasoning")
"""What data sets and templates call an answer's thoughts; transformers 5 takes them for one."""


def iter_spellings(
    messages: Sequence[Turn], has_word: Callable[[str], bool]
) -> Iterator[list[Turn]]:
    """Yield the spellings of a row's turns, the row's own first; each once.

    Args:
        messages: The row's turns.
        has_word: Tells whether the template may know a role by the row's own word.
    """
    seen: list[list[Turn]] = []
    calls = any(message.get("tool_calls") for message in messages)
    for roles in (_with_own_roles(messages, has_word), _with_usual_roles(messages)):
        for contents in (
            roles,
            [_null_beside_calls(message) for message in roles] if calls else roles,
            [without_null(message) for message in roles],
        ):
            for made in (contents, with_text_arguments(contents) if calls else contents):
                if made not in seen:
                    seen.append(made)
                    yield made


def without_null(message: Turn) -> Turn:
    """Return a turn with an empty text in place of null."""
    return {**message, "content": ""} if message["content"] is None else message


def with_usual_names(message: Turn, source: str) -> Turn:
    """Return a turn that has its thoughts under the name that the template reads, too.

    Args:
        message: The turn.
        source: The template.
    """
    given = next((message[key] for key in THOUGHTS if message.get(key)), None)
    if given is None:
        return message
    # As transformers 5 does by itself; earlier ones hand templates what the row has.
    made = {"thinking": given, **message, "reasoning_content": given}
    if not any(key in source for key in THOUGHTS[:2]):
        made = {"reasoning": given, **made}
    return made


def _with_own_roles(messages: Sequence[Turn], has_word: Callable[[str], bool]) -> list[Turn]:
    words = [getattr(message["role"], "spelled", None) for message in messages]
    return [
        {**message, "role": word if word is not None and has_word(word) else str(message["role"])}
        for message, word in zip(messages, words, strict=True)
    ]


def _with_usual_roles(messages: Sequence[Turn]) -> list[Turn]:
    return [{**message, "role": str(message["role"])} for message in messages]


def _null_beside_calls(message: Turn) -> Turn:
    blank = message.get("tool_calls") and not (message["content"] or "").strip()
    return {**message, "content": None} if blank else message
