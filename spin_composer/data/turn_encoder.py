"""A row's turns by themselves: the text and the ids of each prompt and of the answer to it.

So SFT by llm-foundry encodes them, id for id: ``tests/data/test_turn_encoder.py`` compares.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from spin_composer.data.chat_template import ChatTemplate
from spin_composer.data.rows import Row, Turn
from spin_composer.errors import format_value

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_DATE = "%d %b %Y"
_SHOWN = 120


class TurnFault(Exception):
    """Turns that cannot be written one after another; the text says why."""


class TurnEncoder:
    """Encodes rows turn by turn; an answer of the assistant ends a turn.

    Args:
        tokenizer: The model's tokenizer.
        date_string: The date for the template; if None, today's is given to it as ``date_string``.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, date_string: str | None = None) -> None:
        self._tokenizer: Any = tokenizer  # its stubs do not know that ids are a list
        self._template = ChatTemplate(tokenizer, date_string)
        pinned = date_string is not None
        self._arguments = {} if pinned else {"date_string": datetime.now().strftime(_DATE)}

    def __call__(self, row: Row) -> list[tuple[list[int], list[int]]]:
        """Return the ids of each prompt and of its answer, from the first turn to the last.

        Plain rows get what the tokenizer puts around each text, BOS once. Turns of a chat get
        nothing: their template writes its own.

        Raises:
            TurnFault: The template cannot write the turns one after another.
            Exception: The template's or the tokenizer's own: it refuses the row.
        """
        if "messages" in row:
            turns = self.texts(row["messages"])
            return [self._encoded(*turn, add_special_tokens=False) for turn in turns]
        prompt, answer = self._encoded(row["prompt"], row["response"])
        bos = self._tokenizer.bos_token_id
        if bos is not None and prompt[:1] == answer[:1] == [bos]:
            answer = answer[1:]
        return [(prompt, answer)]

    def texts(self, messages: Sequence[Turn]) -> list[tuple[str, str]]:
        """Return the text of each prompt, what stands before it left out, and of its answer.

        Raises:
            TurnFault: Two turns of one role, a content that is no text, or a template that writes
                a turn otherwise once others follow.
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

    def _encoded(self, prompt: str, answer: str, **given: bool) -> tuple[list[int], list[int]]:
        ids = self._tokenizer(text=prompt, text_target=answer, **given)
        return list(ids["input_ids"]), list(ids["labels"])


def _check(messages: Sequence[Turn]) -> None:
    """Refuse turns that SFT by llm-foundry does not take either."""
    previous = None
    for i, message in enumerate(messages):
        if not isinstance(message["content"], str):
            raise TurnFault(f"messages[{i}].content={format_value(message['content'])} is no text")
        if message["role"] == previous:
            raise TurnFault(f"messages[{i}] is the second turn of role {previous!r} in a row")
        previous = message["role"]


def _parting(earlier: str, later: str) -> str:
    """Show where a text parts from what it should begin with."""
    at = next(
        (i for i, (a, b) in enumerate(zip(earlier, later, strict=False)) if a != b), len(later)
    )
    return f"{format_value(earlier[at:], _SHOWN)} becomes {format_value(later[at:], _SHOWN)}"
