"""Check that the policy was tuned on rows tokenized as the setting ``tokenize`` says."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import islice

import numpy as np
from torch import Tensor

from spin_composer.data.bad_row import BadRow
from spin_composer.data.examples import Example, ExampleDataset
from spin_composer.data.pairs import Pair, PairBatch, collate_pairs
from spin_composer.errors import InputError

ROWS = 8
"""Number of scored rows."""
SAME_TOKENS = 8
"""If both ways agree on this many first tokens, the row is no evidence."""
MARGIN = 3.0
"""Nats by which the other way must be more likely, also than a uniform guess. A tuned model is far
more certain; logits of a random model of width 4096 differ by 1.3 (0.02 * sqrt(4096))."""


def differing_starts(examples: ExampleDataset) -> list[tuple[Pair, Pair]]:
    """Return rows (this way, the other way) whose responses start differently, cut after that.

    Both have the same number of tokens: a random model would prefer the shorter one.
    """
    found = (
        (way.rendering, way.turns) if examples.tokenize == "rendering"
        else (way.turns, way.rendering)
        for way in examples.tokenized_both_ways() if way.differ
    )  # fmt: skip
    return list(islice((starts for ways in found if (starts := _starts(*ways))), ROWS))


def _starts(this: Example | BadRow, other: Example | BadRow) -> tuple[Pair, Pair] | None:
    if isinstance(this, BadRow) or isinstance(other, BadRow):
        return None
    ours, theirs = (one.response[: len(one.response) - 1] for one in (this, other))  # the stop
    length = min(len(ours), len(theirs))
    unlike = np.flatnonzero(ours[:length] != theirs[:length])
    same = int(unlike[0]) if len(unlike) else length
    if not np.array_equal(this.prompt, other.prompt):
        same = 0  # the same token after a different prompt is evidence too
    if same >= min(length, SAME_TOKENS):
        return None
    starts = [(one.prompt, one.response[: same + 1]) for one in (this, other)]
    first, second = (Pair(prompt, head, head) for prompt, head in starts)
    return first, second


def check_tokenize(
    examples: ExampleDataset,
    vocabulary: int,
    score: Callable[[PairBatch], Tensor],
    to_device: Callable[[PairBatch], PairBatch],
) -> None:
    """Score the starts of responses in both ways of tokenizing; a collective (forward passes).

    Args:
        examples: The training rows, the same on all ranks.
        vocabulary: Size of the vocabulary.
        score: Returns the log-prob sums [1, 2] of a pair batch.
        to_device: Moves a batch to the model's device.

    Raises:
        InputError: The policy generates the other tokenization.
    """
    rows = [
        [float(score(to_device(collate_pairs([pair])))[0, 0]) for pair in pairs]
        for pairs in differing_starts(examples)
    ]
    if not prefers_other_tokenization(rows, vocabulary):
        return
    this = examples.tokenize
    other = "turns" if this == "rendering" else "rendering"
    gain = sum(b - a for a, b in rows) / len(rows)
    raise InputError(
        f"train_loader.dataset.tokenize={this!r}: the model was tuned on rows tokenized the other "
        f"way: in {len(rows)} rows where the two ways differ, it finds the response's first tokens "
        f"likelier by {gain:.1f} nats as {other!r} gives them. Set tokenize: {other}."
    )


def prefers_other_tokenization(rows: Sequence[Sequence[float]], vocabulary: int) -> bool:
    """Return whether log-probs of rows (this way, the other way) are evidence for the other."""
    if not rows or not all(math.isfinite(value) for row in rows for value in row):
        return False
    gain = sum(b - a for a, b in rows) / len(rows)
    known = sum(b for _, b in rows) / len(rows) + math.log(vocabulary)
    mostly = sum(b > a for a, b in rows) >= 0.75 * len(rows)
    return mostly and gain >= MARGIN and known >= MARGIN
