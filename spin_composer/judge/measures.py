"""The measures of sampled responses to held-out prompts, beside the real ones; they need no judge.

:func:`measure` takes texts and numbers, so that any program can call it; the command ``judge`` and
the callback ``spin_judge`` do. Measures of two models that answered the same prompts are paired
(:meth:`~spin_composer.judge.estimate.Estimate.minus`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from spin_composer.errors import InputError
from spin_composer.extras import require_judge
from spin_composer.judge.answers import GSM8K_ANSWER, compile_answer, final_answer
from spin_composer.judge.classifier import SPREAD, out_of_fold_hits, shuffled_halves
from spin_composer.judge.diversity import distinct_shares, self_bleu_scores
from spin_composer.judge.estimate import Bootstrap, Estimate, Vector


@dataclass(frozen=True)
class Measures:
    """Measures of a model's responses, each with its 95% interval; None of what is not known."""

    classifier_accuracy: Estimate
    """How well a classifier of n-grams tells sampled responses from real ones; 0.5: not at all."""
    classifier_control: Estimate
    """Its accuracy on two random halves of the real responses: 0.5 but for chance."""
    distinct_1: Estimate
    """Different words by all words of the sampled responses, one to each prompt."""
    real_distinct_1: Estimate
    """Different words by all words of the real responses, one to each prompt."""
    distinct_2: Estimate
    """Different pairs of words by all pairs of the sampled responses, one to each prompt."""
    real_distinct_2: Estimate
    """Different pairs of words by all pairs of the real responses, one to each prompt."""
    self_bleu: Estimate
    """Mean BLEU-4 of each sampled response against all others, one to each prompt; higher is less
    diverse."""
    real_self_bleu: Estimate
    """Mean BLEU-4 of each real response against all others, one to each prompt."""
    nll: Estimate | None = None
    """Negative log-likelihood of the real responses, stop token included."""
    stop_rate: Estimate | None = None
    """Share of sampled responses that ended with the stop token or a stop string, not at the limit.
    """
    length: Estimate | None = None
    """Mean length of a sampled response."""
    real_length: Estimate | None = None
    """Mean length of a real response."""
    length_distance: Estimate | None = None
    """Wasserstein-1 distance of the lengths of real and sampled responses."""
    exact_match: Estimate | None = None
    """Share of sampled responses with the real one's final answer, of the rows that have one."""

    def as_json(self) -> dict[str, dict[str, float | None]]:
        """Return each known measure's value, interval and standard error, by name."""
        return {name: estimate.as_json() for name, estimate in self.known().items()}

    def known(self) -> dict[str, Estimate]:
        """Return the measures that are known, by name."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: estimate for name, estimate in found.items() if estimate is not None}


UNITS: Mapping[str, str] = {
    **{field.name: "fraction" for field in fields(Measures)},
    "nll": "nats per token",
    **dict.fromkeys(("length", "real_length", "length_distance"), "tokens"),
    **dict.fromkeys(("self_bleu", "real_self_bleu"), "BLEU in [0, 1]"),
}
"""The unit of each measure."""


def measure(
    real: Sequence[str],
    sampled: Sequence[str],
    prompts: Sequence[str],
    *,
    real_tokens: Sequence[int] | None = None,
    sampled_tokens: Sequence[int] | None = None,
    stopped: Sequence[bool] | None = None,
    real_logps: Sequence[float] | None = None,
    answer: str | None = GSM8K_ANSWER,
    folds: int = 5,
    resamples: int = 1000,
    seed: int = 0,
) -> Measures:
    """Measure sampled responses to held-out prompts beside the real ones.

    Give two models the same rows in the same order, and the same settings: their measures are then
    paired.

    Args:
        real: [n] real responses as texts, without the stop token.
        sampled: [n] the model's responses to the same prompts, without the stop token.
        prompts: [n]; rows of equal prompts are one unit of folds and of the bootstrap, so several
            responses to a prompt are several rows, of which diversity is measured on the first.
        real_tokens: [n] lengths of the real responses; lengths are measured if both are given.
        sampled_tokens: [n] lengths of the sampled responses.
        stopped: [n] whether each sampled response ended before the limit.
        real_logps: [n] the model's log-prob sum of each real response, in nats; the NLL is
            measured if ``real_tokens`` are given too.
        answer: Regular expression whose first group is a response's final answer, GSM8K's by
            default; None: nothing is matched. Without an answer in any real response neither.
        folds: Folds of the classifier's cross-validation.
        resamples: Resamples of the bootstrap.
        seed: Of folds and bootstrap.

    Raises:
        InputError: There are too few prompts, lists of different lengths, or scikit-learn or scipy
            is not installed.
    """
    require_judge("measuring responses")
    given = {"sampled": sampled, "prompts": prompts, "stopped": stopped, "real_logps": real_logps}
    given |= {"real_tokens": real_tokens, "sampled_tokens": sampled_tokens}
    for name, values in given.items():
        if values is not None and len(values) != len(real):
            raise InputError(
                f"{name} has {len(values)} rows, and real has {len(real)}. Give one for each."
            )
    groups, firsts = _groups(prompts)
    if len(firsts) < 2 * folds:
        raise InputError(
            f"{len(firsts)} prompts are too few for folds={folds}: give at least {2 * folds}."
        )
    bootstrap = Bootstrap(groups, resamples, seed)
    once = Bootstrap(np.arange(len(firsts)), resamples, seed)
    halves = shuffled_halves([real[i] for i in firsts], seed)
    pairs = np.arange(len(halves[0]))
    told = bootstrap.mean(out_of_fold_hits(real, sampled, groups, folds, seed))
    chance = Bootstrap(pairs, resamples, seed).mean(out_of_fold_hits(*halves, pairs, folds, seed))
    # Diversity falls with the number of texts: it is of as many sampled ones as of real ones.
    texts, own = ([side[i] for i in firsts] for side in (real, sampled))
    return Measures(
        classifier_accuracy=told.widened(SPREAD),
        classifier_control=chance.widened(SPREAD),
        distinct_1=once.ratio(*distinct_shares(own, 1)),
        real_distinct_1=once.ratio(*distinct_shares(texts, 1)),
        distinct_2=once.ratio(*distinct_shares(own, 2)),
        real_distinct_2=once.ratio(*distinct_shares(texts, 2)),
        self_bleu=once.mean(self_bleu_scores(own)),
        real_self_bleu=once.mean(self_bleu_scores(texts)),
        nll=_nll(bootstrap, real_logps, real_tokens),
        stop_rate=None if stopped is None else bootstrap.mean(np.asarray(stopped, np.float64)),
        length=_mean(bootstrap, sampled_tokens),
        real_length=_mean(bootstrap, real_tokens),
        length_distance=_length_distance(bootstrap, real_tokens, sampled_tokens),
        exact_match=_exact_match(bootstrap, real, sampled, stopped, answer),
    )


def _groups(prompts: Sequence[str]) -> tuple[NDArray[np.int64], list[int]]:
    """Return the number of each row's prompt [n], and the first row of each prompt [P]."""
    numbers: dict[str, int] = {}
    firsts = []
    for row, prompt in enumerate(prompts):
        if prompt not in numbers:
            numbers[prompt] = len(numbers)
            firsts.append(row)
    return np.asarray([numbers[prompt] for prompt in prompts], np.int64), firsts


def _mean(bootstrap: Bootstrap, lengths: Sequence[int] | None) -> Estimate | None:
    return None if lengths is None else bootstrap.mean(np.asarray(lengths, np.float64))


def _nll(
    bootstrap: Bootstrap, logps: Sequence[float] | None, tokens: Sequence[int] | None
) -> Estimate | None:
    if logps is None or tokens is None:
        return None
    return bootstrap.ratio(-np.asarray(logps, np.float64), np.asarray(tokens, np.float64))


def _length_distance(
    bootstrap: Bootstrap, real: Sequence[int] | None, sampled: Sequence[int] | None
) -> Estimate | None:
    """Return the Wasserstein-1 distance of two sets of lengths.

    It is above 0 for two samples of the same distribution, and its interval by a bootstrap lies
    higher still: of two models, look at the paired difference.
    """
    if real is None or sampled is None:
        return None
    from scipy.stats import wasserstein_distance

    def distance(weights: Vector) -> float:
        return float(wasserstein_distance(real, sampled, weights, weights))

    return bootstrap.statistic(distance)


def _exact_match(
    bootstrap: Bootstrap,
    real: Sequence[str],
    sampled: Sequence[str],
    stopped: Sequence[bool] | None,
    answer: str | None,
) -> Estimate | None:
    """Return the share of right final answers; a response that did not stop has none."""
    if answer is None:
        return None
    pattern = compile_answer(answer)
    wanted = [final_answer(text, pattern) for text in real]
    if not any(wanted):
        return None
    ended = [True] * len(real) if stopped is None else stopped
    right = [
        bool(truth) and stop and final_answer(text, pattern) == truth
        for truth, text, stop in zip(wanted, sampled, ended, strict=True)
    ]
    return bootstrap.ratio(np.asarray(right, np.float64), [float(bool(w)) for w in wanted])
