"""From raw rows to examples: format, tokenise, end with the stop token, keep to the limits.

Tokenising is llm-foundry's own (``tokenize_formatted_example``), so SPIN conditions on the very
ids that SFT trained on. Added to it: one stop token at the end, the limits, and the counts.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from spin_composer.data.config import DatasetConfig
from spin_composer.data.counts import DataReport
from spin_composer.data.examples import Example, ExampleDataset
from spin_composer.data.files import RawRow
from spin_composer.data.formats import BadRow, Kind, Where, to_foundry_row
from spin_composer.data.preprocess import make_preprocessor, preprocess_row
from spin_composer.data.stop import StopRule, stop_rule
from spin_composer.errors import InputError, shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

_ROWS_PER_LOG = 50_000


def build_examples(
    rows: Iterable[RawRow], tokenizer: PreTrainedTokenizerBase, config: DatasetConfig
) -> ExampleDataset:
    """Format, tokenise and limit every row.

    Args:
        rows: Places and raw rows, from ``read_rows``.
        tokenizer: The model's tokenizer.
        config: The checked ``dataset:`` block.

    Returns:
        The examples in the order of the rows.

    Raises:
        InputError: A bad row (with ``on_bad_row: error``), rows of both kinds, no row left.
    """
    preprocess = make_preprocessor(config)
    tokenise = _Tokeniser(tokenizer, config)
    examples: list[Example] = []
    report = DataReport()
    start = time.monotonic()
    with _without_length_warnings():
        for where, row in rows:
            report.rows += 1
            if report.rows % _ROWS_PER_LOG == 0:
                _log_progress(report.rows, time.monotonic() - start)
            try:
                if isinstance(row, BadRow):
                    raise row
                if preprocess is not None:
                    row = preprocess_row(preprocess, row, where)
                kind, formatted = to_foundry_row(row, where, report)
                examples.append(tokenise(kind, formatted, where, report))
            except BadRow as fault:
                if config.on_bad_row == "error":
                    raise
                report.drop(fault)
    report.kept = len(examples)
    if not examples:
        seen = f" First: {report.faults[0]}" if report.faults else ""
        raise InputError(
            f"train_loader.dataset: none of the {report.rows} rows of {config.source} can be "
            f"trained on ({report.summary()}). Check the data with spin-composer data check.{seen}"
        )
    _log_counts(report)
    return ExampleDataset.from_examples(examples, tokenise.rule.token_id, tokenise.kind, report)


def _log_progress(rows: int, seconds: float) -> None:
    from composer.utils import dist

    if dist.get_global_rank() == 0:
        log.info("SPIN data: %d rows tokenised, %.0f rows/s.", rows, rows / max(seconds, 1e-9))


def _log_counts(report: DataReport) -> None:
    lossy = report.dropped or report.truncated_prompts or report.truncated_responses
    log.log(logging.WARNING if lossy else logging.INFO, "SPIN data: %s.", report.summary())


@contextmanager
def _without_length_warnings() -> Iterator[None]:
    """Silence the tokenizer's warning of its own limit: the limits here are the config's."""
    from llmfoundry.utils.logging_utils import SpecificWarningFilter

    logger = logging.getLogger("transformers.tokenization_utils_base")
    silence = SpecificWarningFilter(
        "Token indices sequence length is longer than the specified maximum sequence length"
    )
    logger.addFilter(silence)
    try:
        yield
    finally:
        logger.removeFilter(silence)


class _Tokeniser:
    """Makes an Example of a formatted row; the first row fixes the data set's kind."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: DatasetConfig) -> None:
        from llmfoundry.data.finetuning.tasks import tokenize_formatted_example

        self._tokenize = tokenize_formatted_example
        self._tokenizer: Any = tokenizer
        self._dated: Any = tokenizer
        self._config = config
        self.kind: Kind = "plain"
        self.rule = StopRule(-1, 0)

    def __call__(
        self, kind: Kind, row: dict[str, Any], where: Where, report: DataReport
    ) -> Example:
        if self.rule.token_id < 0:
            self._start(kind)
        elif kind != self.kind:
            raise InputError(
                f"{where}: a {kind} row in a data set that began with {self.kind} rows. "
                "Split the data into one set per kind, or convert one kind to the other."
            )
        prompt, response = self._ids(row, where)
        response = self._ended(response, where)
        limit = self._config.prompt_limit
        if len(prompt) > limit:
            prompt = self._shortened(prompt, limit, where)
            report.truncated_prompts += 1
        room = self._config.max_seq_len - len(prompt)
        truncated = len(response) > room
        report.truncated_responses += truncated
        return Example(
            np.array(prompt, dtype=np.int32), np.array(response[:room], dtype=np.int32), truncated
        )

    def _start(self, kind: Kind) -> None:
        self.kind = kind
        self.rule = stop_rule(self._tokenizer, kind)
        if kind == "chat" and self._tokenizer.chat_template is None:
            log.warning(
                "The tokenizer %s has no chat template: llm-foundry's default (ChatML) is used.",
                shown(self._tokenizer.name_or_path),
            )
        if kind == "plain" and self._tokenizer("a")["input_ids"][-1] == self.rule.token_id:
            log.warning(
                "The tokenizer %s ends every text with EOS, the prompts too: SFT by llm-foundry "
                "trains on that, and so does SPIN. Set tokenizer.kwargs.add_eos_token: false for "
                "both if it is not meant.", shown(self._tokenizer.name_or_path),
            )  # fmt: skip
        if kind == "chat" and "date_string" in str(self._tokenizer.chat_template):
            if self._config.date_string is None:
                log.warning(
                    "The chat template prints today's date, so a run resumed on another day would "
                    "not fit its store: set train_loader.dataset.date_string, such as 26 Jul 2024."
                )
            else:
                self._dated = _DatedTokenizer(self._tokenizer, self._config.date_string)

    def _ids(self, row: dict[str, Any], where: Where) -> tuple[list[int], list[int]]:
        """Return all ids before the last response, and the last response's, by llm-foundry."""
        try:
            turns: list[dict[str, list[int]]] = self._tokenize(row, self._dated)["turns"]
        except Exception as error:
            _refuse_what_is_no_text(row, where)
            if self.kind == "plain":
                raise BadRow(
                    where, "tokenizer fails",
                    f"the tokenizer cannot encode prompt={shown(row['prompt'])} and response="
                    f"{shown(row['response'])} ({type(error).__name__}: {shown(str(error), 160)})",
                    "Correct the text, or use the model's own tokenizer.",
                ) from error  # fmt: skip
            raise BadRow(
                where, "chat template fails",
                f"the chat template cannot render the row's messages="
                f"{shown(row.get('messages'))} ({type(error).__name__}: {shown(str(error), 160)})",
                "Adapt the roles to the tokenizer's chat template, or change the template.",
            ) from error  # fmt: skip
        prompt: list[int] = []
        for turn in turns[:-1]:
            prompt += turn["input_ids"] + turn["labels"]
        prompt += turns[-1]["input_ids"]
        bos = self._tokenizer.bos_token_id
        # A text that spells out BOS where the tokenizer or the template puts one as well.
        if bos is not None and prompt[:2] == [bos, bos]:
            prompt = prompt[1:]
        if not prompt:
            raise BadRow(where, "empty prompt", "the prompt has no tokens", "Give it a text.")
        return prompt, list(turns[-1]["labels"])

    def _ended(self, response: list[int], where: Where) -> list[int]:
        """Cut what the template puts after the stop token, or append the stop token."""
        stop, expected = self.rule.token_id, self.rule.per_response
        count = response.count(stop)
        if expected == 0:
            # A tokenizer may have put EOS there itself.
            body = response[:-1] if response and response[-1] == stop else response
            early = stop in body
        else:
            body = response[: response.index(stop)] if stop in response else []
            early = count > expected
        if early or (expected and not count):
            name = self._tokenizer.convert_ids_to_tokens(stop)
            fault = "holds the stop token within" if early else "does not end with the stop token"
            raise BadRow(
                where, "stop token within the response" if early else "no stop token",
                f"the response {shown(self._tokenizer.decode(response))} {fault} ({name!r})",
                "Remove it from the text: generation would end there." if early
                else "Mend the chat template.",
            )  # fmt: skip
        if not body:
            raise BadRow(where, "empty response", "the response has no tokens", "Give it a text.")
        return [*body, stop]

    def _shortened(self, prompt: list[int], limit: int, where: Where) -> list[int]:
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


def _refuse_what_is_no_text(row: dict[str, Any], where: Where) -> None:
    """Raise for half of a surrogate pair, which JSON can spell and no tokenizer encodes."""
    text = json.dumps(row, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        near = text[max(0, error.start - 20) : error.end + 20]
        raise BadRow(
            where, "lone surrogate", f"{shown(near)} holds half of a surrogate pair, which is no "
            "character", "Write the whole pair, or remove it.",
        ) from error  # fmt: skip


class _DatedTokenizer:
    """The tokenizer with a fixed date for its chat template, else unchanged."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, date: str) -> None:
        self._inner, self._date = tokenizer, date

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._inner(*args, **kwargs)

    def apply_chat_template(self, *args: Any, **kwargs: Any) -> Any:
        """Render with the fixed date in place of today's."""
        return self._inner.apply_chat_template(*args, **{**kwargs, "date_string": self._date})
