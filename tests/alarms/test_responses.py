"""What is measured of a sample of an iteration's pairs."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from spin_composer.alarms.responses import distinct_bigrams, first_token_gap, response_figures
from spin_composer.alarms.rules import (
    DISTINCT_GENERATED,
    DISTINCT_REAL,
    FIRST_TOKEN_GAP,
    FIRST_WORDS_SHARED,
    REAL_LENGTH,
    REAL_LOGP,
)
from spin_composer.data.pairs import Ids, Pair

WORDS = ["The", "A", "It", "So", "Tom", "Ann"]


def ids(*values: int) -> Ids:
    return np.asarray(values, np.int32)


def spell(responses: list[Ids]) -> list[str]:
    """Decode tokens of a toy vocabulary: a word, and at 100 and above a space before it."""
    return ["".join(" " * int(i >= 100) + WORDS[i % 100] for i in one) for one in responses]


def pairs_of(real: list[int], generated: list[int], count: int = 200) -> list[Pair]:
    """Pairs whose sides begin with one of these tokens, and go on with words of a common kind."""
    random = np.random.default_rng(3)

    def response(firsts: list[int]) -> Ids:
        return ids(random.choice(firsts), *(100 + random.integers(6, size=3)))

    return [Pair(ids(1), response(real), response(generated), index=i) for i in range(count)]


def test_distinct_bigrams_are_counted_within_responses() -> None:
    responses = [ids(1, 2, 1, 2), ids(2, 3)]  # (1, 2), (2, 1), (1, 2), (2, 3)
    assert distinct_bigrams(responses, 100) == 3 / 4
    assert distinct_bigrams(responses, 2) == 1.0  # of the first two alone
    assert distinct_bigrams([ids(1)], 100) == 0.0


def test_the_same_words_in_other_tokens_have_a_gap() -> None:
    figures = response_figures(pairs_of(real=[0, 1, 2], generated=[100, 101, 102]), spell)
    assert figures[FIRST_TOKEN_GAP] == 1.0
    assert figures[FIRST_WORDS_SHARED] > 0.8


def test_other_words_are_no_gap() -> None:
    figures = response_figures(pairs_of(real=[0, 1, 2], generated=[3, 4, 5]), spell)
    assert math.isnan(figures[FIRST_TOKEN_GAP])
    assert figures[FIRST_WORDS_SHARED] == 0.0
    figures = response_figures(pairs_of(real=[0, 1, 2], generated=[0, 4, 5]), spell)
    assert figures[FIRST_TOKEN_GAP] == 0.0
    assert 0.2 < figures[FIRST_WORDS_SHARED] < 0.5


def test_a_gap_is_the_share_of_words_that_have_one() -> None:
    shared, gap = first_token_gap([("a", 1), ("b", 2)], [("a", 1), ("b", 3)])
    assert (shared, gap) == (1.0, 0.5)
    shared, gap = first_token_gap([("a", 1), ("a", 2)], [("a", 1), ("c", 1)])
    assert (shared, gap) == (0.5, 0.5)


def test_responses_like_the_real_ones_have_the_same_diversity() -> None:
    figures = response_figures(pairs_of(real=[0, 1], generated=[0, 1]), spell)
    assert figures[REAL_LENGTH] == 4.0
    assert figures[DISTINCT_GENERATED] == pytest.approx(figures[DISTINCT_REAL], rel=0.15)


def test_the_opponents_log_prob_per_token_is_the_mean_of_the_responses_own() -> None:
    short = Pair(ids(1), ids(0, 1), ids(0), opponent_real=-10.0, index=0)
    long = Pair(ids(1), ids(*[0] * 20), ids(0), opponent_real=-10.0, index=1)
    assert response_figures([short, long], spell)[REAL_LOGP] == pytest.approx(-(5.0 + 0.5) / 2)


def test_several_responses_to_a_prompt_do_not_make_the_real_ones_less_diverse() -> None:
    pairs = pairs_of(real=[0, 1], generated=[0, 1])
    again = pairs_of(real=[0, 1], generated=[0, 1], count=9 * len(pairs))
    repeated = [
        one
        for pair in pairs
        for one in (pair, *(replace(pair, generated=again.pop().generated) for _ in range(9)))
    ]
    once, often = (response_figures(sample, spell) for sample in (pairs, repeated))
    for name in (DISTINCT_REAL, DISTINCT_GENERATED, REAL_LENGTH):
        assert often[name] == pytest.approx(once[name])


def test_both_sides_are_read_to_the_same_number_of_bigrams() -> None:
    short = [Pair(ids(1), ids(0, 1, 0, 1), ids(0, 1), index=i) for i in range(10)]
    long = Pair(ids(1), ids(0), ids(0, 1, 2, 3, 4, 5, 1, 3, 5, 0, 2, 4), index=10)
    # 30 bigrams beside 21: the longest side has 2 different ones of 21, not of 30.
    figures = response_figures([*short, long], spell)
    assert figures[DISTINCT_REAL] == 2 / 21
    assert figures[DISTINCT_GENERATED] == 11 / 21


def test_no_pairs_have_no_figures() -> None:
    assert response_figures([], spell) == {}
