"""Examples: prompts and real responses as token ids, in one flat array.

Dimension letters: n examples, P prompt tokens, R response tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from spin_composer.data.counts import DataReport
from spin_composer.data.formats import Kind
from spin_composer.errors import InputError
from spin_composer.settings.dataset import DEFAULT_TOKENIZATION

if TYPE_CHECKING:
    from torch.utils.data import Dataset

    from spin_composer.data.origin import Origin, RenderingVsTurns
    from spin_composer.data.stop import StopRule
    from spin_composer.settings.dataset import DatasetConfig, Tokenization
else:  # torch's own does nothing, and takes seconds to import
    Dataset = object


@dataclass(frozen=True, slots=True)
class Example:
    """One row.

    Args:
        prompt: [P] int32, everything before the last assistant turn.
        response: [R] int32, ending with the stop token unless truncated.
        truncated: The response was cut at ``max_seq_len`` and has no stop token.
    """

    prompt: np.ndarray
    response: np.ndarray
    truncated: bool


class ExampleDataset(Dataset):
    """All examples in one flat array of int32 ids, cheap to keep and to pass to workers.

    Deliberately without ``load_state_dict``: Composer would restore a position that belongs to the
    algorithm's pair loader.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        ends: np.ndarray,
        truncated: np.ndarray,
        stop_token_id: int,
        kind: Kind = "plain",
        report: DataReport | None = None,
        origin: Origin | None = None,
        fingerprint: str | None = None,
        max_token_id: int | None = None,
    ) -> None:
        """Store ``tokens`` [sum P + R] int32, split at ``ends`` [n, 2]; ``truncated`` [n] bool.

        ``fingerprint`` and ``max_token_id`` spare reading all tokens, where they are known.
        """
        self._tokens, self._ends, self._truncated = tokens, ends, truncated
        self.stop_token_id = stop_token_id
        self.kind: Kind = kind
        self.origin = origin
        """Where they come from; None of examples made by hand."""
        self._max_token_id = max_token_id
        self.report = report or DataReport(
            rows=len(ends), kept=len(ends), truncated_responses=int(truncated.sum())
        )
        starts = np.concatenate([np.zeros(1, np.int64), ends.reshape(-1)[:-1]])
        self.lengths = ends - starts.reshape(-1, 2)[: len(ends)]  # [n, 2]
        self.fingerprint: str = fingerprint or _hash(self.lengths, tokens)

    @classmethod
    def from_examples(
        cls,
        examples: Sequence[Example],
        stop_token_id: int,
        kind: Kind = "plain",
        report: DataReport | None = None,
        origin: Origin | None = None,
    ) -> ExampleDataset:
        """Create the data set from examples (at least one).

        Raises:
            InputError: There are none.
        """
        if not examples:
            raise InputError("examples=[]: there is no row to train on. Give at least one.")
        parts = [part for example in examples for part in (example.prompt, example.response)]
        ends = np.cumsum([len(part) for part in parts], dtype=np.int64).reshape(-1, 2)
        truncated = np.array([example.truncated for example in examples], dtype=bool)
        tokens = np.concatenate(parts).astype(np.int32, copy=False)
        return cls(tokens, ends, truncated, stop_token_id, kind, report, origin)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, i: int) -> Example:
        i = range(len(self))[i]
        start = int(self._ends[i - 1, 1]) if i else 0
        middle, end = map(int, self._ends[i])
        return Example(
            self._tokens[start:middle], self._tokens[middle:end], bool(self._truncated[i])
        )

    @property
    def config(self) -> DatasetConfig | None:
        """The settings that the examples were made with; None if they were made by hand."""
        return None if self.origin is None else self.origin.config

    @property
    def tokenize(self) -> Tokenization:
        """How the rows were tokenized."""
        config = self.config
        return (config and config.tokenize) or DEFAULT_TOKENIZATION

    def retokenized(self, tokenize: Tokenization) -> ExampleDataset:
        """Read the source again (on all ranks) and tokenize its rows the other way.

        ``turns`` is the behavior before ``tokenize`` was a setting, for stores of that time.

        Raises:
            InputError: The examples have no source, or a row cannot be tokenized that way.
        """
        if tokenize == self.tokenize:
            return self
        if self.origin is None:
            raise InputError(
                f"tokenize={tokenize!r}: examples made by hand have no source to read again. "
                "Make them by build_examples."
            )
        return self.origin.retokenized(tokenize)

    def with_earlier_stop(self) -> ExampleDataset | None:
        """Return the rows as versions before ``stop_token`` ended them; None if it is the same.

        The source is read again, by all ranks.
        """
        return None if self.origin is None else self.origin.with_earlier_stop()

    @property
    def stop_rule(self) -> StopRule | None:
        """How responses end; None of examples made by hand."""
        return None if self.origin is None else self.origin.rule

    def alternative_stop_ids(self) -> list[int]:
        """Return what a model may write in the stop token's place, the likeliest first."""
        return [] if self.origin is None else self.origin.alternative_stop_ids()

    def tokenized_both_ways(self, limit: int | None = 64) -> Iterator[RenderingVsTurns]:
        """Yield rows tokenized in both ways: the first ``limit``, or all, read again."""
        if self.origin is not None:
            one_each = len(self) == self.report.rows  # a bad row has no example
            yield from self.origin.tokenized_both_ways(limit, self if one_each else None)

    @property
    def max_prompt_tokens(self) -> int:
        """Number of tokens of the longest prompt."""
        return int(self.lengths[:, 0].max())

    @property
    def max_token_id(self) -> int:
        """The highest id of all rows and the stop token."""
        if self._max_token_id is None:
            self._max_token_id = max(int(self._tokens.max()), self.stop_token_id)
        return self._max_token_id

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays that the examples are made of, by the constructor's names."""
        return {"tokens": self._tokens, "ends": self._ends, "truncated": self._truncated}


def _hash(lengths: np.ndarray, tokens: np.ndarray) -> str:
    digest = xxhash.xxh64(np.ascontiguousarray(lengths, "<i8").data)
    digest.update(np.ascontiguousarray(tokens, "<i4").data)
    return digest.hexdigest()
