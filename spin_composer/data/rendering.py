"""A conversation as its chat template writes it: the prompt's text and the whole row's.

Only the last turn is trained on, so the template may rewrite earlier turns (reasoning models drop
their thoughts), as long as it does so with and without the answer alike.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from spin_composer.data.bad_row import (
    DROP_SUCH_ROWS,
    FILL_OR_DROP,
    BadRow,
    Location,
    template_error,
)
from spin_composer.data.chat_template import ChatTemplate
from spin_composer.data.rows import Row, Turn
from spin_composer.data.tool_calls import with_text_arguments
from spin_composer.errors import InputError, format_value

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KEYS_WITHOUT_TEXT = frozenset({"role", "content", "name", "tool_call_id"})
"""Keys of a turn that a template may leave out: no text that is trained on is lost."""
_OURS = frozenset({"messages", "tools", "add_generation_prompt", "tokenize", "chat_template"})
# Stands for an answer of which no character agrees with what a template writes.
_UNLIKE_ANYTHING = "\U0010f8ff"
_SHOWN = 48
_ALWAYS_WRITTEN = ("user", "assistant")
"""Of these a content that stands in the rendering is taken to be the turn's own."""
_LOST = "by the chat template, so it would be lost"
_TAGGED = re.compile(r"<(\w+)>.*?</\1>", re.DOTALL)


class Renderer:
    """Renders rows of kind ``chat`` by the tokenizer's template.

    Args:
        tokenizer: Has the template; llm-foundry's default is taken where it has none.
        date_string: The date for the template.
        generation_prompt: Where the prompt ends if the template's generation prompt is no
            beginning of the whole rendering.
        quiet: Do not warn of a template that prints today's date.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        date_string: str | None = None,
        generation_prompt: Literal["template", "response"] = "template",
        quiet: bool = False,
    ) -> None:
        self._template = ChatTemplate(tokenizer, date_string, quiet)
        self._added = [token.content for token in tokenizer.added_tokens_decoder.values()]
        self._ends_at = generation_prompt

    def text(
        self,
        messages: Sequence[Turn],
        row: Row | None = None,
        generation_prompt: bool = False,
    ) -> str:
        """Render turns; ``row`` may bring tools and further arguments for the template."""
        row = row or {}
        turns = [self._as_spelled(message) for message in messages]
        return self._template(
            turns, generation_prompt, row.get("tools") or None, row.get("chat_template_kwargs")
        )

    def _as_spelled(self, message: Turn) -> Turn:
        """Return a turn under its row's own role where the template has a word for that role."""
        spelled = getattr(message["role"], "spelled", None)
        known = spelled is not None and self.supports_role(spelled)
        return {**message, "role": spelled} if known else {**message, "role": str(message["role"])}

    def supports_role(self, word: str) -> bool:
        """Tell whether the template compares roles with a word, or has a token for it."""
        quoted = rf"""['"]{re.escape(word)}['"]"""
        return re.search(quoted, self._template.source) is not None or any(
            token in (f"<|{word}|>", f"<{word}>", f"[{word.upper()}]") for token in self._added
        )

    def header_in_answer(self) -> str:
        """Return what an answer's rendering begins with that no generation prompt writes."""
        turns = [{"role": "user", "content": "a"}]
        answer = {"role": "assistant", "content": _UNLIKE_ANYTHING}
        try:
            prompt = self.text(turns, generation_prompt=True)
            whole = self.text([*turns, answer])
            without = self.text(turns)
        except Exception:  # it cannot render such turns: the rows will say so
            return ""
        if prompt != without or not whole.startswith(prompt):
            return ""
        return whole[len(prompt) :].partition(_UNLIKE_ANYTHING)[0].strip()

    def __call__(self, row: Row, where: Location) -> tuple[str, str, str]:
        """Return the prompt's text, and the whole row's, which begins with it.

        Third, what of the generation prompt the prompt lacks, as the row goes on otherwise.

        Raises:
            BadRow: The template refuses the row, would lose a part of it, or writes the prompt
                otherwise once an answer follows.
        """
        self._check_arguments(row, where)
        messages, whole = self._render_row(row, where)
        prompt = self._render(messages[:-1], row, where, generation_prompt=True)
        self._check_keys(messages, row, whole, where)
        end = len(prompt)
        if not whole.startswith(prompt):
            end = self._boundary(messages, row, prompt, whole, where)
        self.check_contents(messages, row, whole, where)
        return prompt[:end], whole, prompt[end:]

    def _check_arguments(self, row: Row, where: Location) -> None:
        for key, value in (row.get("chat_template_kwargs") or {}).items():
            if key in _OURS or not self._template_mentions(key):
                raise BadRow(
                    where, "unused template argument",
                    f"chat_template_kwargs.{key}={format_value(value)} is not used by the chat "
                    "template",
                    "Remove it, or use the template that the data was made for.",
                )  # fmt: skip

    def _template_mentions(self, key: str) -> bool:
        return re.search(rf"\b{re.escape(key)}\b", self._template.source) is not None

    def _render_row(self, row: Row, where: Location) -> tuple[list[Turn], str]:
        """Return the turns in the spelling that the template can render, and their rendering."""
        given = list(row["messages"])
        spellings = [given]
        if any(message.get("tool_calls") for message in given):
            spellings.append(with_text_arguments(given))
        for messages in [*spellings]:
            if any(message["content"] is None for message in messages):
                spellings.append([_without_null(message) for message in messages])
        first: BadRow | None = None
        for messages in spellings:
            try:
                whole = self._render(messages, row, where)
            except BadRow as fault:
                first = first or fault
                continue
            if messages is not spellings[-1] and _prints_objects(messages, whole):
                continue  # in Python's spelling: the template expects JSON text
            if any(message["content"] is None for message in messages):
                blank = [_without_null(message) for message in messages]
                try:
                    # A template that knows nothing of null content prints Python's word for it.
                    if whole.count("None") > self._render(blank, row, where).count("None"):
                        continue
                except BadRow:
                    pass
            return messages, whole
        if first is None:  # neither spelling is right: the one that can be rendered
            return given, self._render(given, row, where)
        raise first

    def _render(
        self,
        messages: Sequence[Turn],
        row: Row,
        where: Location,
        generation_prompt: bool = False,
    ) -> str:
        from jinja2.exceptions import TemplateError

        try:
            return self.text(messages, row, generation_prompt)
        except InputError:
            raise
        except Exception as error:
            name = "" if type(error) is TemplateError else f"{type(error).__name__}: "
            raise template_error(where, f"{name}{error}", messages) from error

    def _check_keys(
        self,
        messages: Sequence[Turn],
        row: Row,
        whole: str,
        where: Location,
    ) -> None:
        """Refuse a row of which the template leaves out a key that carries text."""
        last = len(messages) - 1
        used = False
        for i, message in enumerate(messages):
            for key in message.keys() - KEYS_WITHOUT_TEXT:
                if i < last and self._template_mentions(key):
                    continue  # the template knows it, and may drop it from earlier turns
                less = _without_null({k: v for k, v in message.items() if k != key})
                if self._renders_same([*messages[:i], less, *messages[i + 1 :]], row, whole):
                    raise _unused_error(f"messages[{i}].{key}", message[key], where)
                used |= i == last
        if row.get("tools") and self._renders_same(messages, {**row, "tools": None}, whole):
            raise _unused_error("tools", row["tools"], where)
        content = messages[-1]["content"]
        if not (content or "").strip():
            if not used:
                raise BadRow(
                    where, "empty response",
                    f"messages[{last}].content={format_value(content)} is empty",
                    FILL_OR_DROP,
                )  # fmt: skip
        elif used and content.strip() not in whole:
            less = {**messages[-1], "content": ""}
            if self._renders_same([*messages[:-1], less], row, whole):
                raise _unused_error(f"messages[{last}].content", content, where)

    def check_contents(
        self,
        messages: Sequence[Turn],
        row: Row,
        whole: str,
        where: Location,
    ) -> None:
        """Refuse a row of which the template does not write a whole turn before the answer.

        Many templates know no tool or no system turn and say nothing of it. A thought that a
        template drops from an earlier turn is no such loss.

        Raises:
            BadRow: Names the turn.
        """
        for i, message in enumerate(messages[:-1]):
            content = _TAGGED.sub("", message["content"] or "").strip()
            if not content or message.get("tool_calls"):
                continue  # of such a turn a template may write the calls alone
            if message["role"] in _ALWAYS_WRITTEN and content in whole:
                continue
            less = {**message, "content": ""}
            if self._renders_same([*messages[:i], less, *messages[i + 1 :]], row, whole):
                raise BadRow(
                    where, f"{message['role']} turn not written",
                    f"messages[{i}].content={format_value(message['content'])}, of role "
                    f"{message['role']}, is not written {_LOST}",
                    "Use a template that writes such turns, join the text to another turn with "
                    f"dataset.preprocessing_fn, {DROP_SUCH_ROWS}",
                )  # fmt: skip

    def _renders_same(self, messages: Sequence[Turn], row: Row, whole: str) -> bool:
        try:
            return self.text(messages, row) == whole
        except Exception:  # without the key the template cannot render the row: it reads it
            return False

    def _boundary(
        self,
        messages: Sequence[Turn],
        row: Row,
        prompt: str,
        whole: str,
        where: Location,
    ) -> int:
        """Return where the generation prompt and the whole part, if the prompt may end there."""
        parts = _common_prefix_length(prompt, whole)
        try:
            before = self.text(messages[:-1], row)
        except Exception:
            before = ""
        if prompt.startswith(before) and parts < len(before):
            raise BadRow(
                where, "the prompt is rewritten",
                f"the chat template writes the turns before the answer otherwise once the answer "
                f"follows: {_excerpt(prompt, parts)} becomes {_excerpt(whole, parts)}",
                "Mend the template: it must write them alike (a system text that moves to the last "
                "turn does not), or drop such rows.",
            )  # fmt: skip
        # The answer's own first characters may agree by chance: they are no part of the prompt.
        unlike = self._render(
            [*messages[:-1], {"role": "assistant", "content": _UNLIKE_ANYTHING}], row, where
        )
        parts = min(parts, max(_common_prefix_length(prompt, unlike), len(before)))
        if self._ends_at == "response":
            return parts
        raise BadRow(
            where, "generation prompt not continued",
            f"the chat template's generation prompt ends with {prompt[parts:]!r}, where the whole "
            f"row has {whole[parts : parts + _SHOWN]!r}",
            "Set train_loader.dataset.generation_prompt: response to end the prompt before it, or "
            "give answers that begin so.",
        )  # fmt: skip


def _without_null(message: Turn) -> Turn:
    return {**message, "content": ""} if message["content"] is None else message


def _prints_objects(messages: Sequence[Turn], whole: str) -> bool:
    """Tell whether arguments of calls stand in a rendering as Python prints objects."""
    found = (
        call.get("function", {}).get("arguments")
        for message in messages
        for call in message.get("tool_calls") or ()
    )
    return any(
        isinstance(given, (dict, list)) and given and str(given) != json.dumps(given)
        and str(given) in whole for given in found
    )  # fmt: skip


def _common_prefix_length(a: str, b: str) -> int:
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


def _excerpt(text: str, at: int) -> str:
    return repr(text[max(0, at - _SHOWN // 2) : at + _SHOWN])


def _unused_error(field: str, value: object, where: Location) -> BadRow:
    return BadRow(
        where, f"unused {field.rpartition('.')[2]}",
        f"{field}={format_value(value)} is not used {_LOST}",
        "Use a template that writes it, put it into the content, or remove the key.",
    )  # fmt: skip
