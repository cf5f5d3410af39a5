"""Tools and calls of tools in a row: every spelling, turned into the one that templates read.

Chat templates expect OpenAI's newer form: ``tool_calls: [{"type": "function", "function": {"name",
"arguments"}}]`` with the arguments as an object (transformers' documentation of tool use; vLLM
parses them too), and ``tools`` as a list of objects. Data often holds JSON text instead, or
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


def parse_json(value: object) -> Any:
    """Return the object or list that a JSON text holds, and anything else as it is."""
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
    """Return ``value``, a part of a row that is not text, if JSON can hold it.

    Raises:
        BadRow: It cannot: a date, bytes, NaN.
    """
    if where.filled:
        value = drop_nulls(value)
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadRow(
            where, "not JSON", f"{field}={format_value(value)} cannot be written as JSON ({error})",
            "Write it with texts, finite numbers, lists and objects.",
        ) from error  # fmt: skip
    return value


def validate_tools(value: object, field: str, where: Location) -> list[dict[str, object]]:
    """Return a row's tools as a list of objects; an empty list if there are none.

    Args:
        value: The column's value: a list, JSON text of one, or None.
        field: Its name, ``tools`` or OpenAI's older ``functions``.
        where: The row's place.

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
            f"{field}={format_value(value)} is no list of tools",
            f"Write {_TOOL}.",
        )
    if field == "functions":  # as `function_call`, of before tools of other types were thought of
        tools = [{"type": "function", "function": tool} for tool in tools]
    return validate_json(tools, field, where)


def validate_calls(value: object, field: str, where: Location) -> list[Call]:
    """Return a turn's calls, each with its arguments as an object.

    Args:
        value: The turn's ``tool_calls``: a list, or JSON text of one.
        field: Its place within the row.
        where: The row's place.

    Raises:
        BadRow: A call has no name, or its arguments are no object.
    """
    calls = parse_json(value)
    if isinstance(calls, Mapping):
        calls = [calls]
    if not isinstance(calls, (list, tuple)):
        raise BadRow(
            where,
            "wrong type",
            f"{field}={format_value(value)} is no list of calls",
            f"Write {_CALL}.",
        )
    return [_validate_call(call, f"{field}[{i}]", where) for i, call in enumerate(calls)]


def parse_function_call(value: object, field: str, where: Location) -> list[Call]:
    """Return the one call of an older ``function_call``: an object or JSON text with a name.

    Raises:
        BadRow: As of :func:`validate_calls`.
    """
    call = parse_json(value)
    if isinstance(call, Mapping) and "function" not in call:
        call = {"type": "function", "function": dict(call)}
    return validate_calls([call], field, where)


def _validate_call(call: object, field: str, where: Location) -> Call:
    call = parse_json(call)
    if isinstance(call, Mapping) and call.get("function") is None and call.get("name"):
        # The function's own object alone, as some data sets have it.
        outer = {key: call[key] for key in ("id", "type") if call.get(key) is not None}
        inner = {key: item for key, item in call.items() if key not in outer}
        call = {"type": "function", **outer, "function": inner}
    function = call.get("function") if isinstance(call, Mapping) else None
    if (
        not isinstance(call, Mapping)
        or not isinstance(function, Mapping)
        or not isinstance(function.get("name"), str)
    ):
        raise BadRow(
            where, "wrong type", f"{field}={format_value(call)} is no call with a function's name",
            f"Write tool_calls: {_CALL}.",
        )  # fmt: skip
    call = {key: item for key, item in call.items() if item is not None}
    given = function.get("arguments")
    arguments = parse_json(given)
    if arguments is None or (isinstance(arguments, str) and not arguments.strip()):
        arguments = {}
    if not isinstance(arguments, Mapping):
        raise BadRow(
            where, "wrong type",
            f"{field}.function.arguments={format_value(given)} is no object, nor JSON text of one",
            'Write {"name of an argument": value, ...}.',
        )  # fmt: skip
    if where.filled and not isinstance(given, str):
        arguments = drop_nulls(arguments)
    inner = {key: item for key, item in function.items() if item is not None}
    made = {**call, "function": {**inner, "arguments": dict(arguments)}}
    validate_json(made["function"]["arguments"], f"{field}.function.arguments",
                 Location(where.source, where.number, where.unit))  # fmt: skip
    return made


def with_text_arguments(messages: Sequence[Turn]) -> list[Turn]:
    """Return copies of the turns whose calls hold their arguments as JSON text.

    For the few templates (DeepSeek's) that join them to text instead of writing them as JSON.
    """
    made = [copy.deepcopy(dict(message)) for message in messages]
    for message in made:
        for call in message.get("tool_calls") or ():
            function = call["function"]
            function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
    return made
