"""An iteration's table of samples: ``samples.jsonl`` of its folder, and a table in the loggers.

The log-probs of its tokens are the opponent's when the iteration begins, and the policy's when it
ends. Every rank scores the same few pairs by ordinary forward passes, as FSDP needs it: a rank
that did not would leave the others waiting for its shards.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby, islice

from composer.core import State
from composer.core.precision import get_precision_context
from composer.loggers import ConsoleLogger, Logger, TensorboardLogger
from transformers import PreTrainedTokenizerBase

from spin_composer.data.pairs import FINISH_NAMES, Ids, Pair, collate_pairs
from spin_composer.data.token_texts import token_texts
from spin_composer.distributed import from_rank_zero
from spin_composer.errors import StoreError
from spin_composer.fsdp import reshard
from spin_composer.model.unwrap import composer_model
from spin_composer.pair_kinds import REAL_KINDS
from spin_composer.report.samples import (
    COLUMNS,
    ResponseTokens,
    Sample,
    as_jsonl,
    as_rows,
    parse_samples,
)
from spin_composer.store.base import Store
from spin_composer.store.durable import write_atomically
from spin_composer.store.layout import SAMPLES

log = logging.getLogger(__name__)

_NAME = "spin/samples"

Logps = tuple[list[float], list[float]]
"""The log-probs of the tokens of a pair's real and generated response, in nats."""


@dataclass(frozen=True)
class SampleTable:
    """The table of the first pair of an iteration's first prompts; its methods are collectives."""

    store: Store
    """Has the complete units of the iteration."""
    iteration: int
    num_units: int
    count: int
    """Most rows."""

    def begin(self, state: State, logger: Logger) -> None:
        """Write and log the table, while the policy is the iteration's opponent."""
        pairs = from_rank_zero(self._pairs)
        opponent = self._score(state, pairs)
        tokenizer = composer_model(state).tokenizer
        assert tokenizer is not None  # SpinLM has one
        # W&B would reject other metrics of the batch after a table without its number.
        step = int(state.timestamp.batch)

        def write() -> None:
            samples = [
                _sample(pair, self.iteration, tokenizer, logps)
                for pair, logps in zip(pairs, opponent, strict=True)
            ]
            self._write(samples)
            if samples:
                _log_table(logger, samples, step)

        from_rank_zero(write)

    def finish(self, state: State) -> None:
        """Add the log-probs of the policy that the iteration has trained."""
        samples, pairs = from_rank_zero(self._begun)
        policy = self._score(state, pairs)
        if samples:
            from_rank_zero(
                lambda: self._write(
                    [_with_policy(s, p) for s, p in zip(samples, policy, strict=True)]
                )
            )

    @property
    def _name(self) -> str:
        """Of the file, below the store."""
        return f"{self.store.folder(self.iteration).name}/{SAMPLES}"

    def _pairs(self) -> list[Pair]:
        units = (self.store.read_unit(self.iteration, unit) for unit in range(self.num_units))
        real = (pair for pair in chain.from_iterable(units) if pair.kind in REAL_KINDS)
        # A prompt's pairs stand in a row.
        firsts = (next(of_row) for _, of_row in groupby(real, key=lambda pair: pair.index))
        return list(islice(firsts, self.count))

    def _begun(self) -> tuple[list[Sample], list[Pair]]:
        """Return the table as it was begun, and its pairs; nothing if it is another version's."""
        text = self.store.read_published(self._name)
        try:
            samples = parse_samples(text or "", self._name)
        except StoreError as error:
            log.warning(f"{error} This iteration's has no log-probs of the policy.")
            return [], []
        pairs = self._pairs()
        same = [_num_tokens(sample) for sample in samples] == [
            (len(pair.real), len(pair.generated)) for pair in pairs
        ]
        return (samples, pairs) if same else ([], [])

    def _score(self, state: State, pairs: Sequence[Pair]) -> list[Logps]:
        """Return the log-probs of pairs by the current weights.

        One pair at a time: when an iteration ends, gradients and the optimizer's state leave no
        more memory than a microbatch takes.
        """
        model = composer_model(state)
        found: list[Logps] = []
        for pair in pairs:
            batch = collate_pairs([pair])
            with get_precision_context(state.precision, state.precision_config):
                logps = model.response_logps(state.device.batch_to_device(batch)).tolist()
            middle = batch["scored_bounds"][1]
            found.append((logps[:middle], logps[middle:]))
        if found:
            reshard(model)
        return found

    def _write(self, samples: Sequence[Sample]) -> None:
        write_atomically(self.store.root / self._name, as_jsonl(samples))
        self.store.publish(self._name)


def _sample(pair: Pair, iteration: int, tokenizer: PreTrainedTokenizerBase, logps: Logps) -> Sample:
    prompt, real, generated = (
        str(tokenizer.decode(ids)) for ids in (pair.prompt, pair.real, pair.generated)
    )
    finish = FINISH_NAMES[pair.finish]
    tokens = (_tokens(tokenizer, pair.real, logps[0]), _tokens(tokenizer, pair.generated, logps[1]))
    return Sample(iteration, pair.index, prompt, real, generated, finish, *tokens)


def _tokens(
    tokenizer: PreTrainedTokenizerBase, ids: Ids, opponent: Sequence[float]
) -> ResponseTokens:
    return ResponseTokens(token_texts(tokenizer, ids), opponent)


def _num_tokens(sample: Sample) -> tuple[int, int] | None:
    real, generated = sample.real_tokens, sample.generated_tokens
    if real is None or generated is None:
        return None
    return len(real.texts), len(generated.texts)


def _with_policy(sample: Sample, policy: Logps) -> Sample:
    real, generated = sample.real_tokens, sample.generated_tokens
    assert real is not None  # see _num_tokens
    assert generated is not None
    return replace(
        sample,
        real_tokens=replace(real, policy=policy[0]),
        generated_tokens=replace(generated, policy=policy[1]),
    )


def _log_table(logger: Logger, samples: Sequence[Sample], step: int) -> None:
    """W&B, MLflow and file loggers take tables; TensorBoard gets a text."""
    for destination in logger.destinations:
        if not isinstance(destination, ConsoleLogger):  # it would print the table at every line
            destination.log_table(COLUMNS, as_rows(samples), name=_NAME, step=step)
        if isinstance(destination, TensorboardLogger) and destination.writer is not None:
            lines = as_jsonl(samples, with_tokens=False).splitlines()
            text = "\n\n".join(f"    {line}" for line in lines)
            destination.writer.add_text(_NAME, text, step)
