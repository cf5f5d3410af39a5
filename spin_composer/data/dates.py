"""The date that a chat template prints: set by ``date_string``, or today's, with a warning.

transformers provides templates with the function ``strftime_now``; in newer releases callers cannot
replace it, since template arguments are plain data. So the template gets a macro of that name,
which formats each directive (``%d``) from the date that we pass.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime

from spin_composer.data.tokenizer_errors import TemplateFailure
from spin_composer.errors import InputError, format_value

log = logging.getLogger(__name__)

ANOTHER_DAY = (
    "so a run resumed on another day would not fit its store: set "
    "train_loader.dataset.date_string, such as 26 Jul 2024."
)
"""The consequence and remedy if a chat template prints today's date."""

_FORMATS = (
    "%d %b %Y", "%d %B %Y", "%Y-%m-%d", "%B %d, %Y", "%b %d, %Y", "%d/%m/%Y", "%Y/%m/%d", "%d.%m.%Y"
)  # fmt: skip
_FUNCTION = "strftime_now"
# On one line: trim_blocks removes the newline after it, so the macro itself writes nothing.
_MACRO = (
    "{% macro strftime_now(format) %}"
    "{{ raise_exception(spin_no_date ~ format ~ '\\'') if spin_no_date }}"
    "{% set written = namespace(text=format) %}{% for directive, text in spin_date.items() %}"
    "{% set written.text = written.text.replace(directive, text) %}{% endfor %}"
    "{{ written.text }}{% endmacro %}\n"
)
_DIRECTIVES = (
    *(f"%{letter}" for letter in "aAwdbBmyYHIpMSfzZjUWcxXGuVeDFTRhsnt"),
    *(f"%-{letter}" for letter in "dmyHIMSj"),
)  # fmt: skip
_PERCENT = "\U0010f8f2"
_OTHER_DAY = datetime(1961, 12, 9, 23, 58, 57)


class TemplateDate:
    """Provides templates with ``date_string`` and ``strftime_now``.

    Args:
        date: The date as configured; None for today's.
        quiet: Do not warn about today's date.
    """

    def __init__(self, date: str | None, quiet: bool = False) -> None:
        self._text = date
        self._warned = quiet
        self._refusal = ""
        day = datetime.now() if date is None else _parsed(date)
        if day is None:
            self._refusal = (
                f"train_loader.dataset.date_string={format_value(date)} is not a date that the "
                "chat template could print as '"
            )
        self._format_directives = {} if day is None else _format_directives(day)

    def patch_template(self, source: str) -> str | None:
        """Return a template with our ``strftime_now``; None if it does not call that."""
        return _MACRO + source if _FUNCTION in source else None

    def render(self, render: Callable[..., str], source: str) -> str:
        """Render with the date, and warn if the template prints today's date.

        Args:
            render: Renders the template of :meth:`patch_template` with the given arguments.
            source: The template.

        Raises:
            InputError: The template prints a date, and ``date_string`` is not a date.
            TemplateFailure: The template cannot render the turns.
        """
        try:
            text = render(**self._arguments(source))
        except TemplateFailure as error:
            if self._refusal and str(error).startswith(self._refusal):
                raise InputError(f"{error}. Write it as 26 Jul 2024 or 2024-07-26.") from error
            raise
        if self._text is None and not self._warned and _FUNCTION in source:
            # A template may contain the call but not reach it: compare with another day.
            other = {**self._arguments(source), "spin_date": _format_directives(_OTHER_DAY)}
            if render(**other) != text:
                self._warned = True
                log.warning("The chat template prints today's date (strftime_now), %s", ANOTHER_DAY)
        return text

    def _arguments(self, source: str) -> dict[str, object]:
        given: dict[str, object] = {} if self._text is None else {"date_string": self._text}
        if _FUNCTION in source:
            given |= {"spin_date": self._format_directives, "spin_no_date": self._refusal}
        return given


def _format_directives(day: datetime) -> dict[str, str]:
    """Return each directive's text for a day, in the order of replacement."""
    texts = {directive: day.strftime(directive) for directive in _DIRECTIVES}
    return {"%%": _PERCENT, **texts, _PERCENT: "%"}


def _parsed(date: str) -> datetime | None:
    for form in _FORMATS:
        try:
            return datetime.strptime(date.strip(), form)
        except ValueError:
            continue
    return None
