"""Tokenization turn by turn: text and ids of each prompt and of its answer.

The ids equal those of llm-foundry's SFT: ``tests/data/test_turn_encoder.py`` compares them.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from spin_composer.data.chat_template import ChatTemplate
from spin_composer.data.fast_encoder import FastEncoder
from spin_composer.data.rows import Row, Turn
from spin_composer.data.text_tokenizer import text_tokenizer
from spin_composer.data.tokenizer_errors import TokenizerFailure, errors_as
from spin_composer.errors import format_value

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_DATE = "%d %b %Y"
_SHOWN = 120


class TurnFault(Exception):
    """Turns that cannot be rendered one after another; the message says why."""


class TurnEncoder:
    """Encodes rows turn by turn; an answer of the assistant ends a turn.

    Args:
        tokenizer: The model's tokenizer.
        date_string: The date for the template; today's if None.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, date_string: str | None = None) -> None:
        self._tokenizer, self._fast = text_tokenizer(tokenizer), FastEncoder(tokenizer)
        self._template = ChatTemplate(tokenizer, date_string)
        pinned = date_string is not None
        self._arguments = {} if pinned else {"date_string": datetime.now().strftime(_DATE)}

    def __call__(self, row: Row) -> list[tuple[list[int], list[int]]]:
        """Return the ids of each prompt and of its answer, in order.

        Plain rows get the special tokens that the tokenizer adds to each text, BOS only once. Turns
        of a chat get none: their template writes its own.

        Raises:
            TurnFault: The template cannot render the turns one after another.
            TemplateFailure: The template rejects the turns.
            TokenizerFailure: The tokenizer rejects a text.
        """
        if "messages" in row:
            turns = self.texts(row["messages"])
            return [self._encode(*turn, add_special_tokens=False) for turn in turns]
        prompt, answer = self._encode(row["prompt"], row["response"])
        bos = self._tokenizer.bos_token_id
        if bos is not None and prompt[:1] == answer[:1] == [bos]:
            answer = answer[1:]
        return [(prompt, answer)]

    def texts(self, messages: Sequence[Turn]) -> list[tuple[str, str]]:
        """Return the text of each prompt, without what precedes it, and of its answer.

        Raises:
            TurnFault: Two successive turns have the same role, a content is not text, or the
                template renders a turn differently once others follow.
            TemplateFailure: The template rejects the turns.
        """
        _check(messages)
        turns: list[tuple[str, str]] = []
        before = ""
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self._template(messages[:i], True, arguments=self._arguments)
            whole = self._template(messages[: i + 1], arguments=self._arguments)
            for earlier, later in ((before, prompt), (before, whole), (prompt, whole)):
                if not later.startswith(earlier):
                    raise TurnFault(
                        f"what it writes up to messages[{i}] does not begin with what it wrote "
                        f"before: {_parting(earlier, later)}"
                    )
            turns.append((prompt[len(before) :], whole[len(prompt) :]))
            before = whole
        return turns

    def _encode(
        self, prompt: str, answer: str, add_special_tokens: bool = True
    ) -> tuple[list[int], list[int]]:
        if self._fast.is_like_call(add_special_tokens):
            return self._fast(prompt).tolist(), self._fast(answer).tolist()
        with errors_as(TokenizerFailure):
            ids = self._tokenizer(prompt, text_target=answer, add_special_tokens=add_special_tokens)
            return list(ids["input_ids"]), list(ids["labels"])


def _check(messages: Sequence[Turn]) -> None:
    """Reject turns that llm-foundry's SFT rejects as well."""
    previous = None
    for i, message in enumerate(messages):
        if not isinstance(message["content"], str):
            raise TurnFault(f"messages[{i}].content={format_value(message['content'])} is not text")
        if message["role"] == previous:
            raise TurnFault(f"messages[{i}] is the second turn of role {previous!r} in a row")
        previous = message["role"]


def _parting(earlier: str, later: str) -> str:
    """Show where a text diverges from its expected prefix."""
    at = next(
        (i for i, (a, b) in enumerate(zip(earlier, later, strict=False)) if a != b), len(later)
    )
    return f"{format_value(earlier[at:], _SHOWN)} becomes {format_value(later[at:], _SHOWN)}"
