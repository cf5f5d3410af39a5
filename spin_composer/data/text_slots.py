"""Renderings of conversations put together from their parts, without running the template again.

For a template that writes contents as they are (``opaque_contents``), conversations with the same
roles are rendered once, with marks as contents. Other contents then take the places of the marks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, NamedTuple

from spin_composer.data.opaque_contents import writes_contents_as_they_are
from spin_composer.data.rows import Turn
from spin_composer.data.tokenizer_errors import TemplateFailure

Render = Callable[[Sequence[Turn], bool], str]
"""Returns the text of turns, with or without the generation prompt."""

_MARK, _SPACE = "\U0010f8f3", "\u2005"
# White space that occurs in no template shows whether a content is stripped.
_PLACE = re.compile(f"({_SPACE}?){_MARK}(\\d+){_MARK}({_SPACE}?)")
_MOST_FORMS = 4096


class _Form(NamedTuple):
    """What is written for some roles: texts, and between them the contents of turns."""

    texts: list[str]
    turns: list[int]
    """The index of the turn whose content follows each text but the last."""
    stripped: list[bool]
    """Whether that content is written without white space at its ends."""

    def filled(self, contents: Sequence[str]) -> str:
        """Return the text with these contents."""
        between = [
            contents[turn].strip() if strip else contents[turn]
            for turn, strip in zip(self.turns, self.stripped, strict=True)
        ]
        return "".join(chain.from_iterable(zip(self.texts, [*between, ""], strict=True)))


class TextSlots:
    """Renders turns that have a role and a text only.

    Args:
        template: The template.
        render: Renders turns by the template.
    """

    def __init__(self, template: str, render: Render) -> None:
        self._render = render
        self._forms: dict[tuple[str, ...], _Form] = {}
        own = _MARK not in template and _SPACE not in template
        self._may_fill = own and writes_contents_as_they_are(template)

    def __call__(self, turns: Sequence[Turn], generation_prompt: bool) -> str:
        """Return the text of turns.

        Raises:
            TemplateFailure: The template cannot render them.
        """
        contents: list[Any] = [turn.get("content") for turn in turns] if self._may_fill else []
        if not contents or not all(
            type(text) is str and len(turn) == 2 for text, turn in zip(contents, turns, strict=True)
        ):  # fmt: skip
            return self._render(turns, generation_prompt)
        key = (*(turn["role"] for turn in turns), "generation prompt" if generation_prompt else "")
        form = self._forms.get(key)
        if form is None:
            return self._with_new_form(key, turns, contents, generation_prompt)
        return form.filled(contents)

    def _with_new_form(
        self, key: tuple[str, ...], turns: Sequence[Turn], contents: Sequence[str], prompt: bool
    ) -> str:
        """Render turns, and keep the form of such turns if it gives the same."""
        text = self._render(turns, prompt)
        marks = (f"{_SPACE}{_MARK}{i}{_MARK}{_SPACE}" for i in range(len(turns)))
        marked = [{**turn, "content": mark} for turn, mark in zip(turns, marks, strict=True)]
        try:
            form = _form(self._render(marked, prompt))
        except TemplateFailure:
            form = None
        if form is None or form.filled(contents) != text:
            self._may_fill = False  # it is another template than it seems
            return text
        if len(self._forms) >= _MOST_FORMS:
            self._forms.clear()
        self._forms[key] = form
        return text


def _form(rendered: str) -> _Form | None:
    """Return the form of a rendering with marks; None if they were not written as expected."""
    texts, turns, stripped = [""], [], []
    end = 0
    for found in _PLACE.finditer(rendered):
        before, turn, after = found.groups()
        if bool(before) != bool(after):
            return None
        texts[-1] = rendered[end : found.start()]
        texts.append("")
        turns.append(int(turn))
        stripped.append(not before)
        end = found.end()
    texts[-1] = rendered[end:]
    if any(_MARK in text or _SPACE in text for text in texts):
        return None
    return _Form(texts, turns, stripped)
