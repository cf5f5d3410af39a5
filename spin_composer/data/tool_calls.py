"""Tools and tool calls of a row, converted from all formats to the one that chat templates read.

Chat templates expect OpenAI's newer format: ``tool_calls: [{"type": "function", "function":
{"name", "arguments"}}]`` with the arguments as an object (see transformers' documentation of tool
use; vLLM parses them too), and ``tools`` as a list of objects. Data often has JSON text instead, or
OpenAI's older ``function_call``.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

from spin_composer.data.bad_row import BadRow, Location
from spin_composer.data.rows import Call, Turn
from spin_composer.errors import format_value

_CALL = '[{"type": "function", "function": {"name": "...", "arguments": {...}}}]'
_TOOL = '[{"type": "function", "function": {"name": "...", "parameters": {...}}}]'
_BESIDE_FUNCTION = ("id", "type", "index", "tool_call_id", "call_id")
"""Keys of a call besides its function: they only identify it, so templates may leave them out."""
_ARGUMENTS = ("arguments", "parameters")
"""Names of a call's arguments in data sets; the second is Llama 3.1's."""


def parse_json(value: object) -> Any:
    """Parse a JSON text of an object or list; return anything else unchanged."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("{", "["):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def drop_nulls(value: object) -> Any:
    """Return ``value`` without the keys of objects that are null, at any depth."""
    if isinstance(value, Mapping):
        return {key: drop_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [drop_nulls(item) for item in value]
    return value


def validate_json(value: object, field: str, where: Location) -> Any:
    """Return ``value`` if it can be written as JSON.

    Raises:
        BadRow: It cannot, such as a date, bytes or NaN.
    """
    if where.filled:
        value = drop_nulls(value)
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadRow(
            where, "not JSON", f"{field}={format_value(value)} cannot be written as JSON ({error})",
            "Use strings, finite numbers, lists and objects.",
        ) from error  # fmt: skip
    return value


def validate_tools(value: object, field: str, where: Location) -> list[dict[str, object]]:
    """Return a row's tools as a list of objects; an empty list if there are none.

    Args:
        value: The column's value: a list, JSON text of one, or None.
        field: Its name, ``tools`` or OpenAI's older ``functions``.
        where: The row's location.

    Raises:
        BadRow: It is neither.
    """
    tools = parse_json(value)
    if isinstance(tools, str) and not tools.strip():
        return []
    if isinstance(tools, Mapping):
        tools = [tools]
    tools = [] if tools is None else tools
    if isinstance(tools, (list, tuple)):
        tools = [parse_json(tool) for tool in tools]
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise BadRow(
            where,
            "wrong type",
            f"{field}={format_value(value)} is not a list of tools",
            f"Write {_TOOL}.",
        )
    if field == "functions":  # like `function_call`, older than tools of other types
        tools = [{"type": "function", "function": tool} for tool in tools]
    return validate_json(tools, field, where)


def validate_calls(value: object, field: str, where: Location) -> list[Call]:
    """Return a turn's calls, each with its arguments as an object.

    Args:
        value: The turn's ``tool_calls``: a list, or JSON text of one.
        field: Its place within the row.
        where: The row's location.

    Raises:
        BadRow: A call has no name, or its arguments are not an object.
    """
    calls = parse_json(value)
    if isinstance(calls, Mapping):
        calls = [calls]
    if not isinstance(calls, (list, tuple)):
        raise BadRow(
            where,
            "wrong type",
            f"{field}={format_value(value)} is not a list of calls",
            f"Write {_CALL}.",
        )
    return [_validate_call(call, f"{field}[{i}]", where) for i, call in enumerate(calls)]


def parse_function_call(value: object, field: str, where: Location) -> list[Call]:
    """Return the call of an older ``function_call``, an object or JSON text, as a list of one.

    Raises:
        BadRow: See :func:`validate_calls`.
    """
    call = parse_json(value)
    if isinstance(call, Mapping) and "function" not in call:
        call = {"type": "function", "function": dict(call)}
    return validate_calls([call], field, where)


def _validate_call(call: object, field: str, where: Location) -> Call:
    call = parse_json(call)
    if isinstance(call, Mapping) and call.get("function") is None and call.get("name"):
        # Some data sets have the function's object alone.
        outer = {key: call[key] for key in _BESIDE_FUNCTION if call.get(key) is not None}
        inner = {k: v for k, v in call.items() if k not in (*_BESIDE_FUNCTION, "function")}
        call = {"type": "function", **outer, "function": inner}
    function = parse_json(call.get("function")) if isinstance(call, Mapping) else None
    if (
        not isinstance(call, Mapping)
        or not isinstance(function, Mapping)
        or not isinstance(function.get("name"), str)
    ):
        raise BadRow(
            where, "wrong type", f"{field}={format_value(call)} is not a call of a named function",
            f"Write tool_calls: {_CALL}.",
        )  # fmt: skip
    _check_keys(call, (*_BESIDE_FUNCTION, "function"), field, where)
    _check_keys(function, ("name", *_ARGUMENTS), f"{field}.function", where)
    arguments = _validate_arguments(function, f"{field}.function", where)
    inner = {k: v for k, v in function.items() if v is not None and k != "parameters"}
    outer = {k: v for k, v in call.items() if v is not None}
    return {**outer, "function": {**inner, "arguments": arguments}}  # keeps the order of keys


def _check_keys(
    given: Mapping[str, object], known: Sequence[str], field: str, where: Location
) -> None:
    """Reject an object of a call with a key that templates do not read, unless it is empty."""
    for key, value in given.items():
        value = parse_json(value)
        if key in known or value is False or drop_nulls(value) in (None, "", [], {}):
            continue
        raise BadRow(
            where, "unknown key of a call",
            f"{field}.{key}={format_value(value)} is not a known key of a call, so it would be "
            "lost", f"Move it into the arguments, {_CALL}, or remove the key.",
        )  # fmt: skip


def _validate_arguments(
    function: Mapping[str, object], field: str, where: Location
) -> dict[str, object]:
    """Return the arguments of a call as an object; either of their two names may be used."""
    found: dict[str, dict[str, object]] = {}
    for key in _ARGUMENTS:
        given = function.get(key)
        arguments = parse_json(given)
        if arguments is None or (isinstance(arguments, str) and not arguments.strip()):
            continue
        if not isinstance(arguments, Mapping):
            raise BadRow(
                where, "wrong type",
                f"{field}.{key}={format_value(given)} is not an object, nor JSON text of one",
                'Write {"name of an argument": value, ...}.',
            )  # fmt: skip
        if where.filled and not isinstance(given, str):
            arguments = drop_nulls(arguments)
        validate_json(arguments, f"{field}.{key}",
                      Location(where.source, where.number, where.unit))  # fmt: skip
        found[key] = dict(arguments)
    filled = [key for key in found if found[key]]
    if len(filled) > 1 and found[filled[0]] != found[filled[1]]:
        raise BadRow(
            where, "two keys for one",
            f"{field} has both "
            + " and ".join(f"{key}={format_value(found[key])}" for key in filled),
            "Keep one, as arguments.",
        )  # fmt: skip
    return found[filled[0]] if filled else {}


def with_text_arguments(messages: Sequence[Turn]) -> list[Turn]:
    """Return copies of the turns whose tool calls have their arguments as JSON text.

    For the few templates (DeepSeek's) that concatenate arguments instead of writing them as JSON.
    """
    made = [copy.deepcopy(dict(message)) for message in messages]
    for message in made:
        for call in message.get("tool_calls") or ():
            function = call["function"]
            function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
    return made
