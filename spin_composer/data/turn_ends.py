"""What a chat template writes after an answer: after the last one, and before another question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from spin_composer.data.rendering import Renderer
from spin_composer.data.rows import Turn
from spin_composer.data.tokenizer_errors import TemplateFailure
from spin_composer.errors import InputError, format_value

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ASKED, _SAID = "spin asks", "spin says"


@dataclass(frozen=True, slots=True)
class TurnEnds:
    """The text after an answer."""

    tail: str
    """After the last answer, to the end."""
    between: str
    """Between an earlier answer and the next question; empty if that cannot be determined."""

    @property
    def following(self) -> str:
        """What follows the tail if another question comes; empty if that is unknown."""
        return self.between[len(self.tail) :] if self.between.startswith(self.tail) else ""


def read_turn_ends(tokenizer: PreTrainedTokenizerBase, date_string: str | None = None) -> TurnEnds:
    """Render turns and return what the template writes after an answer.

    Args:
        tokenizer: Has the template.
        date_string: For the template.

    Raises:
        InputError: The template cannot render a question and its answer.
    """
    renderer = Renderer(tokenizer, date_string, quiet=True)
    question: Turn = {"role": "user", "content": _ASKED}
    turns = [question, {"role": "assistant", "content": _SAID}]
    try:
        text = renderer.text(turns)
    except TemplateFailure as error:
        turns = [{"role": "system", "content": "spin"}, *turns]  # some templates demand it
        try:
            text = renderer.text(turns)
        except TemplateFailure:
            raise InputError(
                f"tokenizer.chat_template: it cannot render a user's and an assistant's turn: "
                f"{error}. Fix the template of {format_value(tokenizer.name_or_path)}."
            ) from error
    if _SAID not in text:
        raise InputError(
            "tokenizer.chat_template: the assistant's content does not appear in its rendering "
            f"{format_value(text)}. Fix the template of "
            f"{format_value(tokenizer.name_or_path)}."
        )
    return TurnEnds(text.rpartition(_SAID)[2], _between(renderer, turns))


def _between(renderer: Renderer, turns: list[Turn]) -> str:
    try:
        text = renderer.text([*turns, *turns[-2:]])
    except TemplateFailure:  # it accepts one question only
        return ""
    between, asked, _ = text.partition(_SAID)[2].partition(_ASKED)
    return between if asked and _SAID not in between else ""  # else it drops earlier turns


def answer_header(renderer: Renderer) -> str:
    """Return what a chat template writes between a question and its answer; empty if unknown."""
    try:
        text = renderer.text([{"role": "user", "content": _ASKED}], generation_prompt=True)
    except TemplateFailure:  # it needs other turns
        return ""
    return text.rpartition(_ASKED)[2]
