"""The real-or-own classifier: can responses be told from real ones by their n-grams?

A logistic regression on hashed n-grams of words and characters, cross-validated, is trained to tell
a model's responses to held-out prompts from the real ones. An accuracy of 0.5 means that it cannot,
which is where SPIN's game ends: the opponent's responses are distributed as the data (arXiv
2401.01335, section 5). It is a two-sample test by a classifier (Lopez-Paz and Oquab, arXiv
1610.06545): a lower bound, since n-grams do not see everything.

A prompt's real response and its sampled ones are in one fold, so that no content of a test prompt
is seen in training, and every fold has as many real rows as sampled ones: with folds of unequal
shares the accuracy of a classifier that knows nothing would be below 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spin_composer.judge.words import WORD

_FEATURES = 2**16
"""Columns of each of the two hashed sets of n-grams."""
_WORD_NGRAMS, _CHARACTER_NGRAMS = (1, 2), (1, 4)
SPREAD = 1.3
"""How much wider than the bootstrap's an interval of the accuracy is.

The bootstrap draws the rows that are told, and not those that the classifiers learned from, which
the folds share. Simulated accuracies of responses to 50 to 800 prompts had standard deviations of
1.0 to 1.4 times the bootstrap's, differences of two of them 1.0 to 1.3 times. (The correction of
Nadeau and Bengio, Machine Learning 52, 2003, is sqrt(1 + K / (K - 1)) for K folds: 1.5 for five.)
"""


def out_of_fold_hits(
    real: Sequence[str],
    own: Sequence[str],
    groups: NDArray[np.int64],
    folds: int = 5,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Return how many of a row's two responses are told rightly, by a classifier that saw neither.

    Args:
        real: [n] real responses.
        own: [n] sampled responses.
        groups: [n] int, each row's prompt, from 0 to P - 1; at least ``folds`` of them.
        folds: Folds of the cross-validation, of whole prompts.
        seed: Of the prompts' order, by which they are dealt to folds.

    Returns:
        [n], of 0, 0.5 and 1: the mean over rows is the accuracy.
    """
    from sklearn.linear_model import LogisticRegression

    features = _features([*real, *own])
    labels = np.repeat([1, 0], len(real))
    dealt = np.random.default_rng(seed).permutation(int(groups.max()) + 1) % folds
    fold = np.tile(dealt[groups], 2)
    right = np.zeros(len(labels))
    for held in range(folds):
        test = fold == held
        model = LogisticRegression(max_iter=1000).fit(features[~test], labels[~test])
        right[test] = model.predict(features[test]) == labels[test]
    return right.reshape(2, -1).mean(0)


def shuffled_halves(real: Sequence[str], seed: int = 0) -> tuple[list[str], list[str]]:
    """Return two random halves of real responses: the control, which cannot be told apart.

    Args:
        real: [P] one real response per prompt; one is left out if their number is odd.
        seed: Of the order.
    """
    order: list[int] = np.random.default_rng(seed).permutation(len(real)).tolist()
    half = len(real) // 2
    return [real[i] for i in order[:half]], [real[i] for i in order[half : 2 * half]]


def _features(texts: Sequence[str]) -> Any:
    """Return the hashed n-grams of texts, a sparse matrix of the columns that occur."""
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import HashingVectorizer

    # Case and punctuation count: they are often what tells a model's responses.
    words = HashingVectorizer(
        n_features=_FEATURES, token_pattern=WORD, ngram_range=_WORD_NGRAMS, lowercase=False
    )
    characters = HashingVectorizer(
        n_features=_FEATURES, analyzer="char", ngram_range=_CHARACTER_NGRAMS, lowercase=False
    )
    # An end that stands at a text's end only: else a response that breaks off would look like one
    # that does not, and an empty text would have no n-gram at all.
    ended = [f"{text}\x03" for text in texts]
    both = hstack([words.transform(texts), characters.transform(ended)]).tocsr()
    return both[:, np.unique(both.indices)]
