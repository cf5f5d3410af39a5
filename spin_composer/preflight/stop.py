"""Whether the policy ends its answers with the stop token of the data set."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from spin_composer.data.examples import Example, ExampleDataset
from spin_composer.data.pairs import Pair, PairBatch, collate_pairs
from spin_composer.data.text_tokenizer import text_tokenizer
from spin_composer.distributed import from_rank_zero
from spin_composer.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

ROWS, AMONG = 6, 64
"""How many rows are scored: the shortest among the first ones."""
ALTERNATIVES = 3
"""How many tokens are compared with the stop token, the likeliest first."""
IMPROBABLE, PROBABLE = -8.0, -4.0
"""Log-probs, in nats. A stop token that the model was tuned to write is never as improbable as the
first. A random model finds no token as probable as the second, except one that it has just read."""


def check_stop(
    examples: ExampleDataset,
    tokenizer: PreTrainedTokenizerBase,
    score: Callable[[PairBatch], Tensor],
    to_device: Callable[[PairBatch], PairBatch],
) -> None:
    """Score the stop token and its alternatives after real responses; a collective.

    Args:
        examples: The training data; the same on all ranks.
        tokenizer: The model's tokenizer.
        score: Returns the log-prob sums [1, 2] of a pair batch.
        to_device: Moves a batch to the model's device.

    Raises:
        InputError: The policy writes another token there. If ``stop_token`` is set, this is only
            logged.
    """
    # Rank 0's, so that all run as many forwards: nodes may differ in what their caches hold.
    others = from_rank_zero(examples.alternative_stop_ids)[:ALTERNATIVES]
    tokens = [examples.stop_token_id, *others]
    rows = whole_rows(examples, others) if others else []
    scores = np.empty((len(rows), len(tokens)))
    for i, row in enumerate(rows):
        for start in range(0, len(tokens), 2):
            pair = tokens[start : start + 2]
            scores[i, start : start + 2] = _score_two(row, pair, score, to_device)[: len(pair)]
            if not start and _is_probable(scores[i, 0]):
                return  # whatever the other rows are, the policy writes it
    found = preferred_token(scores)
    if found is None:
        return
    message = _message(examples, tokenizer, tokens[found], scores[:, [0, found]])
    if examples.config is None or examples.config.stop_token is None:
        raise InputError(message)
    log.warning(message)


def whole_rows(examples: ExampleDataset, others: Sequence[int]) -> list[Example]:
    """Return the rows to score: not truncated, and not ending with one of the alternatives.

    A random model with tied embeddings is certain to repeat the token that it has just read.
    """
    first = [examples[i] for i in range(min(AMONG, len(examples)))]
    rows = [
        row for row in first
        if not row.truncated and len(row.response) > 1 and int(row.response[-2]) not in others
    ]  # fmt: skip
    return sorted(rows, key=lambda row: len(row.prompt) + len(row.response))[:ROWS]


def preferred_token(scores: np.ndarray) -> int | None:
    """Return the column of the token that the policy writes in place of the stop token.

    Args:
        scores: Log-probs [rows, tokens], in nats; column 0 is the stop token.

    Returns:
        None if the stop token is probable in any row, or no other token is in most rows.
    """
    if not len(scores) or scores.shape[1] < 2 or not np.isfinite(scores).all():
        return None
    if (scores[:, 0] >= IMPROBABLE).any():
        return None
    means = np.median(scores, axis=0)
    best = int(means.argmax())
    return best if means[best] >= PROBABLE else None


def _is_probable(stop: float) -> bool:
    """Tell whether the policy writes the stop token, the same on all ranks: they go on together."""
    return from_rank_zero(lambda: bool(stop >= IMPROBABLE))


def _score_two(
    row: Example,
    tokens: Sequence[int],
    score: Callable[[PairBatch], Tensor],
    to_device: Callable[[PairBatch], PairBatch],
) -> list[float]:
    """Return the log-probs of one or two tokens at the position of the row's stop token."""
    before = np.concatenate([row.prompt, row.response[:-1]])
    first, second = (np.array([token], dtype=np.int32) for token in (tokens[0], tokens[-1]))
    return score(to_device(collate_pairs([Pair(before, first, second)])))[0].float().tolist()


def _message(
    examples: ExampleDataset,
    tokenizer: PreTrainedTokenizerBase,
    other: int,
    scores: np.ndarray,
) -> str:
    names = text_tokenizer(tokenizer)
    stop, found = map(repr, names.convert_ids_to_tokens([examples.stop_token_id, other]))
    probabilities = [f"{math.exp(value):.2g}" for value in np.median(scores, axis=0)]
    remedy = f"Set train_loader.dataset.stop_token: {found}."
    if other not in tokenizer.added_tokens_decoder and other not in tokenizer.all_special_ids:
        remedy = (
            f"{found} is an ordinary token, which begins more text of the chat template. Set "
            "train_loader.dataset.stop_token to the token that ends the model's answers, or use a "
            "model that was tuned to end them."
        )
    return (
        f"train_loader.dataset.stop_token: responses end with {stop}, which the model does not "
        f"write: after {len(scores)} real responses its median probability is {probabilities[0]}, "
        f"and that of {found} is {probabilities[1]}. {remedy}"
    )
