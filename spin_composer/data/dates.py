"""The date that a chat template prints: pinned by ``date_string``, or today's and warned of."""

from __future__ import annotations

import logging
from datetime import datetime
from typing import Any

from spin_composer.errors import InputError, shown

log = logging.getLogger(__name__)

_FORMATS = (
    "%d %b %Y", "%d %B %Y", "%Y-%m-%d", "%B %d, %Y", "%b %d, %Y", "%d/%m/%Y", "%Y/%m/%d", "%d.%m.%Y"
)  # fmt: skip


class TemplateDate:
    """What templates are given for ``date_string`` and ``strftime_now``.

    transformers puts ``strftime_now`` into every template as a global; an argument of the same
    name takes its place, wherever in the template it is called.
    """

    def __init__(self, date: str | None, quiet: bool = False) -> None:
        self._text = date
        self._date = _parsed(date) if date is not None else datetime.now()
        self._warned = quiet

    def arguments(self) -> dict[str, Any]:
        """Return the arguments for the template."""
        given = {} if self._text is None else {"date_string": self._text}
        return {"strftime_now": self._strftime_now, **given}

    def _strftime_now(self, form: str) -> str:
        if self._date is None:
            raise InputError(
                f"train_loader.dataset.date_string={shown(self._text)} is no date that the chat "
                f"template could print as {form!r}. Write it as 26 Jul 2024 or 2024-07-26."
            )
        if self._text is None and not self._warned:
            self._warned = True
            log.warning(
                "The chat template prints today's date (strftime_now), so a run resumed on another "
                "day would not fit its store: set train_loader.dataset.date_string, such as "
                "26 Jul 2024."
            )
        return self._date.strftime(form)


def _parsed(date: str) -> datetime | None:
    for form in _FORMATS:
        try:
            return datetime.strptime(date.strip(), form)
        except ValueError:
            continue
    return None
