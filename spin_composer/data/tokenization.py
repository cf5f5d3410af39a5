"""Conversion of raw rows to examples: format, tokenize, append the stop token, apply limits.

``tokenize: rendering`` encodes the whole row at once, like TRL, axolotl and most others; ``turns``
encodes each turn separately, like llm-foundry. Both then end with one stop token, are limited, and
are counted.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from spin_composer.data.bad_row import BadRow, Location
from spin_composer.data.counts import DataReport
from spin_composer.data.examples import Example, ExampleDataset
from spin_composer.data.files import RawRow
from spin_composer.data.formats import Kind, to_foundry_row
from spin_composer.data.full_text import BoundaryError, boundary_failures_message
from spin_composer.data.hints import hints
from spin_composer.data.origin import KEPT_ROWS, Origin
from spin_composer.data.preprocess import make_preprocessor, preprocess_row
from spin_composer.data.row_tokenizer import RowTokenizer
from spin_composer.data.rows import Row
from spin_composer.data.stop import ONE_STOP_TOKEN, StopRule, stop_rule
from spin_composer.data.text_tokenizer import text_tokenizer
from spin_composer.data.turn_tokenizer import TurnTokenizer
from spin_composer.errors import InputError, format_value
from spin_composer.settings.dataset import LEGACY_TOKENIZATION, DatasetConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

_ROWS_PER_LOG = 50_000
_ROWS_TRIED = 64
_TOO_LONG = "Token indices sequence length is longer than the specified maximum sequence length"


def build_examples(
    rows: Iterable[RawRow],
    tokenizer: PreTrainedTokenizerBase,
    config: DatasetConfig,
    legacy: bool = False,
    next_turn_stops: bool = True,
) -> ExampleDataset:
    """Format, tokenize and limit every row.

    Args:
        rows: Locations and raw rows, from ``read_rows``.
        tokenizer: The model's tokenizer.
        config: The checked ``dataset:`` block.
        legacy: Read and tokenize as before ``tokenize`` was a setting, for stores played then.
        next_turn_stops: The mark that begins the next turn may be the stop token; false for stores
            that were played before it was.

    Returns:
        The examples in the order of the rows.

    Raises:
        InputError: A bad row (with ``on_bad_row: error``), rows of both kinds, no row left.
    """
    if legacy:
        config = replace(config, tokenize=LEGACY_TOKENIZATION)
    preprocess = make_preprocessor(config)
    builder = ExampleBuilder(tokenizer, config, legacy, next_turn_stops)
    examples: list[Example] = []
    report = DataReport()
    origin = Origin(tokenizer, config, next_turn_stops=next_turn_stops)
    start = time.monotonic()

    def build(where: Location, row: object, report: DataReport) -> Example:
        if isinstance(row, BadRow):
            raise row
        if preprocess is not None:
            row = preprocess_row(preprocess, row, where)
        kind, formatted = to_foundry_row(row, where, report, legacy=legacy)
        if len(origin.rows) < KEPT_ROWS:
            origin.rows.append((where, kind, formatted))
        return builder(kind, formatted, where, report)

    boundaries: list[BoundaryError] = []
    rows = iter(rows)
    with _without_length_warnings():
        for where, row in rows:
            report.rows += 1
            if report.rows % _ROWS_PER_LOG == 0:
                _log_progress(report.rows, time.monotonic() - start)
            try:
                examples.append(build(where, row, report))
            except BadRow as fault:
                if isinstance(fault, BoundaryError):
                    boundaries.append(fault)
                    if config.on_bad_row == "error":
                        failed, tried = _count_boundary_errors(rows, build, len(examples))
                        if 2 * failed > tried:
                            raise InputError(
                                boundary_failures_message(
                                    tokenizer, builder.kind, fault, failed, tried
                                )
                            ) from fault
                if config.on_bad_row == "error":
                    raise
                report.drop(fault)
    report.kept = len(examples)
    if boundaries and len(boundaries) > len(examples):
        report.note(boundary_failures_message(
            tokenizer, builder.kind, boundaries[0], len(boundaries), len(boundaries) + len(examples)
        ))  # fmt: skip
    if not examples:
        seen = (
            next(iter([*report.notes[-1:], *report.faults]), "")
            if boundaries
            else (report.faults[0] if report.faults else "")
        )
        raise InputError(
            f"train_loader.dataset: none of the {report.rows} rows of {config.source} can be "
            f"trained on ({report.summary()}). Check the data with spin-composer data check."
            + (f" First: {seen}" if seen else "")
        )
    if not legacy:
        kept = [row for _, _, row in origin.rows]
        for hint in hints(tokenizer, config, builder.kind, builder.rule, kept):
            report.note(hint)
    _log_counts(report)
    origin.rule = builder.rule
    return ExampleDataset.from_examples(
        examples, builder.rule.token_id, builder.kind, report, origin
    )


def _count_boundary_errors(
    rows: Iterator[RawRow], build: Callable[[Location, object, DataReport], Example], good: int
) -> tuple[int, int]:
    """Try some rows after the first boundary error; return failures and attempts, all included."""
    failed, tried, aside = 1, good + 1, DataReport()
    with contextlib.suppress(InputError):
        for where, row in islice(rows, _ROWS_TRIED):
            try:
                build(where, row, aside)
            except BoundaryError:
                failed += 1
            except BadRow:
                continue
            tried += 1
    return failed, tried


def _log_progress(rows: int, seconds: float) -> None:
    from composer.utils import dist

    if dist.get_global_rank() == 0:
        log.info("SPIN data: %d rows tokenized, %.0f rows/s.", rows, rows / max(seconds, 1e-9))


def _log_counts(report: DataReport) -> None:
    lossy = (
        report.dropped or report.truncated_prompts or report.truncated_responses
        or report.spelled_prompts or report.truncated_answers or len(report.response_starts) > 1
    )  # fmt: skip
    log.log(logging.WARNING if lossy else logging.INFO, "SPIN data: %s.", report.summary())
    for note in report.notes:
        log.warning("SPIN data: %s", note)


@contextmanager
def _without_length_warnings() -> Iterator[None]:
    """Suppress the tokenizer's warning about its own limit: the config's limits apply here."""
    logger = logging.getLogger("transformers.tokenization_utils_base")
    logger.addFilter(_is_no_length_warning)
    try:
        yield
    finally:
        logger.removeFilter(_is_no_length_warning)


def _is_no_length_warning(record: logging.LogRecord) -> bool:
    return _TOO_LONG not in record.getMessage()


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

    def _end_with_stop_token(self, response: list[int], where: Location) -> list[int]:
        """Cut what follows the stop token, or append it."""
        stop, expected = self.rule.token_id, self.rule.per_response
        count = response.count(stop)
        if expected == 0:
            # The text, before white space, or a tokenizer may have put it there already.
            at = response.index(stop) if count else len(response)
            rest = response[at + 1 :]
            body = response[:at]
            text = text_tokenizer(self._tokenizer).decode(rest) if rest else ""
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
                f"the response {format_value(tokenizer.decode(response))} {fault} ({name!r})",
                "Remove it from the text: generation would end there." if early else ONE_STOP_TOKEN,
            )  # fmt: skip
        if not body:
            raise BadRow(where, "empty response", "the response has no tokens", "Give it a text.")
        return [*body, stop]

    def _truncate_prompt(self, prompt: list[int], limit: int, where: Location) -> list[int]:
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
