"""SPIN's losses: pure functions of four vectors of log-probability sums, and their registry.

Dimensions: B pairs. Column 0 of a [B, 2] tensor is the real side, column 1 the generated one.
A loss's docstring says where it is from and when to use it; docs/losses.md is made of them.

Importing this module does not import torch, since the light settings use the registry's names: the
functions import what they need.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from spin_composer.errors import InputError, already_registered

if TYPE_CHECKING:
    from torch import Tensor


LossFunction = Callable[..., "Tensor"]
"""A loss: a function of the four vectors of log-prob sums, each [B], in the order of
:func:`spin_loss`, and of its parameters, numbers by name; it returns the loss of each pair, [B]."""

_NUM_VECTORS = 4

LOSSES: dict[str, LossFunction] = {}
"""Every loss by its name in the settings (``algorithms.spin.loss``); :func:`register_loss` adds."""
REAL_ONLY: set[str] = set()
"""The losses that ask for a real response in every pair; DITTO, which has others, refuses them."""

_Function = TypeVar("_Function", bound=LossFunction)


def register_loss(name: str, real_only: bool = False) -> Callable[[_Function], _Function]:
    """Return a decorator that makes a function the loss ``name``.

    Settings accept the name from then on, :class:`PairLoss` computes it, and the docs list it with
    its docstring. Each argument after the four vectors is a parameter of the loss (``beta``, or one
    of its own), whose value is the setting of the same name.

    Args:
        name: What ``algorithms.spin.loss`` says.
        real_only: The loss judges the real side by itself, not only as better than the other side:
            it has no meaning for a pair of two generated responses.

    Raises:
        ValueError: The name belongs to another loss.
    """

    def register(function: _Function) -> _Function:
        if name in LOSSES:
            raise already_registered(f"the loss {name!r}")
        LOSSES[name] = function
        if real_only:
            REAL_ONLY.add(name)
        return function

    return register


def loss_parameters(name: str) -> tuple[str, ...]:
    """Return the names of the parameters that a registered loss takes."""
    return tuple(inspect.signature(LOSSES[name]).parameters)[_NUM_VECTORS:]


def margin(
    policy_real_logps: Tensor,
    policy_generated_logps: Tensor,
    opponent_real_logps: Tensor,
    opponent_generated_logps: Tensor,
    beta: float,
) -> Tensor:
    """Return m = r_real - r_generated [B], where r = beta * (policy - opponent) of a side."""
    real = _at_least_fp32(policy_real_logps) - _at_least_fp32(opponent_real_logps)
    generated = _at_least_fp32(policy_generated_logps) - _at_least_fp32(opponent_generated_logps)
    return beta * (real - generated)


def _at_least_fp32(sums: Tensor) -> Tensor:
    """Return sums in fp32, or in fp64 where they are fp64 already."""
    import torch

    return sums.to(torch.promote_types(sums.dtype, torch.float32))


@register_loss("logistic")
def spin_loss(
    policy_real_logps: Tensor,
    policy_generated_logps: Tensor,
    opponent_real_logps: Tensor,
    opponent_generated_logps: Tensor,
    beta: float,
) -> Tensor:
    """Return SPIN's logistic loss -log sigmoid(m) of each pair: log 2 where policy = opponent.

    Source: Self-Play Fine-Tuning, arXiv 2401.01335, eq. 4.7.

    Use it first: it is the paper's, and what other implementations compare with. An iteration's
    optimum is opponent * (data / opponent)^(1 / beta), normalized: the data itself for beta = 1.

    Args:
        policy_real_logps: [B] sums of the real response's token log-probabilities.
        policy_generated_logps: [B] the same of the generated response.
        opponent_real_logps: [B] the opponent's sum of the real response.
        opponent_generated_logps: [B] the opponent's sum of the generated response.
        beta: the paper's lambda, > 0.

    Returns:
        [B] fp32 (fp64 for fp64 sums).
    """
    from torch.nn.functional import logsigmoid

    return -logsigmoid(
        margin(
            policy_real_logps,
            policy_generated_logps,
            opponent_real_logps,
            opponent_generated_logps,
            beta,
        )
    )


@register_loss("hinge")
def hinge_loss(
    policy_real_logps: Tensor,
    policy_generated_logps: Tensor,
    opponent_real_logps: Tensor,
    opponent_generated_logps: Tensor,
    beta: float,
) -> Tensor:
    """Return the hinge loss max(0, 1 - m) of each pair: 1 where policy = opponent.

    Source: Self-Play Fine-Tuning, arXiv 2401.01335, names it among its convex losses.

    Use it where pairs that are won by a margin of 1 should no longer be trained on.

    Args and result: those of :func:`spin_loss`.
    """
    m = margin(
        policy_real_logps,
        policy_generated_logps,
        opponent_real_logps,
        opponent_generated_logps,
        beta,
    )
    return (1 - m).relu()


@register_loss("squared")
def squared_loss(
    policy_real_logps: Tensor,
    policy_generated_logps: Tensor,
    opponent_real_logps: Tensor,
    opponent_generated_logps: Tensor,
    beta: float,
) -> Tensor:
    """Return IPO's squared loss (m / beta - 1 / (2 beta))^2 of each pair: 1 / (4 beta^2) at m = 0.

    Source: IPO, arXiv 2310.12036, eq. 17.

    Use it where the logistic loss drives margins without bound: this one has a target for them.

    Args and result: those of :func:`spin_loss`.
    """
    gap = margin(
        policy_real_logps,
        policy_generated_logps,
        opponent_real_logps,
        opponent_generated_logps,
        beta=1.0,
    )
    return (gap - 1 / (2 * beta)).square()


@register_loss("space", real_only=True)
def space_loss(
    policy_real_logps: Tensor,
    policy_generated_logps: Tensor,
    opponent_real_logps: Tensor,
    opponent_generated_logps: Tensor,
    space_mu: float,
) -> Tensor:
    """Return SPACE's loss -log s_mu(r_real) - mu log s_{1/mu}(-r_generated) of each pair.

    Here s_mu(x) = 1 / (1 + mu exp(-x)), and r = policy - opponent: there is no beta. Where policy =
    opponent it is log(1 + mu) + mu log(1 + 1/mu), which is 2 log 2 for mu = 1. Each side is judged
    alone, real or generated, not against the other.

    Source: SPACE, arXiv 2512.07175. The paper itself was not at hand and no code of it is public:
    the formula and mu = 1 are as a published summary of the paper gives them. There mu is also the
    number of generated responses per real one; here a pair has one, which mu weighs.

    Use it where both log-probs fall together, or where no beta should be chosen: an iteration's
    optimum is the data's distribution for every mu. At first it pulls as the logistic loss with
    beta = 2 mu / (1 + mu) does, ten times as hard as beta = 0.1: lower the learning rate.

    Args and result: those of :func:`spin_loss`; ``space_mu`` > 0 is mu.
    """
    from torch.nn.functional import logsigmoid

    real = _at_least_fp32(policy_real_logps) - _at_least_fp32(opponent_real_logps)
    generated = _at_least_fp32(policy_generated_logps) - _at_least_fp32(opponent_generated_logps)
    log_mu = math.log(space_mu)
    # log s_mu(x) = log sigmoid(x - log mu)
    return -logsigmoid(real - log_mu) - space_mu * logsigmoid(log_mu - generated)


@register_loss("dpop")
def dpop_loss(
    policy_real_logps: Tensor,
    policy_generated_logps: Tensor,
    opponent_real_logps: Tensor,
    opponent_generated_logps: Tensor,
    beta: float,
    dpop_lambda: float,
) -> Tensor:
    """Return DPO-Positive's -log sigmoid(m - beta lambda max(0, opponent_real - policy_real)).

    The logistic loss with a penalty on real responses that have become less likely than they were
    for the opponent: log 2 where policy = opponent.

    Source: Smaug, arXiv 2402.13228 (beta 0.3, lambda 50; 5 and 500 changed little there).

    Use it where log-probs of real responses fall while the margin grows. The penalty has a kink at
    policy = opponent, where an iteration starts: a real response that noise puts below the opponent
    is pushed 1 + lambda times as hard as the other side, and in bf16 the first loss is above
    log 2 by about beta lambda times that noise. Clip gradients, and begin with a lambda of 5.

    Args and result: those of :func:`spin_loss`; ``dpop_lambda`` >= 0 is lambda.
    """
    from torch.nn.functional import logsigmoid

    m = margin(
        policy_real_logps,
        policy_generated_logps,
        opponent_real_logps,
        opponent_generated_logps,
        beta,
    )
    fallen = (_at_least_fp32(opponent_real_logps) - _at_least_fp32(policy_real_logps)).relu()
    return -logsigmoid(m - beta * dpop_lambda * fallen)


def nll_anchor(policy_real_logps: Tensor, real_lengths: Tensor, weight: float) -> Tensor:
    """Return weight * (-policy_real / length_real) [B]: an SFT term.

    Args:
        policy_real_logps: [B] sums of the real response's token log-probabilities.
        real_lengths: [B] numbers of tokens of the real responses.
        weight: alpha, >= 0.
    """
    return -weight * per_token(policy_real_logps, real_lengths)


def per_token(sums: Tensor, lengths: Tensor) -> Tensor:
    """Return ``sums / lengths`` of equal shapes; an empty response's sum, 0, stays 0."""
    return sums / lengths.clamp_min(1).to(sums.dtype)


@dataclass(frozen=True)
class PairLoss:
    """The loss of an iteration: which function, its parameters and the options around it."""

    kind: str
    """The name of one of :data:`LOSSES`."""
    beta: float | None = None
    """Strength of the pull toward the opponent; the paper's lambda. None for a loss without it,
    whose rewards are in nats: as if it were 1."""
    nll_weight: float = 0.0
    """Weight of the NLL anchor; 0 leaves it out."""
    length_normalised: bool = False
    """Divide each side's sums by its number of tokens before anything else."""
    parameters: Mapping[str, float] = field(default_factory=dict)
    """The loss's own parameters by name (:func:`loss_parameters` without beta)."""

    def __post_init__(self) -> None:
        if self.kind not in LOSSES:
            raise InputError(f"loss: kind={self.kind!r} is unknown. Use one of {list(LOSSES)}.")
        if self.beta is not None and not (math.isfinite(self.beta) and self.beta > 0):
            raise InputError(f"loss: beta={self.beta} must be a positive number.")
        if not (math.isfinite(self.nll_weight) and self.nll_weight >= 0):
            raise InputError(f"loss: nll_weight={self.nll_weight} must be 0 or a positive number.")
        self._check_names()

    def _check_names(self) -> None:
        """Reject parameters that the loss does not take, or lacks."""
        wanted, given = loss_parameters(self.kind), self._by_name()
        for name in given.keys() - set(wanted):
            raise InputError(
                f"loss: {name}={given[name]} is not a parameter of {self.kind}. "
                f"It takes {', '.join(wanted)}."
            )
        for name in wanted:
            if name not in given:
                raise InputError(f"loss: {self.kind} needs {name}. Give it a number.")

    def __call__(
        self, policy: Tensor, opponent: Tensor, lengths: Tensor, is_real: Tensor | None = None
    ) -> Tensor:
        """Return the loss [B] of pairs.

        Args:
            policy: [B, 2] the policy's sums, with gradient.
            opponent: [B, 2] the opponent's sums.
            lengths: [B, 2] numbers of scored tokens.
            is_real: bool [B], whether the better response is real: other pairs have no NLL anchor.
                None: it is in all of them.
        """
        anchor = nll_anchor(policy[:, 0], lengths[:, 0], self.nll_weight)
        if is_real is not None:
            anchor = anchor.where(is_real, 0.0)
        policy, opponent = self._normalized(policy, opponent, lengths)
        loss = LOSSES[self.kind](
            policy[:, 0], policy[:, 1], opponent[:, 0], opponent[:, 1], **self._by_name()
        )
        return loss + anchor if self.nll_weight else loss

    def rewards(self, policy: Tensor, opponent: Tensor, lengths: Tensor) -> Tensor:
        """Return r = beta * (policy - opponent) [B, 2], after normalization by length."""
        policy, opponent = self._normalized(policy, opponent, lengths)
        return (1.0 if self.beta is None else self.beta) * (policy - opponent)

    def _by_name(self) -> dict[str, float]:
        """Return the loss's arguments after the four vectors."""
        beta = {} if self.beta is None else {"beta": self.beta}
        return {**beta, **self.parameters}

    def _normalized(
        self, policy: Tensor, opponent: Tensor, lengths: Tensor
    ) -> tuple[Tensor, Tensor]:
        if not self.length_normalised:
            return policy, opponent
        return per_token(policy, lengths), per_token(opponent, lengths)
