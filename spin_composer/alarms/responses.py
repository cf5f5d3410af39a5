"""Figures of a sample of an iteration's pairs: lengths, diversity, and how responses begin."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import islice, pairwise

import numpy as np

from spin_composer.alarms.rules import (
    DISTINCT_GENERATED,
    DISTINCT_REAL,
    FIRST_TEXT_GAP,
    FIRST_TOKEN_GAP,
    REAL_LENGTH,
)
from spin_composer.data.pairs import Ids, Pair
from spin_composer.store.base import Store

UNITS, PAIRS_PER_UNIT = 4, 256
"""What is read of an iteration, spread over its units: enough for shares to a few percent."""
_LEAST_PAIRS = 64
"""Of fewer pairs two halves differ by chance as much as two kinds of responses."""
_FIRST_TOKENS, _FIRST_CHARACTERS = 8, 4
"""How far a response is read for its first text."""


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
    """Return the figures of a sample of pairs; what too few pairs cannot say is left out.

    Args:
        pairs: The sample.
        decode: Returns the texts of token ids, without special tokens.
    """
    if not pairs:
        return {}
    real, generated = ([getattr(p, side) for p in pairs] for side in ("real", "generated"))
    tokens = min(sum(map(len, real)), sum(map(len, generated)))
    figures = {
        REAL_LENGTH: float(np.mean([len(ids) for ids in real])),
        DISTINCT_REAL: distinct_bigrams(real, tokens),
        DISTINCT_GENERATED: distinct_bigrams(generated, tokens),
    }
    if len(pairs) < _LEAST_PAIRS:
        return figures
    firsts = [[int(ids[0]) for ids in side] for side in (real, generated)]
    texts = [_first_texts(decode([ids[:_FIRST_TOKENS] for ids in s])) for s in (real, generated)]
    return {
        **figures,
        FIRST_TOKEN_GAP: distribution_gap(*firsts),
        FIRST_TEXT_GAP: distribution_gap(*texts),
    }


def distinct_bigrams(responses: Sequence[Ids], tokens: int) -> float:
    """Return distinct-2: different pairs of neighboring tokens by all of them.

    It falls with the size of the sample, so both sides are cut to the same one.

    Args:
        responses: Token ids of each response.
        tokens: Tokens to read, from the first response on.
    """
    bigrams = list(islice(_bigrams(responses), tokens))
    return len(set(bigrams)) / max(1, len(bigrams))


def _bigrams(responses: Sequence[Ids]) -> Iterator[tuple[int, int]]:
    for ids in responses:
        yield from pairwise(ids.tolist())


def distribution_gap(real: Sequence[Hashable], generated: Sequence[Hashable]) -> float:
    """Return how much two samples differ beyond chance: in [0, 1].

    It is the total variation distance of half of one sample and half of the other, less the larger
    one of both halves of one sample: samples of the same distribution give 0, also where most of
    their values occur once.

    Args:
        real: A value of each real response.
        generated: A value of each generated one.
    """
    halves = [[side[start::2] for start in (0, 1)] for side in (real, generated)]
    (a, b), (c, d) = ([Counter(half) for half in side] for side in halves)
    between = (_total_variation(a, d) + _total_variation(b, c)) / 2
    return max(0.0, between - max(_total_variation(a, b), _total_variation(c, d)))


def _total_variation(a: Counter[Hashable], b: Counter[Hashable]) -> float:
    num_a, num_b = a.total(), b.total()
    return sum(abs(a[value] / num_a - b[value] / num_b) for value in a.keys() | b.keys()) / 2


def _first_texts(texts: Sequence[str]) -> list[str]:
    """Return the first characters of each text's first word."""
    words = ((text.split() or [""])[0] for text in texts)
    return [word[:_FIRST_CHARACTERS] for word in words]
