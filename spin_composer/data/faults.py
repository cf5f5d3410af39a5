"""Where a row stands, and the error of one that cannot be trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from spin_composer.errors import InputError


@dataclass(frozen=True, slots=True)
class Where:
    """The place of a row: a file and its line, or a source and the row's number (both from 1)."""

    source: str
    number: int
    unit: Literal["line", "row"] = "line"
    filled: bool = False
    """The row comes from Arrow, which gives every struct all keys and fills them with null."""

    def __str__(self) -> str:
        return (
            f"{self.source}:{self.number}"
            if self.unit == "line"
            else (f"{self.source} row {self.number}")
        )


class BadRow(InputError):
    """A row that cannot be trained on.

    Args:
        where: The row's place.
        reason: A few words that rows with the same fault share (what is counted).
        problem: What is wrong, with field and value.
        remedy: What to do about it.
    """

    def __init__(self, where: Where, reason: str, problem: str, remedy: str) -> None:
        self.where, self.reason, self.problem, self.remedy = where, reason, problem, remedy
        line = f"{where}: {problem}. {remedy}"
        super().__init__(" ".join(line.splitlines()))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.where, self.reason, self.problem, self.remedy)
