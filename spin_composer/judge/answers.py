"""Exact match of the final answers of responses, where the data has one."""

from __future__ import annotations

import re

from spin_composer.errors import InputError, format_value

GSM8K_ANSWER = r"####\s*(-?[\d,]*\.?\d+)"
"""GSM8K's: ``#### 42`` at a response's end (arXiv 2110.14168)."""


def compile_answer(pattern: str) -> re.Pattern[str]:
    """Return the compiled pattern of an answer, whose first group is the answer itself.

    Raises:
        InputError: It is no regular expression, or has no group.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(
            f"answer={format_value(pattern)} is no regular expression ({error}). Write one whose "
            "first group is the answer."
        ) from None
    if not compiled.groups:
        raise InputError(
            f"answer={format_value(pattern)} has no group. Put the answer itself in parentheses."
        )
    return compiled


def final_answer(response: str, pattern: re.Pattern[str]) -> str | None:
    """Return the last answer of a response without spaces and commas; None if it has none."""
    found = None
    for match in pattern.finditer(response):
        found = match[1] or ""
    return None if found is None else re.sub(r"[\s,]", "", found)
