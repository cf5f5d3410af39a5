"""What is measured of a sample of an iteration's pairs."""

from __future__ import annotations

import numpy as np
import pytest

from spin_composer.alarms.responses import distinct_bigrams, distribution_gap, response_figures
from spin_composer.alarms.rules import (
    DISTINCT_GENERATED,
    DISTINCT_REAL,
    FIRST_TEXT_GAP,
    FIRST_TOKEN_GAP,
    REAL_LENGTH,
)
from spin_composer.data.pairs import Ids, Pair

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def ids(*values: int) -> Ids:
    return np.asarray(values, np.int32)


def spell(responses: list[Ids]) -> list[str]:
    """Decode tokens of a toy vocabulary: a letter, and at 100 and above a space and the letter."""
    words = [[" " * (i >= 100) + LETTERS[i % 100 % 26] for i in one] for one in responses]
    return ["".join(word) for word in words]


def pairs_of(real: int, generated: int, count: int = 200, spread: int = 4) -> list[Pair]:
    """Pairs whose sides begin with one of ``spread`` tokens from ``real`` and ``generated`` on."""
    random = np.random.default_rng(3)
    begin = random.integers(spread, size=(count, 2))
    rest = random.integers(26, size=(count, 2, 3))
    return [
        Pair(ids(1), ids(real + b[0], *r[0]), ids(generated + b[1], *r[1]))
        for b, r in zip(begin.tolist(), rest.tolist(), strict=True)
    ]


def test_distinct_bigrams_are_counted_within_responses() -> None:
    responses = [ids(1, 2, 1, 2), ids(2, 3)]  # (1, 2), (2, 1), (1, 2), (2, 3)
    assert distinct_bigrams(responses, 100) == 3 / 4
    assert distinct_bigrams(responses, 2) == 1.0  # of the first two alone
    assert distinct_bigrams([ids(1)], 100) == 0.0


@pytest.mark.parametrize("spread", [2, 30, 10_000])
def test_samples_of_one_distribution_have_no_gap(spread: int) -> None:
    random = np.random.default_rng(0)
    a, b = (random.integers(spread, size=400).tolist() for _ in range(2))
    assert distribution_gap(a, b) < 0.1


def test_samples_without_a_common_value_have_a_gap_of_one() -> None:
    assert distribution_gap([1] * 100, [2] * 100) == 1.0
    assert distribution_gap([1, 2] * 50, [2, 1] * 50) == 0.0


def test_the_same_text_in_other_tokens_differs_in_tokens_alone() -> None:
    figures = response_figures(pairs_of(real=0, generated=100), spell)
    assert figures[FIRST_TOKEN_GAP] > 0.8
    assert figures[FIRST_TEXT_GAP] < 0.2


def test_another_style_differs_in_texts_as_well() -> None:
    figures = response_figures(pairs_of(real=0, generated=10), spell)
    assert figures[FIRST_TOKEN_GAP] > 0.8
    assert figures[FIRST_TEXT_GAP] > 0.8 - 0.5


def test_responses_like_the_real_ones_have_no_gap_and_the_same_diversity() -> None:
    figures = response_figures(pairs_of(real=0, generated=0), spell)
    assert figures[FIRST_TOKEN_GAP] < 0.1
    assert figures[REAL_LENGTH] == 4.0
    assert figures[DISTINCT_GENERATED] == pytest.approx(figures[DISTINCT_REAL], rel=0.15)


def test_few_pairs_say_nothing_about_how_responses_begin() -> None:
    figures = response_figures(pairs_of(real=0, generated=100, count=20), spell)
    assert FIRST_TOKEN_GAP not in figures
    assert DISTINCT_REAL in figures
    assert response_figures([], spell) == {}
