"""The pair metrics against numbers made by hand."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from spin_composer.loss import PairLoss
from spin_composer.metrics import (
    KIND_METRICS,
    PAIR_METRICS,
    PairMetric,
    SpinAccuracyBetween,
    SpinRewardStd,
    register_pair_metric,
)
from spin_composer.model.lm import HFSpinLM
from spin_composer.pair_kinds import PairKind
from tests.fixtures.models import pair_batch, tiny_model
from tests.fixtures.tokenizers import byte_level

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

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


KINDS = [PairKind.EARLIER, PairKind.BETWEEN, PairKind.NEWEST]
OF_KINDS = {
    "SpinAccuracyEarlier": 1.0,
    "SpinAccuracyBetween": 0.0,
    "SpinAccuracyNewest": 0.0,
    "SpinMarginEarlier": 2.0,
    "SpinMarginBetween": -1.0,
    "SpinMarginNewest": 0.0,
}


@pytest.mark.parametrize("metric", PAIR_METRICS)
def test_metrics_are_those_of_the_pairs_with_a_real_response(metric: type[PairMetric]) -> None:
    loss = PairLoss("logistic", BETA)
    found, wanted = metric(), metric()
    found.update(POLICY, OPPONENT, LENGTHS, loss, KINDS)
    real = [0, 2]
    wanted.update(POLICY[real], OPPONENT[real], LENGTHS[real], loss)
    assert found.compute() == wanted.compute()
    of_none = metric()
    of_none.update(POLICY[1:2], OPPONENT[1:2], LENGTHS[1:2], loss, KINDS[1:2])
    assert of_none.compute().isnan()


@pytest.mark.parametrize("metric", KIND_METRICS)
def test_a_metric_of_a_kind_is_that_of_its_pairs_alone(metric: type[PairMetric]) -> None:
    found = metric()
    for row in range(3):
        found.update(
            POLICY[row : row + 1],
            OPPONENT[row : row + 1],
            LENGTHS[row : row + 1],
            PairLoss("logistic", BETA),
            KINDS[row : row + 1],
        )
    assert found.compute().item() == OF_KINDS[metric.__name__]
    assert {one.__name__ for one in KIND_METRICS} == set(OF_KINDS)


def test_pairs_whose_kinds_are_not_given_are_real_over_newest() -> None:
    metric = SpinAccuracyBetween()
    metric.update(POLICY, OPPONENT, LENGTHS, PairLoss("logistic", BETA))
    assert metric.compute().isnan()


def test_rewards_follow_the_losss_normalization() -> None:
    metric = SpinRewardStd()
    metric.update(POLICY, OPPONENT, LENGTHS, PairLoss("logistic", BETA, length_normalised=True))
    rewards = BETA * (POLICY - OPPONENT) / LENGTHS
    assert metric.compute().item() == pytest.approx(rewards.std(correction=0).item(), abs=1e-6)


def test_every_metric_named_in_the_list_has_an_expected_value() -> None:
    assert {metric.__name__ for metric in PAIR_METRICS} == set(EXPECTED)


def test_llm_foundry_is_told_of_every_metric() -> None:
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    declared = tomllib.loads(text)["project"]["entry-points"]["llmfoundry_metrics"]
    registered = {
        re.sub("(?<!^)([A-Z])", r"_\1", name).lower(): f"spin_composer.metrics:{name}"
        for name in (metric.__name__ for metric in PAIR_METRICS)
    }
    assert declared == registered


@pytest.fixture
def registry() -> Iterator[list]:
    """The registry of metrics, which is as before afterward."""
    before = list(PAIR_METRICS)
    yield PAIR_METRICS
    PAIR_METRICS[:] = before


def test_a_metric_is_one_registered_class(registry: list) -> None:
    @register_pair_metric
    class LargerReward(PairMetric):
        """Mean of the larger reward of a pair."""

        unit = "nats times beta"

        def values(self, policy: Tensor, rewards: Tensor) -> Tensor:
            return rewards.amax(1)

    tokenizer = byte_level()
    model = HFSpinLM.from_model(tiny_model("llama", vocab_size=len(tokenizer)), tokenizer)
    model.pair_loss = PairLoss("logistic", BETA)
    metric = model.get_metrics(is_train=True)["LargerReward"]
    batch = pair_batch(3)
    outputs = model(batch)
    model.update_metric(batch, outputs, metric)
    rewards = model.pair_loss.rewards(
        outputs["policy_logps"], batch["opponent_logps"], outputs["lengths"]
    )
    assert metric.compute().item() == pytest.approx(rewards.amax(1).mean().item())
    with pytest.raises(ValueError, match="LargerReward is registered already"):
        register_pair_metric(LargerReward)
