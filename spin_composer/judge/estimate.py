"""Estimates with intervals: a bootstrap over prompts, the same one for every model.

Rows are grouped by prompt, and whole prompts are drawn: responses to the same prompt are not
independent. The draws depend on the number of prompts and the seed alone, so the replicates of two
models that answered the same prompts are paired, and so is the interval of their difference.

Dimensions: n rows, P prompts, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

CONFIDENCE = 0.95
"""Of every interval."""


@dataclass(frozen=True)
class Estimate:
    """A value with its percentile interval and standard error, by a bootstrap over prompts."""

    value: float
    low: float
    """Lower end of the 95% interval."""
    high: float
    """Upper end of the 95% interval."""
    standard_error: float
    replicates: Vector = field(repr=False, compare=False)
    """[R], the value of each resample."""

    @classmethod
    def of(cls, value: float, replicates: Vector) -> Estimate:
        """Return the estimate of a value and its replicates [R]; those that are nan are left out.

        A resample without any row that counts has no value.
        """
        tail = 50 * (1 - CONFIDENCE)
        known = replicates[~np.isnan(replicates)]
        if not len(known):
            known = np.full(1, np.nan)
        low, high = np.percentile(known, [tail, 100 - tail])
        error = float(np.std(known, ddof=1)) if len(known) > 1 else 0.0
        return cls(float(value), float(low), float(high), error, replicates)

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
        return Estimate.of(self.value - other.value, self.replicates - other.replicates)

    def at_least(self, floor: float) -> Estimate:
        """Return the estimate of the larger of the value and ``floor``."""
        return Estimate.of(max(self.value, floor), np.maximum(self.replicates, floor))

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
        return Estimate.of(value, replicates)

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
        return Estimate.of(whole, np.asarray(replicates))
