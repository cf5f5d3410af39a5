"""Conversion of raw rows to examples: format, tokenize, append the stop token, apply limits.

``tokenize: rendering`` encodes the whole row at once, like TRL, axolotl and most others; ``turns``
encodes each turn separately, like llm-foundry. Both then end with one stop token, are limited, and
are counted.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, islice
from typing import TYPE_CHECKING

from spin_composer.data.bad_row import BadRow, Location
from spin_composer.data.counts import DataReport
from spin_composer.data.example_builder import ExampleBuilder
from spin_composer.data.examples import Example, ExampleDataset
from spin_composer.data.files import RawRow
from spin_composer.data.formats import to_foundry_row
from spin_composer.data.full_text import BoundaryError, boundary_failures_message
from spin_composer.data.hints import hints
from spin_composer.data.origin import KEPT_ROWS, Origin
from spin_composer.data.parallel import Parallel, TokenizedRows, num_processes
from spin_composer.data.preprocess import make_preprocessor, preprocess_row
from spin_composer.data.row_progress import RowProgress
from spin_composer.errors import InputError
from spin_composer.settings.dataset import LEGACY_TOKENIZATION, DatasetConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

_ALONE_ROWS = 512
"""Rows that one process tokenizes before others begin: starting them would take longer."""
_ROWS_TRIED = 64
_TOO_LONG = "Token indices sequence length is longer than the specified maximum sequence length"


def build_examples(
    rows: Iterable[RawRow],
    tokenizer: PreTrainedTokenizerBase,
    config: DatasetConfig,
    legacy: bool = False,
    next_turn_stops: bool = True,
    processes: int | None = None,
) -> ExampleDataset:
    """Format, tokenize and limit every row, in several processes.

    Args:
        rows: Locations and raw rows, from ``read_rows``.
        tokenizer: The model's tokenizer.
        config: The checked ``dataset:`` block.
        legacy: Read and tokenize as before ``tokenize`` was a setting, for stores played then.
        next_turn_stops: The mark that begins the next turn may be the stop token; false for stores
            that were played before it was.
        processes: How many; ``config.num_proc`` if not given.

    Returns:
        The examples in the order of the rows, the same for any number of processes.

    Raises:
        InputError: A bad row (with ``on_bad_row: error``), rows of both kinds, no row left.
        EnvironmentFailure: A process that tokenized was killed.
    """
    if legacy:
        config = replace(config, tokenize=LEGACY_TOKENIZATION)
    work = _Tokenization(tokenizer, config, legacy, next_turn_stops)
    with _without_length_warnings(), _kept_warnings() as warnings, RowProgress() as progress:
        work.add_all(iter(rows), processes or num_processes(config.num_proc), progress)
    return work.result(warnings)


class _Tokenization:
    """The rows of one data set on their way to examples."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        config: DatasetConfig,
        legacy: bool,
        next_turn_stops: bool,
    ) -> None:
        self._tokenizer, self._config, self._legacy = tokenizer, config, legacy
        self._preprocess = make_preprocessor(config)
        self._builder = ExampleBuilder(tokenizer, config, legacy, next_turn_stops)
        self._origin = Origin(tokenizer, config, next_turn_stops=next_turn_stops)
        self._examples: list[Example] = []
        self._boundaries: list[BoundaryError] = []
        self._report = DataReport()

    def add_all(self, rows: Iterator[RawRow], processes: int, progress: RowProgress) -> None:
        """Tokenize all rows; add their examples and counts."""
        while processes == 1 or self._report.rows < _ALONE_ROWS or not self._has_origin():
            some = list(islice(rows, _ALONE_ROWS))
            if not some:
                return
            self._add(iter(some), rows, progress)
        with Parallel(self._build, self._config.on_bad_row == "skip", processes) as parallel:
            for given, made in parallel.tokenize(rows, self._report):
                if made is None:  # something to report or to raise: as if there were one process
                    self._add(iter(given), parallel.rest(), progress)
                else:
                    self._merge(made)
                    progress.show(self._report.rows)

    def _has_origin(self) -> bool:
        return len(self._origin.rows) >= KEPT_ROWS

    def _build(self, where: Location, row: object, report: DataReport) -> Example:
        if isinstance(row, BadRow):
            raise row
        if self._preprocess is not None:
            row = preprocess_row(self._preprocess, row, where)
        kind, formatted = to_foundry_row(row, where, report, legacy=self._legacy)
        if not self._has_origin():
            self._origin.rows.append((where, kind, formatted))
        return self._builder(kind, formatted, where, report)

    def _add(self, rows: Iterator[RawRow], rest: Iterator[RawRow], progress: RowProgress) -> None:
        """Tokenize rows in this process; ``rest`` are those that follow them."""
        for where, row in rows:
            self._report.rows += 1
            progress.show(self._report.rows)
            try:
                self._examples.append(self._build(where, row, self._report))
            except BadRow as fault:
                if isinstance(fault, BoundaryError):
                    self._boundaries.append(fault)
                    if self._config.on_bad_row == "error":
                        self._raise_if_most_fail(fault, chain(rows, rest))
                if self._config.on_bad_row == "error":
                    raise
                self._report.drop(fault)

    def _merge(self, made: TokenizedRows) -> None:
        self._examples += made.examples()
        self._boundaries += [fault for fault in made.faults if isinstance(fault, BoundaryError)]
        self._report.add(made.report)
        for fault in made.faults:
            self._report.drop(fault)

    def _raise_if_most_fail(self, fault: BoundaryError, rows: Iterator[RawRow]) -> None:
        """Raise an error of the whole data set if most of some further rows fail likewise."""
        failed, tried, aside = 1, len(self._examples) + 1, DataReport()
        with contextlib.suppress(InputError):
            for where, row in islice(rows, _ROWS_TRIED):
                try:
                    self._build(where, row, aside)
                except BoundaryError:
                    failed += 1
                except BadRow:
                    continue
                tried += 1
        if 2 * failed > tried:
            raise InputError(self._boundary_message(fault, failed, tried)) from fault

    def _boundary_message(self, fault: BoundaryError, failed: int, tried: int) -> str:
        return boundary_failures_message(self._tokenizer, self._builder.kind, fault, failed, tried)

    def result(self, warnings: list[str]) -> ExampleDataset:
        """Return the examples, with their notes and what was logged so far.

        Raises:
            InputError: There are none.
        """
        report, config, builder = self._report, self._config, self._builder
        good, failed = len(self._examples), len(self._boundaries)
        report.kept = good
        if failed > good:
            report.note(self._boundary_message(self._boundaries[0], failed, failed + good))
        if not good:
            notes = report.notes[-1:] if failed else []
            seen = next(iter([*notes, *report.faults]), "")
            raise InputError(
                f"train_loader.dataset: none of the {report.rows} rows of {config.source} can be "
                f"trained on ({report.summary()}). Check the data with spin-composer data check."
                + (f" First: {seen}" if seen else "")
            )
        if not self._legacy:
            kept = [row for _, _, row in self._origin.rows]
            for hint in hints(self._tokenizer, config, builder.kind, builder.rule, kept):
                report.note(hint)
        log_report(report)
        self._origin.rule, self._origin.warnings = builder.rule, warnings
        return ExampleDataset.from_examples(
            self._examples, builder.rule.token_id, builder.kind, report, self._origin
        )


def log_report(report: DataReport) -> None:
    """Log the counts and notes of a data set's rows."""
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


@contextmanager
def _kept_warnings() -> Iterator[list[str]]:
    """Collect what is logged of the data, to log it again where the examples come from a cache."""
    logger = logging.getLogger("spin_composer.data")
    lines: list[str] = []

    def keep(record: logging.LogRecord) -> None:
        lines.append(record.getMessage())

    handler = logging.Handler(logging.WARNING)
    handler.emit = keep
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)


def _is_no_length_warning(record: logging.LogRecord) -> bool:
    return _TOO_LONG not in record.getMessage()
