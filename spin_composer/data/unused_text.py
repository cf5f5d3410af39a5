"""Checks for texts of a row that are not read and would be lost silently."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from spin_composer.data import foreign
from spin_composer.data.bad_row import BadRow, Location
from spin_composer.data.foreign import SYSTEMS
from spin_composer.data.rows import Row, Turn
from spin_composer.data.tool_calls import parse_json
from spin_composer.errors import format_value

_PAIR_OR_TURNS = frozenset({*foreign.TURNS, "chosen", "rejected"})
"""Columns of other formats, which were compared with what is read or are known not to be."""
_FEWEST_WORDS = 3
"""Fewer words are a label, such as a category or a language."""
_BESIDE_MESSAGES = ("prompt", "response", "completion", "output", "chosen")
_THOUGHTS = ("reasoning_content", "reasoning", "thinking", "rationale", "chain_of_thought", "cot")
# Columns with input for the model that a plain row cannot hold.
_BESIDE_PLAIN = (
    *SYSTEMS, "instruction", "context", "input", "history", "tools", "functions", "documents",
    *_THOUGHTS,
)  # fmt: skip


def check_duplicate_columns(row: Mapping, where: Location) -> None:
    """Reject columns whose names differ only in case or spaces, which is ambiguous."""
    seen: dict[str, object] = {}
    for key in (key for key, value in row.items() if value is not None):
        twin = seen.setdefault(str(key).strip().lower(), key)
        if twin != key and foreign.is_known(str(key).strip().lower()) and (
            repr(row[twin]) != repr(row[key])
        ):  # fmt: skip
            raise BadRow(
                where, "two columns of one name",
                f"the fields {twin}={format_value(row[twin], 40)} and "
                f"{key}={format_value(row[key], 40)} differ in case or spaces "
                "only", "Remove or rename one of them.",
            )  # fmt: skip


def check_other_texts(
    row: Mapping, form: str | tuple[str, str], turns: list[Turn], where: Location
) -> None:
    """Reject a column with a prompt, response or thought that is not part of the turns.

    UltraChat, UltraFeedback and No Robots repeat the first prompt in its own column.
    """
    own = (form,) if isinstance(form, str) else form
    for key in (*_BESIDE_MESSAGES, *_THOUGHTS):
        text = row.get(key)
        if key in own or not isinstance(text, str) or not text.strip():
            continue
        if key in _THOUGHTS and len(text.split()) == 1:  # a flag: Nemotron's reasoning: "on"
            continue
        texts = (text for turn in turns for text in turn.values() if isinstance(text, str))
        if not any(" ".join(text.split()) in " ".join(one.split()) for one in texts):
            raise BadRow(
                where, "two formats in one row",
                f"{key}={format_value(text)} appears next to {' and '.join(own)}, and is in none "
                "of their turns",
                "Join it to the turns, or leave it out with dataset.preprocessing_fn: "
                "spin_composer.data.mappings:messages_only.",
            )  # fmt: skip


def unread_texts(row: Mapping, unread: Iterable[object], turns: list[Turn]) -> list[str]:
    """Return the columns among ``unread`` that hold a text or structure that the turns do not.

    They may be meant for the model (``system_instruction``, ``available_tools``), or not
    (``metadata``): nothing but a person can tell.
    """
    texts = [text for turn in turns for text in turn.values() if isinstance(text, str)]
    found: list[str] = []
    for key in set(unread) - _PAIR_OR_TURNS:
        value = row[key]
        if isinstance(value, str) and len(value.split()) >= _FEWEST_WORDS:
            if not any(value.strip() in text for text in texts):
                found.append(str(key))
        elif isinstance(value, (list, tuple, Mapping)) and value:
            found.append(str(key))
    return sorted(found)


def check_unused_columns(row: Mapping, form: tuple[str, str], made: Row, where: Location) -> None:
    """Reject a plain row with a column for the model that would be lost."""
    for key in _BESIDE_PLAIN:
        value = row.get(key)
        if key in form or not isinstance(value, (str, list, tuple, Mapping)) or not value:
            continue
        if isinstance(value, str):
            text = value.strip()
            if not text or text in made["prompt"] or text in made["response"]:
                continue
            if key in _THOUGHTS and len(text.split()) == 1:
                continue
            if parse_json(value) in ([], {}):
                continue
        pair = f"{{prompt: {form[0]}, response: {form[1]}}}"
        function = "module:function" if key in ("documents", "rationale", "chain_of_thought", "cot",
                    "functions") else "spin_composer.data.mappings:as_chat"  # fmt: skip
        raise BadRow(
            where, f"{key} column",
            f"{key}={format_value(value)} appears next to {form[0]} and {form[1]}, and would be "
            "lost",
            f"Make it a part of the row with dataset.preprocessing_fn: {function}, or leave it out "
            f"with preprocessing_fn: {pair}.",
        )  # fmt: skip


def check_surrogates(row: Row, where: Location) -> None:
    """Reject half of a surrogate pair, which JSON can contain but no tokenizer can encode."""
    if _is_unicode(row):
        return
    text = json.dumps(row, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        near = text[max(0, error.start - 20) : error.end + 20]
        raise BadRow(
            where, "lone surrogate",
            f"{format_value(near)} holds half of a surrogate pair, which is no "
            "character", "Write the whole pair, or remove it.",
        ) from error  # fmt: skip


def _is_unicode(value: object) -> bool:
    """Tell whether every text in a value can be encoded."""
    if isinstance(value, str):
        if value.isascii():
            return True
        try:
            value.encode()
        except UnicodeEncodeError:
            return False
        return True
    if isinstance(value, Mapping):
        return all(_is_unicode(key) and _is_unicode(item) for key, item in value.items())
    return all(map(_is_unicode, value)) if isinstance(value, (list, tuple)) else True
