"""``tokenize: rendering``: tokenization of the whole row, with checks for control tokens."""

from __future__ import annotations

import logging
from array import array
from dataclasses import replace
from typing import TYPE_CHECKING

from spin_composer.data.bad_row import DROP_SUCH_ROWS, BadRow, Location, tokenizer_error
from spin_composer.data.control_tokens import (
    MARKS,
    ControlTokenFinder,
    TextEncoder,
    control_tokens,
    iter_texts,
    map_texts,
)
from spin_composer.data.counts import DataReport
from spin_composer.data.full_text import (
    END_BEFORE_TOKEN,
    BoundaryError,
    FullTextTokenizer,
    GenerationPromptError,
)
from spin_composer.data.rendering import Renderer, Rendering
from spin_composer.data.rows import Row
from spin_composer.data.stop import ONE_STOP_TOKEN, StopRule
from spin_composer.data.text_tokenizer import text_tokenizer
from spin_composer.data.tokenizer_errors import TemplateFailure, TokenizerFailure
from spin_composer.data.turn_tokenizer import check_control_tokens, split_answer, without_end
from spin_composer.errors import format_value
from spin_composer.settings.dataset import DatasetConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

_ASKED, _SAID = "spin asks", "spin says"


class RowTokenizer:
    """Returns the ids of a row's prompt, and those that follow it in the whole row.

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
        self._tokenizer = tokenizer
        self._full_text = FullTextTokenizer(tokenizer, with_special=kind == "plain")
        self._renderer = (
            Renderer(tokenizer, config.date_string, config.generation_prompt)
            if kind == "chat" else None
        )  # fmt: skip
        control = control_tokens(tokenizer, self._between_turns())
        self._spelled = ControlTokenFinder(tokenizer, control)
        self._stop_text = text_tokenizer(tokenizer).convert_ids_to_tokens(rule.token_id)
        self._suffix = rule.suffix
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
    ) -> tuple[array[int], array[int], str]:
        """Return the ids of prompt and response, and the missing part of the generation prompt.

        Raises:
            BadRow: The template rejects the row, a token spans the boundary, or a text contains a
                control token.
        """
        encode = None
        if self._encoder is None:
            refuse = self._config.special_tokens_in_text == "error"
            check_control_tokens(row, self._spelled, self._stop_text, where, report, refuse)
        elif any(map(self._spelled, iter_texts(split_answer(row)))):
            encode = self._encoder
            _check_marks(row, where)
            if self._kind == "plain":  # at its end it is not part of the text
                row = {**row, "response": without_end(row["response"], self._stop_text)}
        try:
            ids, response, lacks, rendering = self._ids(row, where, encode)
        except TokenizerFailure as failure:
            raise tokenizer_error(where, f"the row {format_value(row)}", failure) from failure
        if rendering is not None:
            self._count_cut_answer(row, rendering, where, report)
            self._note_other_roles(row, rendering, where, report)
            for left_out in rendering.left_out:
                report.unwritten_texts += 1
                if report.unwritten_texts == 1:
                    report.note(
                        f"{where}: {left_out} is not written by the chat template: the model does "
                        "not see it."
                    )
        return ids, response, lacks

    def _ids(
        self, row: Row, where: Location, encoder: TextEncoder | None
    ) -> tuple[array[int], array[int], str, Rendering | None]:
        """Return the prompt's ids, the response's, what the prompt lacks, and the texts."""
        if self._renderer is None:
            whole = row["prompt"] + row["response"]
            return *self._full_text(row["prompt"], whole, where, encoder), "", None
        hide, restore = (encoder.hide, encoder.restore) if encoder else (str, str)
        shown = row if encoder is None else map_texts(row, hide)
        made = self._renderer(shown, where)
        if self._suffix:
            self._check_call(shown, made.whole, where)
        whole = restore(made.whole + self._suffix)
        rendering = replace(made, prompt=restore(made.prompt), whole=whole)
        try:
            ids = self._full_text(rendering.prompt, rendering.whole, where, encoder)
        except BoundaryError as fault:
            start = restore(self._renderer.without_generation_prompt(made))
            cut = self._full_text.cut_within(start, rendering.prompt, rendering.whole, encoder)
            if not start or cut is None:
                raise
            if self._config.generation_prompt != "response":
                raise GenerationPromptError(
                    where, fault.reason, fault.problem, f"Set {END_BEFORE_TOKEN}. {fault.remedy}"
                ) from None
            lacks = str(self._tokenizer.decode(cut[2].tolist())) + made.lacks
            return cut[0], cut[1], lacks, rendering
        return *ids, made.lacks, rendering

    def _check_call(self, row: Row, whole: str, where: Location) -> None:
        """Refuse a call of a tool that does not end as answers do: its result comes next."""
        assert self._renderer is not None
        messages = row["messages"]
        if not messages[-1].get("tool_calls"):
            return
        result = {"role": "tool", "content": _SAID}
        try:
            after = self._renderer.text([*messages, result], row).removeprefix(whole)
        except TemplateFailure:  # it knows no results of tools: only a question can follow
            return
        if not after.startswith(self._suffix):
            raise BadRow(
                where, "no stop token",
                f"after the call of a tool the chat template writes "
                f"{format_value(after.partition(_SAID)[0])}, not {format_value(self._suffix)}, "
                f"at which answers end", ONE_STOP_TOKEN,
            )  # fmt: skip

    def _count_cut_answer(
        self, row: Row, rendering: Rendering, where: Location, report: DataReport
    ) -> None:
        """Count an answer that the template does not write completely, ignoring white space."""
        content = row["messages"][-1]["content"]
        prompt, whole = rendering.prompt, rendering.whole
        if not content or content.strip() in whole[len(prompt) :]:
            return
        assert self._renderer is not None
        # An answer may begin with what the generation prompt has already: <think>.
        before = self._renderer.without_generation_prompt(rendering)
        start = len(before) if before else len(prompt)
        if "".join(content.split()) in "".join(whole[start:].split()):
            return
        report.truncated_answers += 1
        if report.truncated_answers == 1:
            report.note(
                f"{where}: the chat template does not write the whole answer "
                f"{format_value(content)}: what it leaves out is not trained on."
            )

    def _note_other_roles(
        self, row: Row, rendering: Rendering, where: Location, report: DataReport
    ) -> None:
        for i, turn in enumerate(row["messages"]):
            word = getattr(turn["role"], "spelled", None)
            if (
                word is not None
                and word not in self._said
                and word != rendering.messages[i]["role"]
            ):
                self._said.add(word)
                report.note(
                    f"{where}: messages[{i}].role={word!r} is rendered as {str(turn['role'])!r}: "
                    "the chat template has no word for it."
                )

    def _between_turns(self) -> str:
        """Return the text that the template writes between an answer and the next question."""
        if self._renderer is None:
            return ""
        turns = [
            {"role": "user", "content": _ASKED}, {"role": "assistant", "content": _SAID},
            {"role": "user", "content": _ASKED}, {"role": "assistant", "content": _SAID},
        ]  # fmt: skip
        try:
            text = self._renderer.text(turns)
        except TemplateFailure:  # it cannot render such turns: the rows will fail
            return ""
        before, _, after = text.partition(_SAID)
        between = after.partition(_ASKED)[0]
        return between + before.partition(_ASKED)[2]

    def _warn_of_missing_date(self) -> None:
        """Warn if the template prints date_string and it is not set."""
        assert self._renderer is not None
        if self._config.date_string is not None:
            return
        turns = {"messages": [{"role": "user", "content": _ASKED}]}
        texts = []
        for date in ({}, {"date_string": ""}, {"date_string": "26 Jul 2024"}):
            try:
                given = {**turns, "chat_template_kwargs": date}
                texts.append(self._renderer.text(turns["messages"], given))
            except TemplateFailure:  # such a template fails at the first row
                return
        if texts[0] == texts[1] != texts[2]:
            log.warning(
                "The chat template prints date_string, which is not set, so that it stays empty: "
                "set train_loader.dataset.date_string, such as 26 Jul 2024."
            )


def _check_marks(row: Row, where: Location) -> None:
    """Refuse a text that holds what special_tokens_in_text: text marks control tokens by."""
    for text in iter_texts(split_answer(row)):
        if found := MARKS.search(text):
            raise BadRow(
                where, "private-use character",
                f"the text {format_value(text)} spells out a control token, and holds "
                f"U+{ord(found[0]):X}, a private-use character that special_tokens_in_text: text "
                "needs for itself",
                f"Remove the character, {DROP_SUCH_ROWS}",
            )  # fmt: skip
