"""Figures of a sample of an iteration's pairs: lengths, diversity, and how responses begin."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, islice, pairwise

import numpy as np

from spin_composer.alarms.rules import (
    DISTINCT_GENERATED,
    DISTINCT_REAL,
    FIRST_TOKEN_GAP,
    FIRST_WORDS_SHARED,
    REAL_LENGTH,
    REAL_LOGP,
)
from spin_composer.data.pairs import Ids, Pair
from spin_composer.store.base import Store

UNITS, PAIRS_PER_UNIT = 4, 256
"""What is read of an iteration, spread over its units: enough for shares to a few percent."""
_FIRST_TOKENS = 16
"""How far a response is read for its first word."""


def sample_pairs(store: Store, iteration: int, num_units: int) -> list[Pair]:
    """Return pairs of an iteration's play, from up to four of its units.

    Args:
        store: Has the units on this machine.
        iteration: Index of the iteration.
        num_units: Units that it played itself, which are its first.
    """
    units = np.unique(np.linspace(0, num_units - 1, UNITS).round().astype(int)).tolist()
    return [
        pair for unit in units for pair in islice(store.read_unit(iteration, unit), PAIRS_PER_UNIT)
    ]


def response_figures(
    pairs: Sequence[Pair], decode: Callable[[list[Ids]], list[str]]
) -> dict[str, float]:
    """Return the figures of a sample of pairs; none of an empty one.

    Args:
        pairs: The sample, as :func:`sample_pairs` returns it.
        decode: Returns the texts of token ids, without special tokens.
    """
    if not pairs:
        return {}
    real, generated = ([getattr(p, side) for p in pairs] for side in ("real", "generated"))
    # A prompt's pairs, which stand in a row, have the same real response.
    firsts = [next(of_row) for _, of_row in groupby(pairs, key=lambda pair: pair.index)]
    sides = [[p.real for p in firsts], [p.generated for p in firsts]]
    count = min(sum(max(0, len(ids) - 1) for ids in side) for side in sides)
    diversity = (distinct_bigrams(side, count) for side in sides)
    figures = {
        REAL_LENGTH: float(np.mean([len(ids) for ids in real])),
        REAL_LOGP: float(np.mean([pair.opponent_real / len(pair.real) for pair in pairs])),
        **dict(zip((DISTINCT_REAL, DISTINCT_GENERATED), diversity, strict=True)),
    }
    texts = [decode([ids[:_FIRST_TOKENS] for ids in side]) for side in (real, generated)]
    words = [[(text.split() or [""])[0] for text in of_side] for of_side in texts]
    beginnings = (
        [(word, int(ids[0])) for word, ids in zip(of_side, side, strict=True)]
        for of_side, side in zip(words, (real, generated), strict=True)
    )
    shared, gap = first_token_gap(*beginnings)
    return {**figures, FIRST_WORDS_SHARED: shared, FIRST_TOKEN_GAP: gap}


def distinct_bigrams(responses: Sequence[Ids], count: int) -> float:
    """Return distinct-2: different pairs of neighboring tokens by all of them.

    It falls with the size of the sample, so both sides are cut to the same one, of one response to
    each prompt.

    Args:
        responses: Token ids of each response.
        count: Pairs of tokens to read, from the first response on.
    """
    bigrams = list(islice(_bigrams(responses), count))
    return len(set(bigrams)) / max(1, len(bigrams))


def _bigrams(responses: Sequence[Ids]) -> Iterator[tuple[int, int]]:
    for ids in responses:
        yield from pairwise(ids.tolist())


def first_token_gap(
    real: Sequence[tuple[str, int]], generated: Sequence[tuple[str, int]]
) -> tuple[float, float]:
    """Return how many responses share first words, and how many of these differ in first tokens.

    Args:
        real: First word and first token of each real response.
        generated: Those of each generated one.

    Returns:
        The mass that the distributions of first words have in common, and the share of it whose
        tokens differ (by total variation distance of a word's tokens); nan if nothing is in common.
    """
    sides = [_tokens_by_word(side) for side in (real, generated)]
    shared = differing = 0.0
    for word in sides[0].keys() & sides[1].keys():
        (a, b) = (side[word] for side in sides)
        mass = min(a.total() / len(real), b.total() / len(generated))
        shared += mass
        differing += mass * _total_variation(a, b)
    return shared, differing / shared if shared else math.nan


def _tokens_by_word(firsts: Sequence[tuple[str, int]]) -> dict[str, Counter[int]]:
    found: dict[str, Counter[int]] = {}
    for word, token in firsts:
        found.setdefault(word, Counter())[token] += 1
    return found


def _total_variation(a: Counter[int], b: Counter[int]) -> float:
    num_a, num_b = a.total(), b.total()
    return sum(abs(a[value] / num_a - b[value] / num_b) for value in a.keys() | b.keys()) / 2
