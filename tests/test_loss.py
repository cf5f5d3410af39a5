"""The losses against the formulas, written out once more here in plain Python."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from spin_composer.errors import InputError
from spin_composer.loss import (
    LOSSES,
    REAL_ONLY,
    PairLoss,
    loss_parameters,
    margin,
    nll_anchor,
    register_loss,
)
from spin_composer.settings.spin import SpinSettings

B = 6


def sigmoid(x: float, mu: float = 1.0) -> float:
    """Return s_mu(x) = 1 / (1 + mu exp(-x))."""
    return 1 / (1 + mu * math.exp(-x))


FORMULAS: dict[str, Callable[..., float]] = {
    "logistic": lambda real, generated, beta: -math.log(sigmoid(beta * (real - generated))),
    "hinge": lambda real, generated, beta: max(0.0, 1 - beta * (real - generated)),
    "squared": lambda real, generated, beta: (real - generated - 1 / (2 * beta)) ** 2,
    "space": lambda real, generated, space_mu: (
        -math.log(sigmoid(real, space_mu)) - space_mu * math.log(sigmoid(-generated, 1 / space_mu))
    ),
    "dpop": lambda real, generated, beta, dpop_lambda: (
        -math.log(sigmoid(beta * (real - generated - dpop_lambda * max(0.0, -real))))
    ),
}
"""Of every loss: its value from policy - opponent of both sides and its parameters."""

PARAMETERS: dict[str, float] = {"beta": 0.7, "space_mu": 3.0, "dpop_lambda": 5.0}
STARTS: dict[str, float] = {
    "logistic": math.log(2),
    "hinge": 1.0,
    "squared": 1 / (4 * 0.7**2),
    "space": math.log(4) + 3 * math.log(4 / 3),
    "dpop": math.log(2),
}
"""Of every loss with PARAMETERS: its value where policy equals opponent."""


def made(kind: str, /, **options: Any) -> PairLoss:
    """Return a loss with PARAMETERS, or what is given in their place."""
    given = {name: options.pop(name, PARAMETERS[name]) for name in loss_parameters(kind)}
    return PairLoss(kind, given.pop("beta", None), parameters=given, **options)


def sums(seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Return policy [B, 2], opponent [B, 2] and lengths [B, 2]."""
    rng = torch.Generator().manual_seed(seed)
    policy = -30 * torch.rand(B, 2, generator=rng, dtype=dtype)
    opponent = policy + 3 * torch.randn(B, 2, generator=rng, dtype=dtype)
    return policy, opponent, torch.randint(1, 20, (B, 2), generator=rng)


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize(
    "given",
    [
        {"beta": 0.1, "space_mu": 0.25, "dpop_lambda": 0.0},
        {"beta": 1.0, "space_mu": 1.0, "dpop_lambda": 5.0},
        {"beta": 5.0, "space_mu": 7.0, "dpop_lambda": 50.0},
    ],
    ids=["small", "one", "large"],
)
def test_loss_equals_its_formula(kind: str, given: dict[str, float]) -> None:
    own = {name: given[name] for name in loss_parameters(kind)}
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        policy, opponent, lengths = sums(dtype=dtype)
        loss = made(kind, **own)(policy, opponent, lengths)
        assert loss.shape == (B,)
        assert loss.dtype == dtype
        for i in range(B):
            real, generated = (policy - opponent)[i].tolist()
            if kind == "dpop" and given["beta"] * given["dpop_lambda"] * max(0, -real) > 500:
                continue  # exp overflows in the plain formula
            expected = FORMULAS[kind](real, generated, **own)
            assert loss[i].item() == pytest.approx(expected, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("kind", LOSSES)
def test_length_normalization_divides_each_side_by_its_length_first(kind: str) -> None:
    policy, opponent, lengths = sums()
    loss = made(kind, length_normalised=True)
    by_hand = made(kind)(policy / lengths, opponent / lengths, lengths)
    torch.testing.assert_close(loss(policy, opponent, lengths), by_hand)
    beta = 0.7 if "beta" in loss_parameters(kind) else 1.0
    expected = beta * (policy / lengths - opponent / lengths)
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


@pytest.mark.parametrize("normalized", [False, True])
def test_the_nll_anchor_leaves_out_pairs_whose_better_response_is_generated(
    normalized: bool,
) -> None:
    policy, opponent = torch.randn(4, 2, requires_grad=True), torch.randn(4, 2)
    lengths, is_real = torch.full((4, 2), 3), torch.tensor([True, False, True, False])
    plain = PairLoss("logistic", 0.1, length_normalised=normalized)(policy, opponent, lengths)
    loss = PairLoss("logistic", 0.1, nll_weight=0.3, length_normalised=normalized)
    everywhere = loss(policy, opponent, lengths)
    found = loss(policy, opponent, lengths, is_real)
    assert torch.equal(found[is_real], everywhere[is_real])
    assert torch.equal(found[~is_real], plain[~is_real])
    (gradient,) = torch.autograd.grad(found[~is_real].sum(), policy, retain_graph=True)
    (without,) = torch.autograd.grad(plain[~is_real].sum(), policy)
    assert torch.equal(gradient, without)


def test_the_losses_that_need_a_real_response_are_those_of_one_side() -> None:
    assert {name for name in LOSSES if name in REAL_ONLY} == {"space"}


@pytest.mark.parametrize("beta", [0.1, 5.0])
def test_loss_is_log_two_where_policy_equals_opponent(beta: float) -> None:
    policy, _, lengths = sums()
    loss = PairLoss("logistic", beta)
    assert torch.equal(loss(policy, policy, lengths), torch.full((B,), math.log(2)))
    assert (loss.rewards(policy, policy, lengths) == 0).all()


@pytest.mark.parametrize("kind", LOSSES)
def test_loss_where_policy_equals_opponent_is_its_own(kind: str) -> None:
    policy, _, lengths = sums(dtype=torch.float64)
    loss = made(kind)(policy, policy, lengths)
    torch.testing.assert_close(loss, torch.full((B,), STARTS[kind], dtype=torch.float64))


@pytest.mark.parametrize("mu", [0.5, 1.0, 4.0])
def test_the_data_is_stationary_for_space_whatever_the_opponent(mu: float) -> None:
    rng = torch.Generator().manual_seed(0)
    data, opponent = torch.randn(2, 7, generator=rng, dtype=torch.float64).softmax(-1)
    chances = (data[:, None] * opponent).flatten()  # of each pair (real, generated)
    real, generated = torch.cartesian_prod(torch.arange(7), torch.arange(7)).unbind(1)

    def slope(kind: str, policy: Tensor) -> Tensor:
        leaf = policy.log().requires_grad_()
        pairs = (leaf[real], leaf[generated], opponent.log()[real], opponent.log()[generated])
        (LOSSES[kind](*pairs, mu) * chances).sum().backward()
        assert leaf.grad is not None
        return leaf.grad.abs().max()

    assert slope("space", data) < 1e-15
    assert slope("space", opponent) > 0.01
    # The logistic loss ranks the two: its optimum is the data for beta = 1 alone, and for others
    # opponent * (data / opponent) ** (1 / beta).
    assert (slope("logistic", data) < 1e-15) == (mu == 1.0)
    tilted = opponent * (data / opponent) ** (1 / mu)
    assert slope("logistic", tilted / tilted.sum()) < 1e-15


def test_dpop_is_the_logistic_loss_until_a_real_response_falls_below_the_opponent() -> None:
    opponent = torch.zeros(3, 2)
    policy = torch.tensor([[1.0, -1.0], [0.0, -1.0], [-1.0, -1.0]])
    plain, dpop = made("logistic"), made("dpop")
    lengths = torch.ones(3, 2)
    assert torch.equal(plain(policy, opponent, lengths)[:2], dpop(policy, opponent, lengths)[:2])
    expected = FORMULAS["dpop"](-1.0, -1.0, 0.7, 5.0)
    assert dpop(policy, opponent, lengths)[2].item() == pytest.approx(expected)
    assert torch.equal(
        plain.rewards(policy, opponent, lengths), dpop.rewards(policy, opponent, lengths)
    )


@pytest.mark.parametrize("kind", LOSSES)
def test_gradients_are_right(kind: str) -> None:
    policy, opponent, lengths = sums(dtype=torch.float64)
    policy.requires_grad_()
    for normalized in (False, True):
        loss = made(kind, nll_weight=0.2, length_normalised=normalized)
        assert torch.autograd.gradcheck(lambda p, f=loss: f(p, opponent, lengths), policy)


def test_gradient_at_the_start_is_half_beta_on_each_side() -> None:
    policy, _, lengths = sums()
    leaf = policy.clone().requires_grad_()
    PairLoss("logistic", 0.4)(leaf, policy, lengths).sum().backward()
    expected = torch.tensor([-0.2, 0.2]).expand(B, 2)
    torch.testing.assert_close(leaf.grad, expected)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (PairLoss("logistic", 1.0), [0.0, 1e4]),
        (PairLoss("space", parameters={"space_mu": 1.0}), [math.log(2), 1e4 + math.log(2)]),
        (PairLoss("dpop", 1.0, parameters={"dpop_lambda": 9.0}), [0.0, 1e5]),
    ],
    ids=["logistic", "space", "dpop"],
)
def test_large_margins_stay_finite(loss: PairLoss, expected: list[float]) -> None:
    policy = torch.tensor([[0.0, -1e4], [-1e4, 0.0]], requires_grad=True)
    losses = loss(policy, torch.zeros(2, 2), torch.ones(2, 2))
    assert losses.tolist() == pytest.approx(expected)
    losses.sum().backward()
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
        ({"beta": None}, "logistic needs beta"),
        (
            {"kind": "space", "parameters": {"space_mu": 1.0}},
            "beta=0.1 is not a parameter of space",
        ),
        ({"kind": "space", "beta": None}, "space needs space_mu"),
        ({"kind": "dpop", "parameters": {"dpop_lamda": 1.0}}, "dpop_lamda=1.0.*dpop_lambda"),
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
    with pytest.raises(InputError, match="squared, space, dpop, margin"):
        SpinSettings(loss="margins")
    with pytest.raises(ValueError, match="'margin' is registered already"):
        register_loss("margin")(margin_loss)
