"""Diversity of a set of responses: distinct-n and self-BLEU.

Neither says anything by itself: they are read beside those of the real responses.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from spin_composer.judge.words import ngrams, split_words

_MAX_ORDER = 4
_SMOOTHING = 0.1
"""In place of a count of 0: NLTK's SmoothingFunction.method1, which self-BLEU was defined with."""

Ngram = tuple[str, ...]


def distinct_shares(
    texts: Sequence[str], n: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return distinct-n (Li et al., arXiv 1510.03055) as two numbers per text.

    Distinct-n is the number of different n-grams of all texts by that of all n-grams. An n-gram
    that occurs c times counts 1 / c wherever it occurs, so that each text has its part.

    Args:
        texts: [n] responses.
        n: Words of an n-gram.

    Returns:
        Each text's part of the different n-grams [n], and its number of n-grams [n]: the sum of
        the first by the sum of the second is distinct-n.
    """
    each = [ngrams(split_words(text), n) for text in texts]
    counts = Counter(gram for grams in each for gram in grams)
    parts = [sum(1 / counts[gram] for gram in grams) for grams in each]
    return np.asarray(parts, np.float64), np.asarray([len(grams) for grams in each], np.float64)


def self_bleu_scores(texts: Sequence[str]) -> NDArray[np.float64]:
    """Return the BLEU-4 of each text against all others (self-BLEU, Zhu et al., arXiv 1802.01886).

    Higher is less diverse. Of a text of fewer than four words only the orders that it has count.

    Args:
        texts: [n] responses, at least two.

    Returns:
        [n] in [0, 1]; 0 for a text that shares no word with another.
    """
    words = [split_words(text) for text in texts]
    lengths = sorted(len(each) for each in words)
    logs: list[list[float]] = [[] for _ in texts]
    shares = np.zeros(len(texts), dtype=bool)
    for n in range(1, _MAX_ORDER + 1):
        counts = [Counter(ngrams(each, n)) for each in words]
        for i, clipped in enumerate(_clipped_counts(counts)):
            total = sum(counts[i].values())
            if total:
                logs[i].append(math.log((clipped or _SMOOTHING) / total))
            shares[i] |= n == 1 and clipped > 0
    scores = [
        math.exp(sum(of_orders) / len(of_orders)) * _brevity_penalty(len(own), lengths)
        if shares[i]
        else 0.0
        for i, (of_orders, own) in enumerate(zip(logs, words, strict=True))
    ]
    return np.asarray(scores)


def _clipped_counts(counts: Sequence[Counter[Ngram]]) -> list[int]:
    """Return how many of each text's n-grams another text has too.

    An n-gram is clipped at its highest count in another text: of each, the two highest counts
    and whose the first is say that for every text.
    """
    highest: dict[Ngram, tuple[int, int, int]] = {}
    for owner, own in enumerate(counts):
        for gram, count in own.items():
            first, whose, second = highest.get(gram, (0, -1, 0))
            if count > first:
                highest[gram] = (count, owner, first)
            else:
                highest[gram] = (first, whose, max(second, count))
    found = []
    for owner, own in enumerate(counts):
        clipped = 0
        for gram, count in own.items():
            first, whose, second = highest[gram]
            clipped += min(count, second if whose == owner else first)
        found.append(clipped)
    return found


def _brevity_penalty(length: int, lengths: Sequence[int]) -> float:
    """Return BLEU's penalty by the closest length (the shorter of two) of another text.

    Args:
        length: Of the text; positive.
        lengths: [n] of all texts with it, sorted.
    """
    at = bisect_left(lengths, length)
    others = [*lengths[max(0, at - 1) : at], *lengths[at + 1 : at + 2]]
    closest = min(others, key=lambda other: (abs(other - length), other))
    return 1.0 if length >= closest else math.exp(1 - closest / length)
