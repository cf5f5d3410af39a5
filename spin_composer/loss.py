"""SPIN's losses: pure functions of four vectors of log-probability sums, and their registry.

Dimensions: B pairs. Column 0 of a [B, 2] tensor is the real side, column 1 the generated one.
Source of the game and of the logistic loss: Self-Play Fine-Tuning, arXiv 2401.01335, eq. 4.7;
of the squared loss: IPO, arXiv 2310.12036, eq. 17.

Importing this module does not import torch, since the light settings use the registry's names: the
functions import what they need.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from spin_composer.errors import InputError, already_registered

if TYPE_CHECKING:
    from torch import Tensor


class LossFunction(Protocol):
    """A loss: a function of the four vectors of log-prob sums, each [B], and beta."""

    def __call__(
        self,
        policy_real_logps: Tensor,
        policy_generated_logps: Tensor,
        opponent_real_logps: Tensor,
        opponent_generated_logps: Tensor,
        beta: float,
        /,
    ) -> Tensor:
        """Return the loss of each pair, [B]; arguments as in :func:`spin_loss`."""
        ...


LOSSES: dict[str, LossFunction] = {}
"""Every loss by its name in the settings (``algorithms.spin.loss``); :func:`register_loss` adds."""

_Function = TypeVar("_Function", bound=LossFunction)


def register_loss(name: str) -> Callable[[_Function], _Function]:
    """Return a decorator that makes a function the loss ``name``.

    Settings accept the name from then on, :class:`PairLoss` computes it, and the docs list it with
    the first line of its docstring.

    Args:
        name: What ``algorithms.spin.loss`` says.

    Raises:
        ValueError: The name belongs to another loss.
    """

    def register(function: _Function) -> _Function:
        if name in LOSSES:
            raise already_registered(f"the loss {name!r}")
        LOSSES[name] = function
        return function

    return register


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
    """Return the hinge loss max(0, 1 - m) of each pair.

    Arguments and result are those of :func:`spin_loss`.
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
    """Return IPO's squared loss (m / beta - 1 / (2 beta))^2 of each pair.

    Arguments and result are those of :func:`spin_loss`.
    """
    gap = margin(
        policy_real_logps,
        policy_generated_logps,
        opponent_real_logps,
        opponent_generated_logps,
        beta=1.0,
    )
    return (gap - 1 / (2 * beta)).square()


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
    """The loss of an iteration: which function, its beta and the options around it."""

    kind: str
    """The name of one of :data:`LOSSES`."""
    beta: float
    """Strength of the pull toward the opponent; the paper's lambda."""
    nll_weight: float = 0.0
    """Weight of the NLL anchor; 0 leaves it out."""
    length_normalised: bool = False
    """Divide each side's sums by its number of tokens before anything else."""

    def __post_init__(self) -> None:
        if self.kind not in LOSSES:
            raise InputError(f"loss: kind={self.kind!r} is unknown. Use one of {list(LOSSES)}.")
        if not (math.isfinite(self.beta) and self.beta > 0):
            raise InputError(f"loss: beta={self.beta} must be a positive number.")
        if not (math.isfinite(self.nll_weight) and self.nll_weight >= 0):
            raise InputError(f"loss: nll_weight={self.nll_weight} must be 0 or a positive number.")

    def __call__(self, policy: Tensor, opponent: Tensor, lengths: Tensor) -> Tensor:
        """Return the loss [B] of pairs.

        Args:
            policy: [B, 2] the policy's sums, with gradient.
            opponent: [B, 2] the opponent's sums.
            lengths: [B, 2] numbers of scored tokens.
        """
        anchor = nll_anchor(policy[:, 0], lengths[:, 0], self.nll_weight)
        policy, opponent = self._normalized(policy, opponent, lengths)
        loss = LOSSES[self.kind](
            policy[:, 0], policy[:, 1], opponent[:, 0], opponent[:, 1], self.beta
        )
        return loss + anchor if self.nll_weight else loss

    def rewards(self, policy: Tensor, opponent: Tensor, lengths: Tensor) -> Tensor:
        """Return r = beta * (policy - opponent) [B, 2], after normalization by length."""
        policy, opponent = self._normalized(policy, opponent, lengths)
        return self.beta * (policy - opponent)

    def _normalized(
        self, policy: Tensor, opponent: Tensor, lengths: Tensor
    ) -> tuple[Tensor, Tensor]:
        if not self.length_normalised:
            return policy, opponent
        return per_token(policy, lengths), per_token(opponent, lengths)
