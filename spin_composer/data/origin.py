"""The origin of examples, to tokenize the same rows in the other way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from spin_composer.data.bad_row import BadRow, Location
from spin_composer.data.counts import DataReport
from spin_composer.data.rows import Row
from spin_composer.data.stop import StopRule, stop_rule
from spin_composer.errors import InputError
from spin_composer.settings.dataset import LEGACY_TOKENIZATION

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from spin_composer.data.example_builder import ExampleBuilder
    from spin_composer.data.examples import Example, ExampleDataset
    from spin_composer.data.formats import Kind
    from spin_composer.settings.dataset import DatasetConfig, Tokenization

KEPT_ROWS = 64
"""Formatted rows kept in memory, to compare tokenizations without reading the source again."""


@dataclass(frozen=True)
class RenderingVsTurns:
    """A row tokenized in both ways; a ``BadRow`` if one of them fails."""

    where: Location
    rendering: Example | BadRow
    turns: Example | BadRow

    @property
    def differ(self) -> bool:
        """Whether both ways succeed, with different ids or a different boundary."""
        if isinstance(self.rendering, BadRow) or isinstance(self.turns, BadRow):
            return False
        return not (
            np.array_equal(self.rendering.prompt, self.turns.prompt)
            and np.array_equal(self.rendering.response, self.turns.response)
        )


@dataclass
class Origin:
    """The tokenizer and settings of examples, and their first rows."""

    tokenizer: PreTrainedTokenizerBase
    config: DatasetConfig
    rows: list[tuple[Location, Kind, Row]] = field(default_factory=list)
    next_turn_stops: bool = True
    """The mark that begins the next turn may be the stop token."""
    rule: StopRule = field(default_factory=lambda: StopRule(-1, 0))
    """How responses end."""
    warnings: list[str] = field(default_factory=list)
    """What was logged while they were made."""

    def retokenized(self, tokenize: Tokenization) -> ExampleDataset:
        """Read the source again and tokenize it that way; a collective call."""
        from spin_composer.data.load import load_examples

        config, legacy = replace(self.config, tokenize=tokenize), tokenize == LEGACY_TOKENIZATION
        return load_examples(
            config, self.tokenizer, legacy=legacy, next_turn_stops=self.next_turn_stops
        )

    def with_earlier_stop(self) -> ExampleDataset | None:
        """Read the source again for the stop token that earlier versions took; a collective.

        Returns:
            None where it is the same, or a setting.
        """
        from spin_composer.data.load import load_examples

        if not self.rows or self.config.stop_token is not None or self.config.tokenize == "turns":
            return None
        kind, date = self.rows[0][1], self.config.date_string
        if stop_rule(self.tokenizer, kind, date, next_turn=False) == self.rule:
            return None
        return load_examples(self.config, self.tokenizer, next_turn_stops=False)

    def alternative_stop_ids(self) -> list[int]:
        """Return what a model may write in the stop token's place, the likeliest first."""
        from spin_composer.data.other_ends import alternative_stop_ids

        if not self.rows:
            return []
        kind, date = self.rows[0][1], self.config.date_string
        return alternative_stop_ids(self.tokenizer, self.rule, kind, date)

    def tokenized_both_ways(
        self, limit: int | None, made: ExampleDataset | None = None
    ) -> Iterator[RenderingVsTurns]:
        """Yield the rows tokenized in both ways.

        Args:
            limit: The number of rows; None for all, which are read again.
            made: The examples of this origin, if it has one of each row: a rendering's are not
                made again.
        """
        from spin_composer.data.example_builder import ExampleBuilder

        with_turns = replace(
            self.config, tokenize="turns", generation_prompt="template",
            special_tokens_in_text="warn",
        )  # fmt: skip
        ways = (
            ExampleBuilder(
                self.tokenizer, replace(self.config, tokenize="rendering"),
                next_turn_stops=self.next_turn_stops,
            ),
            ExampleBuilder(self.tokenizer, with_turns),
        )  # fmt: skip
        rows: Iterable[tuple[Location, Kind, Row]] = self.rows
        if limit is None or limit > len(self.rows) >= KEPT_ROWS:
            rows = self._read()
        # Those of turns may be an earlier version's.
        renderings = iter(made or ()) if self.config.tokenize != "turns" else iter(())
        for where, kind, row in islice(rows, limit):
            rendering = next(renderings, None) or _example(ways[0], kind, row, where)
            yield RenderingVsTurns(where, rendering, _example(ways[1], kind, row, where))

    def _read(self) -> Iterator[tuple[Location, Kind, Row]]:
        from spin_composer.data.formats import to_foundry_row
        from spin_composer.data.preprocess import make_preprocessor, preprocess_row
        from spin_composer.data.sources import read_rows

        preprocess = make_preprocessor(self.config)
        for where, row in read_rows(self.config):
            if isinstance(row, BadRow):
                continue
            try:
                if preprocess is not None:
                    row = preprocess_row(preprocess, row, where)
                yield where, *to_foundry_row(row, where)
            except BadRow:
                continue


def _example(way: ExampleBuilder, kind: Kind, row: Row, where: Location) -> Example | BadRow:
    """Return the row's example, or why this way cannot make it."""
    try:
        return way(kind, row, where, DataReport())
    except BadRow as fault:
        return fault
    except InputError as error:  # this way fails for all rows, e.g. without text mode
        return BadRow(where, "cannot be tokenized", str(error), "")


def original_tokenize_warning(tokenize: str) -> str:
    """Return the warning that a run's rows are tokenized as when it was started."""
    return (
        f"train_loader.dataset: this run was started with rows tokenized by {tokenize}, and "
        "continues so, whatever today's default is."
    )
