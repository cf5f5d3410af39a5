"""Conversion of rows in all supported SFT formats to llm-foundry's two.

A row becomes either ``{"prompt": str, "response": str}`` (kind ``plain``) or
``{"messages": [...]}`` whose last turn is the assistant's (kind ``chat``; see ``turns``), with
``tools`` and ``chat_template_kwargs`` if the row has them. A row that cannot be used, or of which a
part would be lost, raises ``BadRow``: one line with file, line, field, value and remedy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from spin_composer.data import foreign
from spin_composer.data.bad_row import BadRow, Location
from spin_composer.data.foreign import SYSTEMS
from spin_composer.data.rows import Row, Turn
from spin_composer.data.tool_calls import parse_json, validate_json, validate_tools
from spin_composer.data.turns import (
    check_order,
    parse_flag,
    read_turns,
    untrained_mark,
    validate_text,
)
from spin_composer.data.unused_text import (
    check_duplicate_columns,
    check_other_texts,
    check_surrogates,
    check_unused_columns,
    unread_texts,
)
from spin_composer.errors import format_value

if TYPE_CHECKING:
    from spin_composer.data.counts import DataReport

__all__ = ["BadRow", "Kind", "Location", "to_foundry_row"]

Kind = Literal["plain", "chat"]
Form = str | tuple[str, str]
"""The columns that a row is read from: that of turns, or those of prompt and response."""

_CHAT = ("messages", "conversations")
_CHAT_IF_TURNS = ("conversation", "dialogue", "dialog", "chat", "real")
_BESIDE_CHAT = (*SYSTEMS, "tools", "functions", "chat_template_kwargs", "mask", "type")


def to_foundry_row(
    row: object, where: Location, report: DataReport | None = None, legacy: bool = False
) -> tuple[Kind, Row]:
    """Convert one raw row of any supported format to llm-foundry's format.

    Args:
        row: The decoded row.
        where: Its location, for error messages.
        report: Counts ignored keys.
        legacy: Ignore further keys of turns, system texts and tools, as early versions did: for
            stores that were played with them.

    Returns:
        The row's kind, and the row with the keys that are trained on.

    Raises:
        BadRow: The format is unknown, or the row cannot be used.
    """
    if not isinstance(row, Mapping):
        raise BadRow(
            where,
            "not an object",
            f"the row is {format_value(row)}, not an object with named fields",
            'Write one object per line, such as {"prompt": "...", "response": "..."}.',
        )
    if not legacy:
        check_duplicate_columns(row, where)
        _check_trained_on(row, where)
    present = {key for key, value in row.items() if value is not None}
    form = _find_form(row, present, where)
    if not legacy:
        _check_desired(row, form, where)
    if isinstance(form, str):
        kind, made = "chat", _read_chat(row, form, where, report, legacy)
    elif form[1] == "chosen":
        kind, made = _read_preference(row, form[0], where, report)
    else:
        kind, made = _read_pair(row, form, where, report)
    if kind == "chat" and (form == "conversations" or not legacy):
        keys = ("system",) if legacy else SYSTEMS
        made["messages"] = _with_system(row, made["messages"], where, keys)
    if kind == "chat" and not legacy:
        check_other_texts(row, form, made["messages"], where)
        made |= _for_template(row, where)
    elif not legacy and not isinstance(form, str):
        check_unused_columns(row, form, made, where)
    check_surrogates(made, where)
    if report is not None:
        read = {form} if isinstance(form, str) else set(form)
        read |= {*_BESIDE_CHAT} if kind == "chat" else set()
        report.unread_columns.update(str(key) for key in present - read)
        if kind == "chat":
            report.note_unread(unread_texts(row, present - read, made["messages"]))
    return kind, made


def _check_trained_on(row: Mapping, where: Location) -> None:
    """Refuse a row that says of itself that it is not to be trained on."""
    if (key := untrained_mark(row, of_row=True)) is not None:
        raise BadRow(
            where, "not to be trained on",
            f"{key}={format_value(row[key])} says that the row is not to be trained on",
            "Drop such rows with dataset.on_bad_row: skip, or remove the field.",
        )  # fmt: skip


def _find_form(row: Mapping, present: set[object], where: Location) -> Form:
    """Return the columns to read: by those with content, else by those that are not null."""
    filled = {key for key in present if not foreign.is_empty(row[key])}
    for keys in (filled, present, set(row)):
        if form := _detect_format(keys, row, where):
            return form
    raise foreign.unknown_format_error(row, where)


def _detect_format(keys: set[object], row: Mapping, where: Location) -> Form | None:
    """Return the format that the keys indicate: a pair of names, one name, or None."""
    found = [key for key in _CHAT if key in keys]
    for key in _CHAT_IF_TURNS:
        if key in keys and isinstance(turns := parse_json(row[key]), (list, tuple)) and (
            key == "real" or all(isinstance(turn, Mapping) for turn in turns)
        ):  # fmt: skip
            found.append(key)
    pairs = [pair for pair in foreign.KEY_PAIRS if keys.issuperset(pair)]
    if ("input", "output") in pairs and "instruction" in keys:
        raise foreign.single_turn_error(row, "instruction", where)
    if not pairs and keys.issuperset(("chosen", "rejected")):
        turns = parse_json(row[found[0]]) if found else None
        # SFT trains on the complete conversation, which UltraFeedback has besides the pair.
        whole = isinstance(turns, (list, tuple)) and foreign.ends_with_answer(turns)
        if whole and foreign.are_turns(parse_json(row["chosen"])):
            found.append("chosen")  # must have the same turns
        elif not whole:
            pairs = [(found.pop(0) if found else "prompt", "chosen")]
    forms: list[Form] = [*found, *pairs]
    if len(forms) > 1 and not _same_turns(row, forms, where):
        names = " and ".join("+".join(f) if isinstance(f, tuple) else f for f in forms)
        raise BadRow(
            where,
            "two formats in one row",
            f"the fields {names} are two formats in one row",
            "Keep one of them, or choose with dataset.preprocessing_fn: module:function "
            "(spin_composer.data.mappings:messages_only is one).",
        )
    return forms[0] if forms else None


def _same_turns(row: Mapping, forms: list[Form], where: Location) -> bool:
    """Return whether several columns contain the same turns, possibly in different formats."""
    columns = [form for form in forms if isinstance(form, str)]
    if len(columns) < len(forms):
        return False
    first, *others = (read_turns(row[key], key, where) for key in columns)
    return all(turns == first for turns in others)


def _read_chat(
    row: Mapping, field: str, where: Location, report: DataReport | None, legacy: bool
) -> Row:
    """Read a column of turns."""
    mask = None
    if field == "conversations":
        if str(row.get("type")) == "TEXT_TO_VALUE":
            raise BadRow(
                where,
                "label prediction row",
                "type='TEXT_TO_VALUE' asks for labels, not for a text",
                "Train on rows of type VALUE_TO_TEXT or null.",
            )
        if (mask := row.get("mask")) is not None:
            mask = validate_text(mask, "mask", "wrong type", where)
    turns = read_turns(row[field], field, where, report, mask, legacy)
    check_order(turns, field, where)
    return {"messages": turns}


def _with_system(
    row: Mapping, turns: list[Turn], where: Location, keys: Sequence[str]
) -> list[Turn]:
    """Prepend the row's system text to the turns, unless they begin with it."""
    for key in keys:
        text = row.get(key)
        if foreign.is_empty(text):
            continue
        text = validate_text(text, key, "wrong type", where)
        if turns[0]["role"] != "system":
            turns = [{"role": "system", "content": text}, *turns]
        elif turns[0]["content"].strip() != text.strip():
            raise BadRow(
                where, "two system texts",
                f"{key}={format_value(text)} appears next to a system turn "
                f"{format_value(turns[0]['content'])}",
                "Keep one of them, with dataset.preprocessing_fn: module:function "
                "(spin_composer.data.mappings:messages_only keeps the turn's).",
            )  # fmt: skip
    return turns


def _read_pair(
    row: Mapping, form: tuple[str, str], where: Location, report: DataReport | None
) -> tuple[Kind, Row]:
    """Read a prompt and a response, each a text or (TRL's conversational rows) turns."""
    prompt_key, response_key = form
    prompt, response = row[prompt_key], row[response_key]
    if foreign.are_turns(prompt):
        return "chat", {"messages": _join_turns(prompt, prompt_key, response, response_key,
                                            where, report)}  # fmt: skip
    for key, value in ((prompt_key, prompt), (response_key, response)):
        _check_is_text(key, value, where)
    return "plain", {
        "prompt": validate_text(prompt, prompt_key, "empty prompt", where, blank_is_empty=False),
        "response": validate_text(response, response_key, "empty response", where),
    }


def _check_desired(row: Mapping, form: str | tuple[str, str], where: Location) -> None:
    """Reject an answer that KTO's label marks as undesired; with input and output it is a class."""
    for key in foreign.DESIRED:
        if parse_flag(row.get(key)) is False and (form != ("input", "output") or key != "label"):
            raise BadRow(
                where, "undesired completion",
                f"{key}={format_value(row[key])} marks the answer as one that the model should not "
                "write (KTO)",
                f"Train on the rows whose {key} is true: drop the others with dataset.on_bad_row: "
                "skip. If it means something else, remove the column.",
            )  # fmt: skip


def _check_is_text(key: str, value: object, where: Location) -> None:
    """Reject turns, as a list or as JSON, where text is expected."""
    if foreign.are_turns(parse_json(value)):
        how = "JSON text of turns" if isinstance(value, str) else "a list of turns"
        raise BadRow(
            where, "wrong type", f"{key}={format_value(value)} is {how}, not text",
            "Write both as lists of turns, or all turns in messages: [...].",
        )  # fmt: skip


def _join_turns(
    prompt: object, prompt_key: str, response: object, response_key: str, where: Location,
    report: DataReport | None,
) -> list[Turn]:  # fmt: skip
    """Join the turns of a prompt with the response: turns, one turn, or a text."""
    before = read_turns(prompt, prompt_key, where, report)
    if isinstance(response, str) and not foreign.are_turns(parse_json(response)):
        text = validate_text(response, response_key, "empty response", where)
        after = [{"role": "assistant", "content": text}]
    else:
        response = parse_json(response)
        response = [response] if isinstance(response, Mapping) else response
        after = read_turns(response, response_key, where, report)
    # Some data sets have the whole conversation on both sides.
    turns = after if after[: len(before)] == before else [*before, *after]
    check_order(turns, f"{prompt_key} and {response_key}", where)
    return turns


def _read_preference(
    row: Mapping, prompt_key: str, where: Location, report: DataReport | None
) -> tuple[Kind, Row]:
    """Read a row of preferences (DPO): the chosen side is the response."""
    if report is not None:
        report.note(
            "The rows are preferences: chosen is trained on as the real response, and rejected is "
            "not read."
        )
    prompt, chosen = row.get(prompt_key), row["chosen"]
    turns = parse_json(chosen)
    if foreign.is_empty(prompt):
        if not foreign.are_turns(turns):
            raise foreign.missing_prompt_error(row, where)
        read = read_turns(turns, "chosen", where, report)
        check_order(read, "chosen", where)
        return "chat", {"messages": read}
    if foreign.are_turns(prompt) or prompt_key != "prompt":
        return "chat", {
            "messages": _join_turns(prompt, prompt_key, chosen, "chosen", where, report)
        }
    if not foreign.are_turns(turns):
        return _read_pair(row, (prompt_key, "chosen"), where, report)
    read = read_turns(turns, "chosen", where, report)
    prompt = validate_text(prompt, prompt_key, "empty prompt", where)
    if all(turn["role"] == "assistant" for turn in read):
        _check_is_text("chosen", chosen, where)
    check_order(read, "chosen", where)
    check_other_texts({"prompt": prompt}, "chosen", read, where)  # the prompt is a column's
    return "chat", {"messages": read}


def _for_template(row: Mapping, where: Location) -> Row:
    """Return the row's further input of the chat template: tools and template arguments."""
    more: Row = {}
    for key in ("tools", "functions"):
        tools = validate_tools(row.get(key), key, where)
        if tools and more.get("tools", tools) != tools:
            raise BadRow(
                where, "two lists of tools", "tools and functions hold different tools",
                "Keep one of them.",
            )  # fmt: skip
        if tools:
            more["tools"] = tools
    options = parse_json(row.get("chat_template_kwargs"))
    if not foreign.is_empty(options):
        if not isinstance(options, Mapping):
            raise BadRow(
                where, "wrong type",
                f"chat_template_kwargs={format_value(options)} is not an object",
                'Write {"name of the template\'s variable": value}.',
            )  # fmt: skip
        options = validate_json(options, "chat_template_kwargs", where)
        more |= {"chat_template_kwargs": options} if options else {}
    if not foreign.is_empty(row.get("documents")):
        raise BadRow(
            where, "documents", f"documents={format_value(row['documents'])} would be lost",
            "Write them into a turn, with dataset.preprocessing_fn: module:function.",
        )  # fmt: skip
    return more
