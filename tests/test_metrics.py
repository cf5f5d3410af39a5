"""The pair metrics against numbers made by hand."""

from __future__ import annotations

import pytest
import torch

from spin_composer.loss import PairLoss
from spin_composer.metrics import PAIR_METRICS, PairMetric, SpinRewardStd

BETA = 0.5
POLICY = torch.tensor([[-4.0, -9.0], [-6.0, -5.0], [-3.0, -3.0]])
OPPONENT = torch.tensor([[-6.0, -7.0], [-6.0, -7.0], [-4.0, -4.0]])
LENGTHS = torch.tensor([[2, 3], [2, 4], [1, 1]])
# rewards: [1, -1], [0, 1], [0.5, 0.5]
EXPECTED = {
    "SpinAccuracy": 1 / 3,  # the tie of the third pair is a miss
    "SpinRewardReal": 0.5,
    "SpinRewardGenerated": 0.5 / 3,
    "SpinMargin": 1 / 3,
    "SpinRewardMean": 1 / 3,
    "SpinRewardStd": torch.tensor([1, -1, 0, 1, 0.5, 0.5]).std(correction=0).item(),
    "SpinLogpsReal": -13 / 3,
    "SpinLogpsGenerated": -17 / 3,
}


@pytest.mark.parametrize("metric", PAIR_METRICS)
def test_metric_equals_its_definition_over_uneven_microbatches(metric: type[PairMetric]) -> None:
    whole, parts = metric(), metric()
    loss = PairLoss("logistic", BETA)
    whole.update(POLICY, OPPONENT, LENGTHS, loss)
    for rows in (slice(0, 1), slice(1, 3)):
        parts.update(POLICY[rows].requires_grad_(), OPPONENT[rows], LENGTHS[rows], loss)
    assert whole.compute().item() == pytest.approx(EXPECTED[metric.__name__], abs=1e-6)
    assert parts.compute().item() == pytest.approx(EXPECTED[metric.__name__], abs=1e-6)
    assert not parts.compute().requires_grad
    assert parts.compute().dtype == torch.float32
    parts.reset()
    assert parts.compute().isnan()


def test_rewards_follow_the_losss_normalisation() -> None:
    metric = SpinRewardStd()
    metric.update(POLICY, OPPONENT, LENGTHS, PairLoss("logistic", BETA, length_normalised=True))
    rewards = BETA * (POLICY - OPPONENT) / LENGTHS
    assert metric.compute().item() == pytest.approx(rewards.std(correction=0).item(), abs=1e-6)


def test_every_metric_named_in_the_list_has_an_expected_value() -> None:
    assert {metric.__name__ for metric in PAIR_METRICS} == set(EXPECTED)
