"""Rendering of conversations by the chat template: the text of the prompt and of the whole row.

Only the last turn is trained on, so the template may change earlier turns (reasoning models drop
their thoughts), as long as it does so both with and without the answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from spin_composer.data.bad_row import BadRow, Location, template_error
from spin_composer.data.chat_template import ChatTemplate
from spin_composer.data.rows import Row, Turn
from spin_composer.data.spellings import iter_spellings, with_usual_names, without_null
from spin_composer.data.template_losses import LossFinder, without_thoughts
from spin_composer.data.tokenizer_errors import TemplateFailure
from spin_composer.errors import format_value

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_OURS = frozenset({"messages", "tools", "add_generation_prompt", "tokenize", "chat_template"})
# An answer that has no character in common with what a template writes.
_UNLIKE_ANYTHING = "\U0010f8ff"
_SHOWN = 48


@dataclass(frozen=True)
class Rendering:
    """A row as its template writes it."""

    prompt: str
    """The text before the response."""
    whole: str
    """The whole row's, which begins with the prompt's."""
    lacks: str
    """What of the generation prompt the prompt lacks, as the row goes on otherwise."""
    messages: list[Turn]
    """The turns as they were handed to the template."""
    row: Row
    """The row, for its tools and the template's arguments."""
    left_out: list[str]
    """Texts that the template leaves out and may, as a message names them."""


class Renderer:
    """Renders rows of kind ``chat`` by the tokenizer's template.

    Args:
        tokenizer: Has the template; without one, llm-foundry's default is used.
        date_string: The date for the template.
        generation_prompt: Where the prompt ends if the template's generation prompt is not a
            prefix of the whole rendering.
        quiet: Do not warn about a template that prints today's date.
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
        """Render turns; ``row`` may have tools and further arguments for the template."""
        row = row or {}
        turns = [self._as_handed(message) for message in messages]
        return self._template(
            turns, generation_prompt, row.get("tools") or None, row.get("chat_template_kwargs")
        )

    def _as_handed(self, message: Turn) -> Turn:
        """Return a turn in plain types, its thoughts under the name that the template reads."""
        if len(message) > 2:
            message = with_usual_names(message, self._template.source)
        role = message["role"]
        return message if type(role) is str else {**message, "role": str(role)}

    def supports_role(self, word: str) -> bool:
        """Return whether the template compares roles with a word, or has a token for it."""
        quoted = rf"""['"]{re.escape(word)}['"]"""
        return re.search(quoted, self._template.source) is not None or any(
            token in (f"<|{word}|>", f"<{word}>", f"[{word.upper()}]") for token in self._added
        )

    def header_in_answer(self) -> str:
        """Return the start of an answer's rendering that is not part of the generation prompt."""
        turns = [{"role": "user", "content": "a"}]
        answer = {"role": "assistant", "content": _UNLIKE_ANYTHING}
        try:
            prompt = self.text(turns, generation_prompt=True)
            whole = self.text([*turns, answer])
            without = self.text(turns)
        except TemplateFailure:  # it cannot render such turns: the rows will fail
            return ""
        if prompt != without or not whole.startswith(prompt):
            return ""
        return whole[len(prompt) :].partition(_UNLIKE_ANYTHING)[0].strip()

    def __call__(self, row: Row, where: Location) -> Rendering:
        """Return the prompt's text and the whole row's.

        Raises:
            BadRow: The template rejects the row, would lose a part of it, or renders the prompt
                differently once an answer follows.
        """
        self._check_arguments(row, where)
        messages, whole, left_out = self._render_row(row, where)
        prompt, lacks = self._split(messages, row, whole, where)
        return Rendering(prompt, whole, lacks, messages, row, left_out)

    def without_generation_prompt(self, rendering: Rendering) -> str:
        """Return a row's text before the template's generation prompt; empty if it has none."""
        try:
            before = self.text(rendering.messages[:-1], rendering.row)
        except TemplateFailure:  # it cannot render such turns without an answer
            return ""
        return before if (rendering.prompt + rendering.lacks).startswith(before) else ""

    def _check_arguments(self, row: Row, where: Location) -> None:
        given = row.get("chat_template_kwargs")
        if not given:
            return
        try:
            source = self._template.source_for(row.get("tools") or None)
        except TemplateFailure as failure:
            raise template_error(where, failure.describe(), row["messages"]) from failure
        for key, value in given.items():
            if key in _OURS or re.search(rf"\b{re.escape(key)}\b", source) is None:
                raise BadRow(
                    where, "unused template argument",
                    f"chat_template_kwargs.{key}={format_value(value)} is not used by the chat "
                    "template",
                    "Remove it, or use the template that the data was made for.",
                )  # fmt: skip

    def _render_row(self, row: Row, where: Location) -> tuple[list[Turn], str, list[str]]:
        """Return the turns in a spelling that the template writes whole, and their rendering.

        Third, the texts that the template leaves out and may.

        Raises:
            BadRow: It writes none of the spellings. Its own words go before what it leaves out,
                and that before what its engine says of a spelling that it was not made for.
        """
        faults: list[BadRow] = []
        roles: list[str] = []
        printed: tuple[list[Turn], str, list[str]] | None = None
        for messages in iter_spellings(row["messages"], self.supports_role):
            if roles != (roles := [message["role"] for message in messages]):
                faults = []  # of a row's own words that the template does not know after all
            try:
                whole = self._render(messages, row, where)
                made = messages, whole, self._check_losses(messages, row, whole, where)
            except BadRow as fault:
                faults.append(fault)
                continue
            if _prints_objects(messages, whole) or self._prints_null(messages, row, whole):
                printed = printed or made  # in Python's spelling: it expects another
                continue
            return made
        if printed is not None:  # no spelling is right: one that can be rendered
            return printed
        raise min(faults, key=_rank)

    def _check_losses(
        self, messages: Sequence[Turn], row: Row, whole: str, where: Location
    ) -> list[str]:
        losses = self._find_losses(messages, row, whole, where)
        losses.check_keys()
        try:
            return losses.check_contents()
        except BadRow:  # a text may be missing because it moves: that says more
            self._split(messages, row, whole, where)
            raise

    def _find_losses(
        self, messages: Sequence[Turn], row: Row, whole: str, where: Location
    ) -> LossFinder:
        named = self._template.names_for(row.get("tools") or None)
        remedy = (
            f"The template {named[0]!r} is used for rows without tools, and {named[1]!r} for rows "
            "with them: give the row its tools. " if named else ""
        )  # fmt: skip
        source = self._template.source_for(row.get("tools") or None)
        return LossFinder(messages, row, whole, where, self.text, source, remedy)

    def check_contents(
        self, messages: Sequence[Turn], row: Row, whole: str, where: Location
    ) -> None:
        """Refuse a row of which the template does not write a whole turn before the answer.

        Raises:
            BadRow: Names the turn.
        """
        self._find_losses(messages, row, whole, where).check_contents()

    def _prints_null(self, messages: Sequence[Turn], row: Row, whole: str) -> bool:
        """Tell whether a template that knows nothing of null content prints Python's word."""
        if all(message["content"] is not None for message in messages):
            return False
        try:
            blank = self.text([without_null(message) for message in messages], row)
        except TemplateFailure:  # it cannot take the empty text: null is what it was made for
            return False
        return whole.count("None") > blank.count("None")

    def _render(
        self,
        messages: Sequence[Turn],
        row: Row,
        where: Location,
        generation_prompt: bool = False,
    ) -> str:
        try:
            return self.text(messages, row, generation_prompt)
        except TemplateFailure as failure:
            raise template_error(where, failure.describe(), messages) from failure

    def _split(
        self, messages: Sequence[Turn], row: Row, whole: str, where: Location
    ) -> tuple[str, str]:
        """Return the prompt's text, and what it lacks of the generation prompt."""
        prompt = self._render(messages[:-1], row, where, generation_prompt=True)
        end = len(prompt)
        if not whole.startswith(prompt):
            end = self._boundary(messages, row, prompt, whole, where)
        return prompt[:end], prompt[end:]

    def _boundary(
        self,
        messages: Sequence[Turn],
        row: Row,
        prompt: str,
        whole: str,
        where: Location,
    ) -> int:
        """Return where generation prompt and whole text diverge, if the prompt may end there."""
        parts = _common_prefix_length(prompt, whole)
        try:
            before = self.text(messages[:-1], row)
        except TemplateFailure:  # it cannot render such turns without an answer
            before = ""
        if prompt.startswith(before) and parts < len(before):
            raise BadRow(
                where, "the prompt is rewritten",
                f"the chat template changes the turns before the answer once the answer "
                f"follows: {_excerpt(prompt, parts)} becomes {_excerpt(whole, parts)}",
                "Fix the template: it must write them alike (a system text that moves to the last "
                "turn does not), or drop such rows.",
            )  # fmt: skip
        # The answer's first characters may match by chance: they are not part of the prompt.
        unlike = self._render(
            [*messages[:-1], {"role": "assistant", "content": _UNLIKE_ANYTHING}], row, where
        )
        parts = min(parts, max(_common_prefix_length(prompt, unlike), len(before)))
        if self._ends_at == "response":
            return parts
        content = messages[-1]["content"] or ""
        answer = without_thoughts(content)
        if answer != content.strip() and content.strip() not in whole[len(before) :]:
            raise BadRow(
                where, "generation prompt not continued",
                f"the chat template cuts the thoughts out of the answer {format_value(content)}: "
                f"it writes {_excerpt(whole, parts + _SHOWN // 2)} where its generation prompt "
                f"ends with {prompt[parts:]!r}",
                "Use a template that keeps the last answer's thoughts; or, to train on the answer "
                "without them, set train_loader.dataset.generation_prompt: response.",
            )  # fmt: skip
        raise BadRow(
            where, "generation prompt not continued",
            f"the chat template's generation prompt ends with {prompt[parts:]!r}, where the whole "
            f"row has {whole[parts : parts + _SHOWN]!r}",
            "Set train_loader.dataset.generation_prompt: response to end the prompt before it, or "
            "give answers that begin so.",
        )  # fmt: skip


def _prints_objects(messages: Sequence[Turn], whole: str) -> bool:
    """Return whether a rendering contains arguments of calls as Python prints objects."""
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


def _rank(fault: BadRow) -> int:
    failure = fault.__cause__
    if not isinstance(failure, TemplateFailure):
        return 1
    return 0 if failure.is_refusal else 2
