"""Parts of a row that a chat template leaves out: found by rendering the row without them.

Thoughts of earlier turns may be dropped, as reasoning models are tuned that way; nothing else may.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spin_composer.data.bad_row import DROP_SUCH_ROWS, FILL_OR_DROP, BadRow, Location
from spin_composer.data.rows import Call, Row, Turn
from spin_composer.data.spellings import THOUGHTS, without_null
from spin_composer.data.tokenizer_errors import TemplateFailure
from spin_composer.errors import format_value

KEYS_WITHOUT_TEXT = frozenset({"role", "content", "name", "tool_call_id"})
"""Keys of a turn that a template may leave out without losing text that is trained on."""
_ALWAYS_WRITTEN = ("user", "assistant")
"""Roles whose content, if it occurs in the rendering, is taken to be written for that turn."""
_LONG = 32
"""A text of this many characters is taken not to occur in the template itself."""
_NEAR = 128
"""Largest distance, in characters, between a call's name and its arguments in a rendering."""
_LOST = "by the chat template, so it would be lost"
_THOUGHT = r"think|thought|reason|rationale|analysis|scratchpad|reflect|plan|cot"
_THOUGHT_KEY = re.compile(_THOUGHT)
_TAG = rf"[\w:]*(?:{_THOUGHT})[\w:]*"
_TAGGED = re.compile(
    rf"<({_TAG})>.*?</\1>|\[THINK\].*?\[/THINK\]|\A.*?(?:</{_TAG}>|\[/THINK\])", re.DOTALL | re.I
)


def without_thoughts(content: str) -> str:
    """Return an answer without text in thinking tags, or before a closing thinking tag."""
    closed = "</" in content or "[/" in content
    return (_TAGGED.sub("", content) if closed else content).strip()


@dataclass(frozen=True)
class LossFinder:
    """Compares a row's rendering with that of the row without each of its parts.

    Args:
        messages: The turns as they were rendered.
        row: The row, for its tools and the template's arguments.
        whole: The rendering.
        where: The row's location.
        render: Renders turns with a row's tools and arguments.
        source: The template that renders the row.
        remedy: Start of the remedy for calls that are left out.
    """

    messages: Sequence[Turn]
    row: Row
    whole: str
    where: Location
    render: Callable[[Sequence[Turn], Row], str]
    source: str
    remedy: str = ""

    def check_keys(self) -> None:
        """Refuse a row if the template leaves out a key with text, a call or a tool.

        Raises:
            BadRow: Names what is left out.
        """
        last, used = len(self.messages) - 1, False
        for i, message in enumerate(self.messages):
            more = message.keys() - KEYS_WITHOUT_TEXT
            used |= bool(more) and i == last
            if "tool_calls" in more:
                self._check_calls(i, message["tool_calls"])
            for keys in _groups(message, more - {"tool_calls"}):
                names = THOUGHTS if keys[0] in THOUGHTS else keys
                # The template reads it, and may drop it from earlier turns.
                if i < last and _THOUGHT_KEY.search(keys[0]) and any(map(self._mentions, names)):
                    continue
                if self._same(i, {k: v for k, v in message.items() if k not in keys}):
                    raise self._unused(f"messages[{i}].{keys[0]}", message[keys[0]])
        self._check_tools()
        self._check_answer(used)

    def _check_calls(self, i: int, calls: Sequence[Call]) -> None:
        message = self.messages[i]
        for j, call in enumerate(calls):
            field, value = f"messages[{i}].tool_calls", calls if len(calls) == 1 else call
            field += f"[{j}]" if len(calls) > 1 else ""
            others = [*calls[:j], *calls[j + 1 :]]
            less = {**message, "tool_calls": others}
            if not others:
                less = without_null({k: v for k, v in message.items() if k != "tool_calls"})
            function = call["function"]
            if self._is_written(function):
                continue
            empty = "{}" if isinstance(function["arguments"], str) else {}
            changes: list[tuple[str, object]] = [("name", f"{function['name']}_")]
            if function["arguments"] not in ("{}", {}):
                changes.append(("arguments", empty))
            lost = self._same(i, less) or all(
                self._same(i, _with_function(message, j, key, other)) for key, other in changes
            )
            if lost:
                raise self._unused(field, value)
            for key, other in changes:
                if self._same(i, _with_function(message, j, key, other)):
                    raise self._unused(f"{field}.function.{key}", function[key])

    def _is_written(self, function: Mapping[str, Any]) -> bool:
        """Return whether a call's arguments occur as JSON in the rendering, close to its name.

        Most templates write them so; their rows need not be rendered again for each part of a call.
        """
        text = function["arguments"]
        if not isinstance(text, str):
            text = json.dumps(text, ensure_ascii=False)
        if len(text) < 4 or not self._is_found(text, times=self._count_calls(function)):
            return False
        at = self.whole.find(text)
        near = self.whole[max(0, at - _NEAR) : at + len(text) + _NEAR]
        return function["name"] in near

    def _count_calls(self, function: Mapping[str, Any]) -> int:
        return sum(
            call["function"]["arguments"] == function["arguments"]
            for message in self.messages for call in message.get("tool_calls") or ()
        )  # fmt: skip

    def _is_found(self, text: str, times: int = 0) -> bool:
        """Return whether a text occurs at least ``times`` more often than in the contents."""
        contents = sum((message["content"] or "").count(text) for message in self.messages)
        return self.whole.count(text) >= contents + times

    def _check_tools(self) -> None:
        tools = self.row.get("tools")
        if not tools:
            return
        # Without any tool another template may be used, which tells nothing about this one.
        renamed = [_renamed(tool) for tool in tools]
        if self._same_row({**self.row, "tools": None}) or (
            renamed != tools and self._same_row({**self.row, "tools": renamed})
        ):
            raise self._unused("tools", tools)
        for i, tool in enumerate(tools):
            if (name := _name_of(tool)) is not None and name in self.whole:
                continue
            others = [*tools[:i], *tools[i + 1 :]]
            if others and self._same_row({**self.row, "tools": others}):
                raise self._unused(f"tools[{i}]", tool)

    def _check_answer(self, used: bool) -> None:
        last, content = len(self.messages) - 1, self.messages[-1]["content"]
        field = f"messages[{last}].content"
        if not (content or "").strip():
            if not used:
                raise BadRow(
                    self.where, "empty response", f"{field}={format_value(content)} is empty",
                    FILL_OR_DROP,
                )  # fmt: skip
        elif (
            used and content.strip() not in self.whole
            and self._same(last, {**self.messages[-1], "content": ""})
        ):  # fmt: skip
            raise self._unused(field, content)

    def check_contents(self) -> list[str]:
        """Refuse a row if the template does not write all of a turn before the answer.

        Many templates silently drop tool turns or system turns. Of an earlier turn with calls a
        template may write the calls alone: its text is returned, for a note to the user.

        Raises:
            BadRow: Names the turn.
        """
        left_out: list[str] = []
        in_order = self._in_order()
        for i, message in enumerate(self.messages[:-1]):
            content = message["content"] or ""
            text = without_thoughts(content) if message["role"] == "assistant" else content.strip()
            if not text or (in_order and message["role"] in _ALWAYS_WRITTEN):
                continue
            if len(text) >= _LONG and self._is_found(text):
                continue
            part = self._lost_part(i, text)
            if part is None:
                continue
            field = f"messages[{i}].content={format_value(content)}"
            if message.get("tool_calls"):
                left_out.append(f"{field}{part}, beside tool_calls,")
                continue
            raise BadRow(
                self.where, f"{message['role']} turn not written",
                f"{field}{part}, of role {message['role']}, is not written {_LOST}",
                "Use a template that writes such turns, join the text to another turn with "
                f"dataset.preprocessing_fn, {DROP_SUCH_ROWS}",
            )  # fmt: skip
        return left_out

    def _in_order(self) -> bool:
        """Return whether the users' and assistants' texts occur in the rendering in their order.

        If not, one may be missing although the same text occurs elsewhere: each is then checked by
        itself.
        """
        end = 0
        for message in self.messages[:-1]:
            if message["role"] not in _ALWAYS_WRITTEN:
                continue
            content = (message["content"] or "").strip()
            start = self.whole.find(content, end)
            if start < 0 and message["role"] == "assistant":
                content = without_thoughts(content)
                start = self.whole.find(content, end)
            if start < 0:
                return False
            end = start + len(content)
        return True

    def _lost_part(self, i: int, text: str) -> str | None:
        """Return which part of a turn's text is missing, "" for all of it; None if none is."""
        message = self.messages[i]
        if self._same(i, {**message, "content": ""}):
            return ""
        if text in self.whole or json.dumps(text, ensure_ascii=False)[1:-1] in self.whole:
            return None
        words = text.split()
        if "".join(words) in "".join(self.whole.split()) or len(words) < 2:
            return None
        first, last = text[len(words[0]) :].lstrip(), text[: -len(words[-1])].rstrip()
        for name, rest in (("first", first), ("last", last)):
            if self._same(i, {**message, "content": rest}):
                return f", its {name} part"
        return None

    def _mentions(self, key: str) -> bool:
        return re.search(rf"\b{re.escape(key)}\b", self.source) is not None

    def _same(self, i: int, message: Turn) -> bool:
        return self._renders_same([*self.messages[:i], message, *self.messages[i + 1 :]], self.row)

    def _same_row(self, row: Row) -> bool:
        return self._renders_same(self.messages, row)

    def _renders_same(self, messages: Sequence[Turn], row: Row) -> bool:
        try:
            return self.render(messages, row) == self.whole
        except TemplateFailure:  # it cannot render the row without the part: it reads it
            return False

    def _unused(self, field: str, value: object) -> BadRow:
        remedy = self.remedy if ".tool_calls" in field else ""
        return BadRow(
            self.where, f"unused {field.rpartition('.')[2].partition('[')[0]}",
            f"{field}={format_value(value)} is not used {_LOST}",
            f"{remedy}Use a template that writes it, put it into the content, or remove the "
            "key.",
        )  # fmt: skip


def _groups(message: Turn, keys: Iterable[str]) -> list[list[str]]:
    """Return the keys; thoughts with the same text are one group, as templates read either."""
    groups: dict[str, list[str]] = {}
    for key in message:
        if key in keys:
            name = json.dumps(message[key]) if key in THOUGHTS else f"key {key}"
            groups.setdefault(name, []).append(key)
    return list(groups.values())


def _name_of(tool: Mapping[str, Any]) -> str | None:
    function = tool.get("function")
    name = (function if isinstance(function, Mapping) else tool).get("name")
    return name if isinstance(name, str) else None


def _renamed(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a tool under another name; itself if it has none."""
    name = _name_of(tool)
    if name is None:
        return tool
    function = tool.get("function")
    if isinstance(function, Mapping):
        return {**tool, "function": {**function, "name": f"{name}_"}}
    return {**tool, "name": f"{name}_"}


def _with_function(message: Turn, j: int, key: str, value: object) -> Turn:
    """Return a turn with another name or other arguments in one of its calls."""
    calls = list(message["tool_calls"])
    calls[j] = {**calls[j], "function": {**calls[j]["function"], key: value}}
    return {**message, "tool_calls": calls}
