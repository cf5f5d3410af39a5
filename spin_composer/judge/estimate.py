"""Estimates with intervals: a bootstrap over prompts, the same one for every model.

Rows are grouped by prompt, and whole prompts are drawn: responses to the same prompt are not
independent. The draws depend on the number of prompts and the seed alone, so the replicates of two
models that answered the same prompts are paired, and so is the interval of their difference.

The replicates of P prompts spread less than the estimate does, by sqrt((P - 1) / P), and the
normal's quantiles are narrower than Student's t. Intervals are expanded for both (Hesterberg, arXiv
1411.5279, "expanded percentile interval"): without it those of ten prompts would miss the mean of a
normal distribution twice as often as they say.

Dimensions: n rows, P prompts, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

CONFIDENCE = 0.95
"""Of every interval."""


@dataclass(frozen=True)
class Estimate:
    """A value with its expanded percentile interval and standard error, by a bootstrap."""

    value: float
    low: float
    """Lower end of the 95% interval."""
    high: float
    """Upper end of the 95% interval."""
    standard_error: float
    replicates: Vector = field(repr=False, compare=False)
    """[R], the value of each resample."""
    prompts: int = field(compare=False)
    """P, that the resamples were drawn from."""

    @classmethod
    def of(cls, value: float, replicates: Vector, prompts: int) -> Estimate:
        """Return the estimate of a value, its replicates [R] and the number of prompts P.

        Replicates that are nan are left out: a resample without any row that counts has no value.
        """
        known = replicates[~np.isnan(replicates)]
        if not len(known):
            known = np.full(1, np.nan)
        tail = 100 * expanded_tail(prompts)
        low, high = np.percentile(known, [tail, 100 - tail])
        error = float(np.std(known, ddof=1)) if len(known) > 1 else 0.0
        return cls(
            float(value), float(low), float(high), error * _stretch(prompts), replicates, prompts
        )

    def minus(self, other: Estimate) -> Estimate:
        """Return the paired difference from another estimate of the same prompts and seed.

        Raises:
            ValueError: If the other has another number of resamples.
        """
        if self.replicates.shape != other.replicates.shape:
            raise ValueError(
                f"estimates of {len(self.replicates)} and {len(other.replicates)} resamples are "
                "not paired. Measure both with the same settings."
            )
        gaps = self.replicates - other.replicates
        return Estimate.of(self.value - other.value, gaps, self.prompts)

    def at_least(self, floor: float) -> Estimate:
        """Return the estimate of the larger of the value and ``floor``."""
        return Estimate.of(max(self.value, floor), np.maximum(self.replicates, floor), self.prompts)

    def widened(self, factor: float) -> Estimate:
        """Return the estimate with an interval and standard error ``factor`` times as wide."""
        spread = self.value + factor * (self.replicates - self.value)
        return Estimate.of(self.value, spread, self.prompts)

    def as_json(self) -> dict[str, float | None]:
        """Return value, interval and standard error; null, which JSON has, in place of nan."""
        found = {
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "standard_error": self.standard_error,
        }
        return {name: None if np.isnan(number) else number for name, number in found.items()}


class Bootstrap:
    """Resamples of the prompts of a set of rows.

    Args:
        groups: [n] int, each row's prompt, from 0 to P - 1.
        resamples: Number of resamples R.
        seed: Of the draws.
    """

    def __init__(self, groups: NDArray[np.int64], resamples: int = 1000, seed: int = 0) -> None:
        self.groups = groups
        self.num_prompts = int(groups.max()) + 1
        random = np.random.default_rng(seed)
        draws = (random.integers(self.num_prompts, size=self.num_prompts) for _ in range(resamples))
        counts = [np.bincount(draw, minlength=self.num_prompts) for draw in draws]
        self._counts: Vector = np.asarray(counts, dtype=np.float64)  # [R, P]

    def ratio(
        self, totals: Sequence[float] | Vector, weights: Sequence[float] | Vector
    ) -> Estimate:
        """Return the estimate of ``sum(totals) / sum(weights)``.

        Args:
            totals: [n].
            weights: [n]; if all are zero, the value is nan.
        """
        total = np.bincount(self.groups, np.asarray(totals, np.float64), self.num_prompts)
        weight = np.bincount(self.groups, np.asarray(weights, np.float64), self.num_prompts)
        with np.errstate(invalid="ignore", divide="ignore"):
            replicates = (self._counts @ total) / (self._counts @ weight)
            value = total.sum() / weight.sum()
        return Estimate.of(value, replicates, self.num_prompts)

    def mean(self, values: Sequence[float] | Vector) -> Estimate:
        """Return the estimate of the mean of values [n]."""
        return self.ratio(values, np.ones(len(values)))

    def statistic(self, value: Callable[[Vector], float]) -> Estimate:
        """Return the estimate of any statistic of weighted rows.

        Args:
            value: Returns the statistic, given the weight of each row [n].
        """
        whole = value(np.ones(len(self.groups)))
        replicates = [value(counts[self.groups]) for counts in self._counts]
        return Estimate.of(whole, np.asarray(replicates), self.num_prompts)


def expanded_tail(prompts: int) -> float:
    """Return the share of replicates beyond each end of an interval, of P prompts.

    Phi(-sqrt(P / (P - 1)) t), t being Student's quantile of P - 1 degrees of freedom; it comes
    near to half of 1 - :data:`CONFIDENCE` as P grows.
    """
    from scipy.stats import norm, t

    if prompts < 2:
        return (1 - CONFIDENCE) / 2
    quantile = float(t.ppf((1 + CONFIDENCE) / 2, prompts - 1))
    return float(norm.cdf(-quantile * _stretch(prompts)))


def _stretch(prompts: int) -> float:
    return math.sqrt(prompts / (prompts - 1)) if prompts > 1 else 1.0
