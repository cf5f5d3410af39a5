"""An example of a formatted row: tokenize it, append the stop token, apply the limits."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from spin_composer.data.bad_row import BadRow, Location
from spin_composer.data.counts import DataReport
from spin_composer.data.examples import Example
from spin_composer.data.formats import Kind
from spin_composer.data.row_tokenizer import RowTokenizer
from spin_composer.data.rows import Row
from spin_composer.data.stop import ONE_STOP_TOKEN, StopRule, stop_rule
from spin_composer.data.text_tokenizer import text_tokenizer
from spin_composer.data.turn_tokenizer import TurnTokenizer
from spin_composer.errors import InputError, format_value
from spin_composer.settings.dataset import DatasetConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


class ExampleBuilder:
    """Builds an Example from a formatted row; the first row determines the data set's kind."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        config: DatasetConfig,
        legacy: bool = False,
        next_turn_stops: bool = True,
    ) -> None:
        self._tokenizer = tokenizer
        self._next_turn_stops = next_turn_stops and config.tokenize != "turns"
        self._config, self._old = config, legacy
        self._ids: RowTokenizer | TurnTokenizer | None = None
        self.kind: Kind = "plain"
        self.rule = StopRule(-1, 0)

    def __call__(self, kind: Kind, row: Row, where: Location, report: DataReport) -> Example:
        """Return the row's example.

        Raises:
            BadRow: It cannot be trained on.
        """
        if self._ids is None:
            self._start(kind)
        elif kind != self.kind:
            raise InputError(
                f"{where}: a {kind} row in a data set that began with {self.kind} rows. "
                "Split the data into one set per kind, or convert one kind to the other."
            )
        assert self._ids is not None
        prompt, response, lacks = self._ids(row, where, report)
        if not prompt:
            raise BadRow(where, "empty prompt", "the prompt has no tokens", "Give it a text.")
        response = self._end_with_stop_token(response, where)
        limit = self._config.prompt_limit
        if len(prompt) > limit:
            prompt = self._truncate_prompt(prompt, limit, where)
            report.truncated_prompts += 1
        room = self._config.max_seq_len - len(prompt)
        truncated = len(response) > room
        report.truncated_responses += truncated
        if kind == "chat" and self._config.generation_prompt == "response":
            report.response_starts[lacks] = report.response_starts.get(lacks, 0) + 1
        return Example(
            np.array(prompt, dtype=np.int32), np.array(response[:room], dtype=np.int32), truncated
        )

    def _start(self, kind: Kind) -> None:
        self.kind = kind
        self.rule = stop_rule(
            self._tokenizer, kind, self._config.date_string, self._old, self._config.stop_token,
            self._next_turn_stops,
        )  # fmt: skip
        if kind == "chat" and self._tokenizer.chat_template is None:
            log.warning(
                "The tokenizer %s has no chat template: llm-foundry's default (ChatML) is used.",
                format_value(self._tokenizer.name_or_path),
            )
        if self._config.tokenize == "turns":
            self._ids = TurnTokenizer(self._tokenizer, self._config, kind, self.rule, self._old)
        else:
            self._ids = RowTokenizer(self._tokenizer, self._config, kind, self.rule)

    def _end_with_stop_token(self, response: Sequence[int], where: Location) -> list[int]:
        """Cut what follows the stop token, or append it."""
        stop, expected = self.rule.token_id, self.rule.per_response
        count = response.count(stop)
        if expected == 0:
            # The text, before white space, or a tokenizer may have put it there already.
            at = response.index(stop) if count else len(response)
            rest = response[at + 1 :]
            body = response[:at]
            text = text_tokenizer(self._tokenizer).decode(list(rest)) if rest else ""
            early = bool(rest) and (self._old or bool(text.strip()))
        else:
            body = response[: response.index(stop)] if stop in response else []
            early = count > expected
        if early or (expected and not count):
            tokenizer = text_tokenizer(self._tokenizer)
            name = tokenizer.convert_ids_to_tokens(stop)
            fault = "holds the stop token within" if early else "does not end with the stop token"
            raise BadRow(
                where, "stop token within the response" if early else "no stop token",
                f"the response {format_value(tokenizer.decode(list(response)))} {fault} ({name!r})",
                "Remove it from the text: generation would end there." if early else ONE_STOP_TOKEN,
            )  # fmt: skip
        if not body:
            raise BadRow(where, "empty response", "the response has no tokens", "Give it a text.")
        return [*body, stop]

    def _truncate_prompt(
        self, prompt: Sequence[int], limit: int, where: Location
    ) -> Sequence[int]:
        if self._config.truncate_prompt == "none":
            raise BadRow(
                where, "prompt too long",
                f"the prompt has {len(prompt)} tokens and max_prompt_len is {limit}",
                "Raise max_seq_len or max_prompt_len, set truncate_prompt: left, or drop such rows "
                "with on_bad_row: skip.",
            )  # fmt: skip
        if limit > 1 and prompt[0] == self._tokenizer.bos_token_id:
            return [prompt[0], *prompt[len(prompt) - limit + 1 :]]
        return prompt[-limit:]
