"""``tokenize: rendering``: the ids of a row as a whole, spelled control tokens looked after."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from spin_composer.data.bad_row import Location, tokenizer_error
from spin_composer.data.control_tokens import (
    ControlTokenFinder,
    TextEncoder,
    control_tokens,
    iter_texts,
    map_texts,
)
from spin_composer.data.counts import DataReport
from spin_composer.data.full_text import FullTextTokenizer
from spin_composer.data.rendering import Renderer
from spin_composer.data.rows import Row
from spin_composer.data.stop import StopRule
from spin_composer.data.turn_tokenizer import check_control_tokens, split_answer
from spin_composer.errors import InputError, format_value
from spin_composer.settings.dataset import DatasetConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

_ASKED, _SAID = "spin asks", "spin says"


class RowTokenizer:
    """Gives the ids of a row's prompt, and those that follow it in the whole row.

    Args:
        tokenizer: The model's tokenizer.
        config: The checked ``dataset:`` block.
        kind: plain or chat.
        rule: How responses end.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, config: DatasetConfig, kind: str, rule: StopRule
    ) -> None:
        self._config, self._kind = config, kind
        self._full_text = FullTextTokenizer(tokenizer, with_special=kind == "plain")
        self._renderer = (
            Renderer(tokenizer, config.date_string, config.generation_prompt)
            if kind == "chat" else None
        )  # fmt: skip
        control = control_tokens(tokenizer, self._between_turns())
        self._spelled = ControlTokenFinder(tokenizer, control)
        self._stop_text = str(tokenizer.convert_ids_to_tokens(rule.token_id))  # pyright: ignore
        self._encoder = None
        self._said: set[str] = set()
        if config.special_tokens_in_text == "text" and control:
            self._encoder = TextEncoder(tokenizer, control)
        if self._renderer is not None:
            self._warn_of_missing_date()
            if header := self._renderer.header_in_answer():
                log.warning(
                    "The chat template has no generation prompt (add_generation_prompt changes "
                    f"nothing): the model itself writes {header!r}, which is trained on as a part "
                    "of the response."
                )

    def __call__(
        self, row: Row, where: Location, report: DataReport
    ) -> tuple[list[int], list[int], str]:
        """Return the prompt's ids, the response's, and what the prompt lacks of the template's.

        Raises:
            BadRow: The template, the boundary or a control token in a text forbids it.
        """
        encode = None
        if self._encoder is None:
            refuse = self._config.special_tokens_in_text == "error"
            check_control_tokens(row, self._spelled, self._stop_text, where, report, refuse)
        elif any(map(self._spelled, iter_texts(split_answer(row)))):
            encode = self._encoder
            if self._kind == "plain":  # at its end it is no part of the text
                row = {**row, "response": row["response"].removesuffix(self._stop_text)}
        try:
            prompt, whole, lacks = self._texts(row, where, encode)
            ids, response = self._full_text(prompt, whole, where, encode)
        except InputError:
            raise
        except Exception as error:
            raise tokenizer_error(where, f"the row {format_value(row)}", error) from error
        if self._renderer is not None:
            self._count_cut_answer(row, prompt, whole, where, report)
            self._note_other_roles(row, where, report)
        return ids, response, lacks

    def _texts(
        self, row: Row, where: Location, encoder: TextEncoder | None
    ) -> tuple[str, str, str]:
        if self._renderer is None:
            return row["prompt"], row["prompt"] + row["response"], ""
        if encoder is None:
            return self._renderer(row, where)
        prompt, whole, lacks = self._renderer(map_texts(row, encoder.hide), where)
        return encoder.restore(prompt), encoder.restore(whole), lacks

    def _count_cut_answer(
        self, row: Row, prompt: str, whole: str, where: Location, report: DataReport
    ) -> None:
        """Count an answer that the template does not write whole, white space aside."""
        content = row["messages"][-1]["content"]
        if not content or content.strip() in whole[len(prompt) :]:
            return
        assert self._renderer is not None
        try:  # an answer may begin with what the generation prompt has already: <think>
            before = self._renderer.text(row["messages"][:-1], row)
        except Exception:
            before = prompt
        start = len(before) if prompt.startswith(before) else len(prompt)
        if "".join(content.split()) in "".join(whole[start:].split()):
            return
        report.truncated_answers += 1
        if report.truncated_answers == 1:
            report.note(
                f"{where}: the chat template does not write the whole answer "
                f"{format_value(content)}: what it leaves out is not trained on."
            )

    def _note_other_roles(self, row: Row, where: Location, report: DataReport) -> None:
        assert self._renderer is not None
        for i, turn in enumerate(row["messages"]):
            word = getattr(turn["role"], "spelled", None)
            if (
                word is not None
                and word not in self._said
                and not self._renderer.supports_role(word)
            ):
                self._said.add(word)
                report.note(
                    f"{where}: messages[{i}].role={word!r} is rendered as {str(turn['role'])!r}: "
                    "the chat template has no word for it."
                )

    def _between_turns(self) -> str:
        """Return what the template writes between an answer and the next question."""
        if self._renderer is None:
            return ""
        turns = [
            {"role": "user", "content": _ASKED}, {"role": "assistant", "content": _SAID},
            {"role": "user", "content": _ASKED}, {"role": "assistant", "content": _SAID},
        ]  # fmt: skip
        try:
            text = self._renderer.text(turns)
        except Exception:  # it cannot render such turns: the rows will say so
            return ""
        before, _, after = text.partition(_SAID)
        between = after.partition(_ASKED)[0]
        return between + before.partition(_ASKED)[2]

    def _warn_of_missing_date(self) -> None:
        """Say it if the template prints a date_string that nobody gives."""
        assert self._renderer is not None
        if self._config.date_string is not None:
            return
        turns = {"messages": [{"role": "user", "content": _ASKED}]}
        texts = []
        for date in ({}, {"date_string": ""}, {"date_string": "26 Jul 2024"}):
            try:
                given = {**turns, "chat_template_kwargs": date}
                texts.append(self._renderer.text(turns["messages"], given))
            except Exception:  # such a template says what it lacks at the first row
                return
        if texts[0] == texts[1] != texts[2]:
            log.warning(
                "The chat template prints date_string, which is not set, so that it stays empty: "
                "set train_loader.dataset.date_string, such as 26 Jul 2024."
            )
