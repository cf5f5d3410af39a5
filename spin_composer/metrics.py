"""Metrics of a SPIN run, logged as ``metrics/train/<class name>``.

Rewards are r = beta * (policy - opponent) of a response's sum. Dimensions: B pairs; column 0 of a
[B, 2] tensor is the real side, column 1 the generated one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from typing_extensions import override

from spin_composer.loss import PairLoss


class PairMetric(Metric, ABC):
    """The mean over pairs (or over sides) of one number; exact over ranks and microbatches."""

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        zero = torch.zeros((), dtype=torch.float64)
        self.add_state("total", default=zero, dist_reduce_fx="sum")
        self.add_state("count", default=zero.clone(), dist_reduce_fx="sum")

    @abstractmethod
    def values(self, policy: Tensor, rewards: Tensor) -> Tensor:
        """Return the numbers to average, of the policy's sums [B, 2] and the rewards [B, 2]."""

    def update(self, policy: Tensor, opponent: Tensor, lengths: Tensor, loss: PairLoss) -> None:
        """Take in a batch.

        Args:
            policy: [B, 2] the policy's sums.
            opponent: [B, 2] the opponent's sums.
            lengths: [B, 2] numbers of scored tokens.
            loss: the iteration's loss, which knows beta and the normalisation.
        """
        policy = policy.detach()
        values = self.values(policy, loss.rewards(policy, opponent, lengths)).double()
        self.total += values.sum().to(self.total.device)
        self.count += values.numel()

    def compute(self) -> Tensor:
        """Return the mean, fp32; nan before the first batch."""
        return (self.total / self.count).float()


class SpinAccuracy(PairMetric):
    """Share of pairs whose real reward is above the generated one; a tie counts as a miss."""

    @override
    def values(self, policy: Tensor, rewards: Tensor) -> Tensor:
        return rewards[:, 0] > rewards[:, 1]


class SpinRewardReal(PairMetric):
    """Mean reward of the real responses."""

    @override
    def values(self, policy: Tensor, rewards: Tensor) -> Tensor:
        return rewards[:, 0]


class SpinRewardGenerated(PairMetric):
    """Mean reward of the generated responses."""

    @override
    def values(self, policy: Tensor, rewards: Tensor) -> Tensor:
        return rewards[:, 1]


class SpinMargin(PairMetric):
    """Mean of real reward minus generated reward."""

    @override
    def values(self, policy: Tensor, rewards: Tensor) -> Tensor:
        return rewards[:, 0] - rewards[:, 1]


class SpinRewardMean(PairMetric):
    """Mean reward of all responses, real and generated."""

    @override
    def values(self, policy: Tensor, rewards: Tensor) -> Tensor:
        return rewards


class SpinRewardStd(PairMetric):
    """Standard deviation of all responses' rewards (of the population: divided by n)."""

    squares: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        zero = torch.zeros((), dtype=torch.float64)
        self.add_state("squares", default=zero, dist_reduce_fx="sum")

    @override
    def values(self, policy: Tensor, rewards: Tensor) -> Tensor:
        self.squares += rewards.double().square().sum().to(self.squares.device)
        return rewards

    @override
    def compute(self) -> Tensor:
        mean = self.total / self.count
        return (self.squares / self.count - mean.square()).clamp_min(0).sqrt().float()


class SpinLogpsReal(PairMetric):
    """Mean over pairs of the policy's log-prob sum of the real response."""

    @override
    def values(self, policy: Tensor, rewards: Tensor) -> Tensor:
        return policy[:, 0]


class SpinLogpsGenerated(PairMetric):
    """Mean over pairs of the policy's log-prob sum of the generated response."""

    @override
    def values(self, policy: Tensor, rewards: Tensor) -> Tensor:
        return policy[:, 1]


PAIR_METRICS: tuple[type[PairMetric], ...] = (
    SpinAccuracy,
    SpinRewardReal,
    SpinRewardGenerated,
    SpinMargin,
    SpinRewardMean,
    SpinRewardStd,
    SpinLogpsReal,
    SpinLogpsGenerated,
)
