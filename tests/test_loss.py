"""The losses against the formulas, written out once more here in plain Python."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from spin_composer.errors import InputError
from spin_composer.loss import LOSSES, PairLoss, margin, nll_anchor, register_loss
from spin_composer.settings.spin import SpinSettings

B = 6
FORMULAS: dict[str, Callable[[float, float], float]] = {
    "logistic": lambda m, beta: -math.log(1 / (1 + math.exp(-m))),
    "hinge": lambda m, beta: max(0.0, 1 - m),
    "squared": lambda m, beta: (m / beta - 1 / (2 * beta)) ** 2,
}
"""Of every loss: its value from the margin m and beta."""


def sums(seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Return policy [B, 2], opponent [B, 2] and lengths [B, 2]."""
    rng = torch.Generator().manual_seed(seed)
    policy = -30 * torch.rand(B, 2, generator=rng, dtype=dtype)
    opponent = policy + 3 * torch.randn(B, 2, generator=rng, dtype=dtype)
    return policy, opponent, torch.randint(1, 20, (B, 2), generator=rng)


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("beta", [0.1, 1.0, 5.0])
def test_loss_equals_its_formula(kind: str, beta: float) -> None:
    policy, opponent, lengths = sums()
    loss = PairLoss(kind, beta)(policy, opponent, lengths)
    assert loss.shape == (B,)
    assert loss.dtype == torch.float32
    for i in range(B):
        real, generated = ((policy - opponent) * beta)[i].tolist()
        expected = FORMULAS[kind](real - generated, beta)
        assert loss[i].item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("kind", LOSSES)
def test_length_normalization_divides_each_side_by_its_length_first(kind: str) -> None:
    policy, opponent, lengths = sums()
    loss = PairLoss(kind, 0.7, length_normalised=True)
    by_hand = PairLoss(kind, 0.7)(policy / lengths, opponent / lengths, lengths)
    torch.testing.assert_close(loss(policy, opponent, lengths), by_hand)
    expected = 0.7 * (policy / lengths - opponent / lengths)
    torch.testing.assert_close(loss.rewards(policy, opponent, lengths), expected)


def test_nll_anchor_adds_the_real_sides_loss_per_token() -> None:
    policy, opponent, lengths = sums()
    plain = PairLoss("logistic", 0.1)(policy, opponent, lengths)
    anchored = PairLoss("logistic", 0.1, nll_weight=0.3)(policy, opponent, lengths)
    expected = 0.3 * (-policy[:, 0] / lengths[:, 0])
    torch.testing.assert_close(anchored - plain, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(nll_anchor(policy[:, 0], lengths[:, 0], 0.3), expected)
    both = PairLoss("logistic", 0.1, nll_weight=0.3, length_normalised=True)
    normal = PairLoss("logistic", 0.1, length_normalised=True)
    torch.testing.assert_close(
        both(policy, opponent, lengths) - normal(policy, opponent, lengths), expected
    )


@pytest.mark.parametrize("beta", [0.1, 5.0])
def test_loss_is_log_two_where_policy_equals_opponent(beta: float) -> None:
    policy, _, lengths = sums()
    loss = PairLoss("logistic", beta)
    assert torch.equal(loss(policy, policy, lengths), torch.full((B,), math.log(2)))
    assert (loss.rewards(policy, policy, lengths) == 0).all()


@pytest.mark.parametrize("kind", LOSSES)
def test_gradients_are_right(kind: str) -> None:
    policy, opponent, lengths = sums(dtype=torch.float64)
    policy.requires_grad_()
    for normalized in (False, True):
        loss = PairLoss(kind, 0.5, nll_weight=0.2, length_normalised=normalized)
        assert torch.autograd.gradcheck(lambda p, f=loss: f(p, opponent, lengths), policy)


def test_gradient_at_the_start_is_half_beta_on_each_side() -> None:
    policy, _, lengths = sums()
    leaf = policy.clone().requires_grad_()
    PairLoss("logistic", 0.4)(leaf, policy, lengths).sum().backward()
    expected = torch.tensor([-0.2, 0.2]).expand(B, 2)
    torch.testing.assert_close(leaf.grad, expected)


def test_large_margins_stay_finite() -> None:
    policy = torch.tensor([[0.0, -1e4], [-1e4, 0.0]], requires_grad=True)
    loss = PairLoss("logistic", 1.0)(policy, torch.zeros(2, 2), torch.ones(2, 2))
    assert loss.tolist() == [0.0, 1e4]
    loss.sum().backward()
    assert policy.grad is not None
    assert policy.grad.isfinite().all()


def test_empty_response_does_not_make_the_normalized_loss_nan() -> None:
    zero = torch.zeros(1, 2)
    loss = PairLoss("logistic", 1.0, nll_weight=1.0, length_normalised=True)
    assert loss(zero, zero, zero.long()).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "dpo"}, "kind='dpo'.*logistic"),
        ({"beta": 0.0}, "beta=0.0"),
        ({"beta": math.nan}, "beta=nan"),
        ({"nll_weight": -1.0}, "nll_weight=-1.0"),
    ],
)
def test_impossible_setting_is_named(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        PairLoss(**{"kind": "logistic", "beta": 0.1, **settings})


@pytest.fixture
def registry() -> Iterator[dict]:
    """The registry of losses, which is as before afterward."""
    before = dict(LOSSES)
    yield LOSSES
    LOSSES.clear()
    LOSSES.update(before)


def test_a_loss_is_one_registered_function(registry: dict) -> None:
    @register_loss("margin")
    def margin_loss(
        policy_real: Tensor, policy_generated: Tensor,
        opponent_real: Tensor, opponent_generated: Tensor, beta: float,
    ) -> Tensor:  # fmt: skip
        """Return -m of each pair."""
        return -margin(policy_real, policy_generated, opponent_real, opponent_generated, beta)

    policy, opponent, lengths = sums()
    settings = SpinSettings(loss="margin")
    rewards = PairLoss("logistic", 0.3).rewards(policy, opponent, lengths)
    loss = PairLoss(settings.loss, 0.3)(policy, opponent, lengths)
    torch.testing.assert_close(loss, rewards[:, 1] - rewards[:, 0])
    with pytest.raises(InputError, match="logistic, hinge, squared, margin"):
        SpinSettings(loss="margins")
    with pytest.raises(ValueError, match="'margin' is registered already"):
        register_loss("margin")(margin_loss)
