"""The location of a row, and the error of a row that cannot be trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from spin_composer.data.tokenizer_errors import TokenizerFailure
from spin_composer.errors import InputError, format_value


@dataclass(frozen=True, slots=True)
class Location:
    """The location of a row: file and line, or source and row number (both from 1)."""

    source: str
    number: int
    unit: Literal["line", "row"] = "line"
    filled: bool = False
    """The row comes from Arrow, which adds missing keys to structs with the value null."""

    def __str__(self) -> str:
        return (
            f"{self.source}:{self.number}"
            if self.unit == "line"
            else (f"{self.source} row {self.number}")
        )


DROP_SUCH_ROWS = "or drop such rows with dataset.on_bad_row: skip."
FILL_OR_DROP = f"Give it a text, {DROP_SUCH_ROWS}"
BOUNDARIES_LOST = "tokenized already, and the prompt's and response's boundaries are lost"


class BadRow(InputError):
    """A row that cannot be trained on.

    Args:
        where: The row's location.
        reason: A short label that rows with the same problem share; counts are by reason.
        problem: What is wrong, with field and value.
        remedy: What to do about it.
    """

    def __init__(self, where: Location, reason: str, problem: str, remedy: str) -> None:
        self.where, self.reason, self.problem, self.remedy = where, reason, problem, remedy
        line = f"{where}: {problem}. {remedy}"
        super().__init__(" ".join(line.splitlines()))

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.where, self.reason, self.problem, self.remedy)


def template_error(
    where: Location,
    said: object,
    messages: object,
    who: str = "the chat template refuses",
    more: str = "",
) -> BadRow:
    """Return the error of a row that the tokenizer's chat template rejects.

    Args:
        where: The row's location.
        said: The message of the template or of its engine.
        messages: The row's messages.
        who: Start of the message: what rejects the row, with its verb.
        more: Appended to the remedy.
    """
    return BadRow(
        where, "chat template fails",
        f"{who} the row: {said} (messages={format_value(messages)})",
        f"Adapt the row to the tokenizer's chat template, or change the template{more}.",
    )  # fmt: skip


def tokenizer_error(where: Location, row: str, failure: TokenizerFailure) -> BadRow:
    """Return the error of a row that the tokenizer cannot encode."""
    return BadRow(
        where, "tokenizer fails",
        f"the tokenizer cannot encode {row} ({failure.cause_name}: "
        f"{format_value(str(failure), 160)})",
        "Correct the text, or use the model's own tokenizer.",
    )  # fmt: skip
