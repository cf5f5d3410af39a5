"""Rows of SFT data: every format that people have, turned into llm-foundry's two.

A row becomes either ``{"prompt": str, "response": str}`` (kind ``plain``) or
``{"messages": [...]}`` whose last turn is the assistant's (kind ``chat``; see ``turns``), with
``tools`` and ``chat_template_kwargs`` beside it where the row has them. A row that cannot be used,
or a part of which would be lost, raises ``BadRow``: one line with file,
line, field, value and remedy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from spin_composer.data import foreign
from spin_composer.data.faults import BadRow, Where
from spin_composer.data.foreign import SYSTEMS
from spin_composer.data.tool_calls import checked_json, checked_tools, parsed
from spin_composer.data.turns import (
    check_order,
    checked_text,
    checked_turns,
    read_turns,
    untrained_mark,
)
from spin_composer.errors import shown

if TYPE_CHECKING:
    from spin_composer.data.counts import DataReport

__all__ = ["BadRow", "Kind", "Where", "to_foundry_row"]

Kind = Literal["plain", "chat"]

_CHAT = ("messages", "conversations")
_CHAT_IF_TURNS = ("conversation", "dialogue", "dialog", "chat", "real")
_BESIDE_MESSAGES = ("prompt", "response", "completion", "output", "chosen")
_THOUGHTS = ("reasoning_content", "reasoning", "thinking", "rationale", "chain_of_thought", "cot")
# Columns that say something to the model, and have no place in a plain row.
_BESIDE_PLAIN = (
    *SYSTEMS, "instruction", "context", "input", "history", "tools", "functions", "documents",
    *_THOUGHTS,
)  # fmt: skip
_BESIDE_CHAT = (*SYSTEMS, "tools", "functions", "chat_template_kwargs", "mask", "type")


def to_foundry_row(
    row: object, where: Where, report: DataReport | None = None, old: bool = False
) -> tuple[Kind, dict[str, Any]]:
    """Turn one raw row of any supported format into llm-foundry's.

    Args:
        row: The decoded row.
        where: Its place, for error messages.
        report: Counts the keys that are not read.
        old: Read and lose what was lost before turns' further keys, systems and tools had a
            meaning: for stores that were played then.

    Returns:
        The row's kind and the row with the keys that are trained on.

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
    if not old:
        _refuse_twins(row, where)
        if (key := untrained_mark(row)) is not None:
            raise BadRow(
                where, "not to be trained on",
                f"{key}={shown(row[key])} says that the row is not to be trained on",
                "Drop such rows with dataset.on_bad_row: skip, or remove the field.",
            )  # fmt: skip
    present = {key for key, value in row.items() if value is not None}
    filled = {key for key in present if row[key] not in ("", [], {})}
    form = next(
        (form for keys in (filled, present, set(row)) if (form := _form_of(keys, row, where))), None
    )
    if form is None:
        raise foreign.unknown_format(row, where)
    if isinstance(form, str):
        kind, made = "chat", _chat(row, form, where, report, old)
    elif form[1] == "chosen":
        kind, made = _preferred(row, form[0], where, report)
    else:
        kind, made = _pair(row, form, where, report)
    if not old:
        if kind == "chat":
            made |= _for_template(row, where)
        else:
            _refuse_lost(row, form, made, where)
    _refuse_surrogates(made, where)
    if report is not None:
        read = {form, *_BESIDE_CHAT} if kind == "chat" and isinstance(form, str) else set(form)
        report.unread.update(str(key) for key in present - read)
    return kind, made


def _form_of(keys: set[Any], row: Mapping, where: Where) -> Any:
    """Return the format that the keys spell: a pair of names, one name, or None."""
    found: list[Any] = [key for key in _CHAT if key in keys]
    for key in _CHAT_IF_TURNS:
        if key in keys and isinstance(turns := parsed(row[key]), (list, tuple)) and (
            key == "real" or all(isinstance(turn, Mapping) for turn in turns)
        ):  # fmt: skip
            found.append(key)
    pairs = [pair for pair in foreign.KEY_PAIRS if keys.issuperset(pair)]
    if ("input", "output") in pairs and "instruction" in keys:
        raise foreign.single_turn(row, "instruction", where)
    if not pairs and keys.issuperset(("chosen", "rejected")):
        turns = parsed(row[found[0]]) if found else None
        # A whole conversation is what SFT trains on: UltraFeedback has it beside the pair.
        whole = isinstance(turns, (list, tuple)) and foreign.ends_with_answer(turns)
        if not whole:
            pairs = [(found.pop(0) if found else "prompt", "chosen")]
    found += pairs
    if len(found) > 1 and not _same(row, found):
        names = " and ".join("+".join(f) if isinstance(f, tuple) else f for f in found)
        raise BadRow(
            where,
            "two formats in one row",
            f"the fields {names} are two formats in one row",
            "Keep one of them, or choose with dataset.preprocessing_fn: module:function "
            "(spin_composer.data.mappings:messages_only is one).",
        )
    return found[0] if found else None


def _same(row: Mapping, found: list[Any]) -> bool:
    return all(isinstance(key, str) and row[key] == row[found[0]] for key in found)


def _refuse_twins(row: Mapping, where: Where) -> None:
    """Refuse columns that differ in case or spaces only: which is meant cannot be told."""
    seen: dict[str, Any] = {}
    for key in row:
        twin = seen.setdefault(str(key).strip().lower(), key)
        known = foreign.is_known(str(key).strip().lower())
        if twin != key and known and row[twin] != row[key]:
            raise BadRow(
                where, "two columns of one name",
                f"the fields {twin}={shown(row[twin], 40)} and {key}={shown(row[key], 40)} differ "
                "in case or spaces only", "Remove or rename one of them.",
            )  # fmt: skip


def _chat(
    row: Mapping, field: str, where: Where, report: DataReport | None, old: bool
) -> dict[str, Any]:
    """Read a column of turns, with the system text that stands beside it."""
    mask = None
    if field == "conversations":
        if row.get("type") == "TEXT_TO_VALUE":
            raise BadRow(
                where,
                "label prediction row",
                "type='TEXT_TO_VALUE' asks for labels, not for a text",
                "Train on rows of type VALUE_TO_TEXT or null.",
            )
        if (mask := row.get("mask")) is not None:
            mask = checked_text(mask, "mask", "wrong type", where)
    turns = read_turns(row[field], field, where, report, mask, old)
    if field == "conversations" or not old:
        turns = _with_system(row, turns, where)
    check_order(turns, field, where)
    if not old:
        _refuse_other_texts(row, field, turns, where)
    return {"messages": turns}


def _with_system(row: Mapping, turns: list[dict[str, Any]], where: Where) -> list[dict[str, Any]]:
    """Put the row's system text before the turns, unless they begin with it."""
    for key in SYSTEMS:
        text = row.get(key)
        if text is None or text == "":
            continue
        checked_text(text, key, "wrong type", where)
        if turns[0]["role"] != "system":
            turns = [{"role": "system", "content": text}, *turns]
        elif turns[0]["content"].strip() != text.strip():
            raise BadRow(
                where, "two system texts",
                f"{key}={shown(text)} stands beside a system turn {shown(turns[0]['content'])}",
                "Keep one of them, with dataset.preprocessing_fn: module:function "
                "(spin_composer.data.mappings:messages_only keeps the turn's).",
            )  # fmt: skip
    return turns


def _refuse_other_texts(
    row: Mapping, field: str, turns: list[dict[str, Any]], where: Where
) -> None:
    """Refuse a prompt or response beside the turns that is none of theirs.

    UltraChat, UltraFeedback and No Robots repeat the first prompt in a column of its own.
    """
    texts = [" ".join(text.split()) for turn in turns for text in turn.values()
             if isinstance(text, str)]  # fmt: skip
    for key in (*_BESIDE_MESSAGES, *_THOUGHTS):
        text = row.get(key)
        if key == field or not isinstance(text, str) or not text.strip():
            continue
        if not any(" ".join(text.split()) in one for one in texts):
            raise BadRow(
                where, "two formats in one row",
                f"{key}={shown(text)} stands beside {field}, and is in none of its turns",
                "Join it to the turns, or leave it out with dataset.preprocessing_fn: "
                "spin_composer.data.mappings:messages_only.",
            )  # fmt: skip


def _pair(
    row: Mapping, form: tuple[str, str], where: Where, report: DataReport | None
) -> tuple[Kind, dict[str, Any]]:
    """Read a prompt and a response, each a text or (TRL's conversational rows) turns."""
    prompt_key, response_key = form
    if row.get("label") is False and "completion" in form:
        raise BadRow(
            where, "undesired completion",
            "label=False marks the completion as one that the model should not write (KTO)",
            "Train on the rows whose label is true: drop the others with dataset.on_bad_row: skip.",
        )  # fmt: skip
    prompt, response = row[prompt_key], row[response_key]
    if foreign.are_turns(prompt):
        return "chat", {"messages": _joined(prompt, prompt_key, response, response_key,
                                            where, report)}  # fmt: skip
    for key, value in ((prompt_key, prompt), (response_key, response)):
        _refuse_hidden_turns(key, value, where)
    return "plain", {
        "prompt": checked_text(prompt, prompt_key, "empty prompt", where, blank_is_empty=False),
        "response": checked_text(response, response_key, "empty response", where),
    }


def _refuse_hidden_turns(key: str, value: object, where: Where) -> None:
    """Refuse turns where a text should stand, be they a list or JSON text of one."""
    if foreign.are_turns(parsed(value)):
        how = "JSON text of turns" if isinstance(value, str) else "a list of turns"
        raise BadRow(
            where, "wrong type", f"{key}={shown(value)} is {how}, not text",
            "Write both as lists of turns, or all turns in messages: [...].",
        )  # fmt: skip


def _joined(
    prompt: Any, prompt_key: str, response: Any, response_key: str, where: Where,
    report: DataReport | None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Return the turns of a prompt and what follows: turns too, one turn, or a text."""
    before = read_turns(prompt, prompt_key, where, report)
    if isinstance(response, str) and not foreign.are_turns(parsed(response)):
        text = checked_text(response, response_key, "empty response", where)
        after = [{"role": "assistant", "content": text}]
    else:
        response = parsed(response)
        response = [response] if isinstance(response, Mapping) else response
        after = read_turns(response, response_key, where, report)
    # Some write the whole conversation on both sides.
    turns = after if after[: len(before)] == before else [*before, *after]
    check_order(turns, f"{prompt_key} and {response_key}", where)
    return turns


def _preferred(
    row: Mapping, prompt_key: str, where: Where, report: DataReport | None
) -> tuple[Kind, dict[str, Any]]:
    """Read a row of preferences (DPO): the chosen side is the response."""
    if report is not None:
        report.note(
            "The rows are preferences: chosen is trained on as the real response, and rejected is "
            "not read."
        )
    prompt, chosen = row.get(prompt_key), row["chosen"]
    turns = parsed(chosen)
    if prompt is None or prompt in ("", []):
        if not foreign.are_turns(turns):
            raise foreign.no_prompt(row, where)
        return "chat", {"messages": checked_turns(turns, "chosen", where, report)}
    if foreign.are_turns(prompt) or prompt_key != "prompt":
        return "chat", {"messages": _joined(prompt, prompt_key, chosen, "chosen", where, report)}
    if not foreign.are_turns(turns):
        return _pair(row, (prompt_key, "chosen"), where, report)
    read = read_turns(turns, "chosen", where, report)
    prompt = checked_text(prompt, prompt_key, "empty prompt", where)
    if all(turn["role"] == "assistant" for turn in read):
        _refuse_hidden_turns("chosen", chosen, where)
    check_order(read, "chosen", where)
    _refuse_other_texts({"prompt": prompt}, "chosen", read, where)
    return "chat", {"messages": read}


def _for_template(row: Mapping, where: Where) -> dict[str, Any]:
    """Return what a chat template is given beside the turns, where the row has it."""
    more: dict[str, Any] = {}
    for key in ("tools", "functions"):
        tools = checked_tools(row.get(key), key, where)
        if tools and more.get("tools", tools) != tools:
            raise BadRow(
                where, "two lists of tools", "tools and functions hold different tools",
                "Keep one of them.",
            )  # fmt: skip
        if tools:
            more["tools"] = tools
    options = parsed(row.get("chat_template_kwargs"))
    if options:
        if not isinstance(options, Mapping):
            raise BadRow(
                where, "wrong type", f"chat_template_kwargs={shown(options)} is not an object",
                'Write {"name of the template\'s variable": value}.',
            )  # fmt: skip
        options = checked_json(options, "chat_template_kwargs", where)
        more |= {"chat_template_kwargs": options} if options else {}
    if documents := row.get("documents"):
        raise BadRow(
            where, "documents", f"documents={shown(documents)} would be lost",
            "Write them into a turn, with dataset.preprocessing_fn: module:function.",
        )  # fmt: skip
    return more


def _refuse_lost(row: Mapping, form: tuple[str, str], made: dict[str, Any], where: Where) -> None:
    """Refuse a plain row with a column that the model was to read, and that would be lost."""
    for key in _BESIDE_PLAIN:
        value = row.get(key)
        if key in form or not isinstance(value, (str, list, tuple, Mapping)) or not value:
            continue
        if isinstance(value, str):
            text = value.strip()
            if not text or text in made["prompt"] or text in made["response"]:
                continue
            if parsed(value) in ([], {}):
                continue
        pair = f"{{prompt: {form[0]}, response: {form[1]}}}"
        function = "module:function" if key in ("documents", "rationale", "chain_of_thought", "cot",
                    "functions") else "spin_composer.data.mappings:as_chat"  # fmt: skip
        raise BadRow(
            where, f"{key} column",
            f"{key}={shown(value)} stands beside {form[0]} and {form[1]}, and would be lost",
            f"Make it a part of the row with dataset.preprocessing_fn: {function}, or leave it out "
            f"with preprocessing_fn: {pair}.",
        )  # fmt: skip


def _refuse_surrogates(row: dict[str, Any], where: Where) -> None:
    """Refuse half of a surrogate pair, which JSON can spell and no tokenizer encodes."""
    text = json.dumps(row, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        near = text[max(0, error.start - 20) : error.end + 20]
        raise BadRow(
            where, "lone surrogate", f"{shown(near)} holds half of a surrogate pair, which is no "
            "character", "Write the whole pair, or remove it.",
        ) from error  # fmt: skip
