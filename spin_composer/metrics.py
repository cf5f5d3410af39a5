"""Metrics of training, logged as ``metrics/train/<class name>``: one registered class each.

Also the metrics of held-out rows, by Composer's and llm-foundry's names.

Rewards are r = beta * (policy - opponent) of a response's sum. Dimensions: B pairs; column 0 of a
[B, 2] tensor is the real side, or the better one of a pair without it, column 1 the generated one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import composer.metrics
import torch
from torch import Tensor
from torchmetrics import Metric
from typing_extensions import override

from spin_composer.errors import already_registered
from spin_composer.loss import PairLoss
from spin_composer.pair_kinds import REAL_KINDS, PairKind


class PairMetric(Metric, ABC):
    """The mean over pairs (or over sides) of one number; exact over ranks and microbatches."""

    unit: ClassVar[str]
    """Unit of the value, for docs/metrics.md."""
    nemo_aligner: ClassVar[str | None] = None
    """Name of the metric in NeMo-Aligner's SPIN, if it exists there."""
    kinds: ClassVar[tuple[PairKind, ...]] = REAL_KINDS
    """The kinds of pairs that are averaged over: those with a real response."""
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

    def update(
        self,
        policy: Tensor,
        opponent: Tensor,
        lengths: Tensor,
        loss: PairLoss,
        kinds: Sequence[int] = (),
    ) -> None:
        """Add a batch.

        Args:
            policy: [B, 2] the policy's sums.
            opponent: [B, 2] the opponent's sums.
            lengths: [B, 2] numbers of scored tokens.
            loss: the iteration's loss, which has beta and the normalization.
            kinds: [B] the kinds of the pairs; all ``NEWEST`` unless given.
        """
        policy = policy.detach()
        kinds = kinds or [PairKind.NEWEST] * len(policy)
        counted = [i for i, kind in enumerate(kinds) if kind in self.kinds]
        if len(counted) < len(kinds):
            rows = torch.tensor(counted, dtype=torch.long, device=policy.device)
            policy, opponent, lengths = policy[rows], opponent[rows], lengths[rows]
        values = self.values(policy, loss.rewards(policy, opponent, lengths)).double()
        self.total += values.sum().to(self.total.device)
        self.count += values.numel()

    def compute(self) -> Tensor:
        """Return the mean, fp32; nan before the first pair."""
        return (self.total / self.count).float()


PAIR_METRICS: list[type[PairMetric]] = []
"""Every metric of training; :func:`register_pair_metric` adds. The models compute them all."""

_Metric = TypeVar("_Metric", bound=type[PairMetric])


def register_pair_metric(cls: _Metric) -> _Metric:
    """Make a class a metric of training; the first line of its docstring is what the docs say.

    llm-foundry finds it under the entry point ``llmfoundry_metrics`` of pyproject.toml, which a
    test compares with :data:`PAIR_METRICS`.

    Raises:
        ValueError: The name belongs to another metric.
    """
    if cls.__name__ in {metric.__name__ for metric in PAIR_METRICS}:
        raise already_registered(f"the metric {cls.__name__}")
    PAIR_METRICS.append(cls)
    return cls


@register_pair_metric
class SpinAccuracy(PairMetric):
    """Share of pairs whose real reward is above the generated one; a tie counts as a miss."""

    unit = "fraction"
    nemo_aligner = "acc"

    @override
    def values(self, policy: Tensor, rewards: Tensor) -> Tensor:
        return rewards[:, 0] > rewards[:, 1]


@register_pair_metric
class SpinRewardReal(PairMetric):
    """Mean reward beta * (policy - opponent) of the real responses."""

    unit = "nats times beta"
    nemo_aligner = "rewards_actual_mean"

    @override
    def values(self, policy: Tensor, rewards: Tensor) -> Tensor:
        return rewards[:, 0]


@register_pair_metric
class SpinRewardGenerated(PairMetric):
    """Mean reward of the generated responses."""

    unit = "nats times beta"
    nemo_aligner = "rewards_generated_mean"

    @override
    def values(self, policy: Tensor, rewards: Tensor) -> Tensor:
        return rewards[:, 1]


@register_pair_metric
class SpinMargin(PairMetric):
    """Mean of real reward minus generated reward."""

    unit = "nats times beta"

    @override
    def values(self, policy: Tensor, rewards: Tensor) -> Tensor:
        return rewards[:, 0] - rewards[:, 1]


@register_pair_metric
class SpinRewardMean(PairMetric):
    """Mean reward of all responses, real and generated."""

    unit = "nats times beta"
    nemo_aligner = "rewards_all_mean"

    @override
    def values(self, policy: Tensor, rewards: Tensor) -> Tensor:
        return rewards


@register_pair_metric
class SpinRewardStd(PairMetric):
    """Standard deviation of all responses' rewards (of the population: divided by n)."""

    unit = "nats times beta"
    nemo_aligner = "rewards_all_std"
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


@register_pair_metric
class SpinLogpsReal(PairMetric):
    """Mean over pairs of the policy's log-prob sum of the real response."""

    unit = "nats"

    @override
    def values(self, policy: Tensor, rewards: Tensor) -> Tensor:
        return policy[:, 0]


@register_pair_metric
class SpinLogpsGenerated(PairMetric):
    """Mean over pairs of the policy's log-prob sum of the generated response."""

    unit = "nats"

    @override
    def values(self, policy: Tensor, rewards: Tensor) -> Tensor:
        return policy[:, 1]


class SpinAccuracyNewest(SpinAccuracy):
    """``SpinAccuracy`` of the pairs with a response of the iteration's opponent."""

    kinds = (PairKind.NEWEST,)


class SpinAccuracyEarlier(SpinAccuracy):
    """``SpinAccuracy`` of the pairs with a response of an earlier opponent."""

    kinds = (PairKind.EARLIER,)


class SpinAccuracyBetween(SpinAccuracy):
    """Share of pairs of two generated responses whose newest one has the higher reward."""

    kinds = (PairKind.BETWEEN,)


class SpinMarginNewest(SpinMargin):
    """``SpinMargin`` of the pairs with a response of the iteration's opponent."""

    kinds = (PairKind.NEWEST,)


class SpinMarginEarlier(SpinMargin):
    """``SpinMargin`` of the pairs with a response of an earlier opponent."""

    kinds = (PairKind.EARLIER,)


class SpinMarginBetween(SpinMargin):
    """Mean of the newest response's reward minus the earlier one's, of pairs of the two."""

    kinds = (PairKind.BETWEEN,)


KIND_METRICS: tuple[type[PairMetric], ...] = (
    SpinAccuracyNewest,
    SpinAccuracyEarlier,
    SpinAccuracyBetween,
    SpinMarginNewest,
    SpinMarginEarlier,
    SpinMarginBetween,
)
"""Metrics of pairs of several kinds, besides :data:`PAIR_METRICS`; nan for a batch without them."""
GAME_METRICS: dict[str, tuple[type[PairMetric], ...]] = {"ditto": KIND_METRICS}
"""The further metrics of a game, by its name in the settings."""


@dataclass(frozen=True)
class TokenScores:
    """What metrics of held-out rows need to know about N tokens, instead of logits [N, V]."""

    logps: Tensor
    """fp32 [N], in nats."""
    hits: Tensor
    """bool [N]: whether the token is the argmax."""


class LanguageCrossEntropy(composer.metrics.LanguageCrossEntropy):
    """Mean negative log-prob of the tokens of held-out rows, in nats, as Composer's metric."""

    @override
    def update(self, output: Mapping | Tensor | TokenScores, target: Tensor | None) -> None:
        """Add a batch: its logits [B, T, V] and labels [B, T], or its scores alone."""
        if not isinstance(output, TokenScores):
            assert target is not None
            super().update(output, target)
            return
        self.sum_loss -= output.logps.sum()
        self.total_items += output.logps.numel()


class LanguagePerplexity(LanguageCrossEntropy):
    """exp of :class:`LanguageCrossEntropy`."""

    @override
    def compute(self) -> Tensor:
        return super().compute().exp()


class TokenAccuracy(Metric):
    """Share of the tokens of held-out rows that the model predicts, as llm-foundry's metric.

    Args:
        ignore_index: The label of positions that are not counted.
    """

    full_state_update = False
    correct_tokens: Tensor
    total_tokens: Tensor

    def __init__(self, ignore_index: int = -100, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ignore_index = ignore_index
        for name in ("correct_tokens", "total_tokens"):
            self.add_state(name, default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, logits: Tensor | TokenScores, labels: Tensor | None) -> None:
        """Add a batch: logits [..., V] and the labels [...] of the same positions, or scores."""
        if isinstance(logits, TokenScores):
            self.correct_tokens += logits.hits.sum()
            self.total_tokens += logits.hits.numel()
            return
        assert labels is not None
        counted = labels != self.ignore_index
        self.correct_tokens += (logits.argmax(-1)[counted] == labels[counted]).sum()
        self.total_tokens += counted.sum()

    def compute(self) -> Tensor:
        """Return the share over all ranks, fp32; nan before the first batch."""
        return self.correct_tokens.float() / self.total_tokens


HELD_OUT_METRICS = (LanguageCrossEntropy, LanguagePerplexity, TokenAccuracy)
"""The metrics that take :class:`TokenScores`."""
