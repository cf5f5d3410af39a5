"""Pairs of responses: their fp64 truth, and how linear_pair_loss is held to it.

Dimensions: N scored tokens, B pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spin_kernels import (
    PairLossOutput,
    linear_log_softmax_gather_ref,
    linear_pair_loss,
    linear_pair_loss_ref,
)
from tests.kernels.oracle import Problem, assert_as_exact, true_logps

PairLossFunction = Callable[[Tensor, Tensor], Tensor]


def logistic(real: Tensor, generated: Tensor, opponent: Tensor) -> Tensor:
    """Return -log sigmoid(0.1 m) [B] of sums [B] against the opponent's [B, 2]."""
    opponent = opponent.to(real.dtype)
    return -F.logsigmoid(0.1 * ((real - opponent[:, 0]) - (generated - opponent[:, 1])))


def sums_of(logps: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Return the sums [B, 2] of each response, one slice at a time."""
    sums = [logps[first:last].sum() for first, last in pairwise(cu_seqlens.tolist())]
    return torch.stack(sums).view(-1, 2) if sums else logps.new_zeros(0, 2)


def true_pair_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    cu_seqlens: Tensor,
    pair_loss: PairLossFunction,
    pair_weights: Tensor | None = None,
    bias: Tensor | None = None,
    **options: float,
) -> PairLossOutput:
    """Return what linear_pair_loss is to return, without any of spin_kernels."""
    logps = true_logps(hidden, weight, targets, bias, **options)
    real, generated = sums_of(logps, cu_seqlens).unbind(1)
    losses = pair_loss(real, generated)
    weights = torch.ones_like(losses) if pair_weights is None else pair_weights
    loss = (losses * weights).sum() + 0 * logps.sum()  # a graph, also without pairs
    return PairLossOutput(loss, losses, real, generated)


def game(given: Problem, cu_seqlens: Tensor, **options: float) -> PairLossFunction:
    """Return the logistic loss against an opponent a few nats away from the policy."""
    exact = given.to(torch.float64)
    logps = true_logps(exact.hidden, exact.weight, exact.targets, exact.bias, **options)
    policy = sums_of(logps.detach(), cu_seqlens)
    rng = torch.Generator().manual_seed(1)
    return partial(logistic, opponent=policy + 5 * torch.randn(policy.shape, generator=rng))


def loss_and_gradients(
    op: Callable[..., PairLossOutput],
    given: Problem,
    cu_seqlens: Tensor,
    pair_loss: PairLossFunction,
    pair_weights: Tensor | None = None,
    upstream: float = 1.0,
    **options: Any,
) -> tuple[PairLossOutput, list[Tensor]]:
    """Return the output, and the gradients of ``upstream`` times its loss."""
    head = given.hidden, given.weight, given.targets
    out = op(*head, cu_seqlens, pair_loss, pair_weights, given.bias, **options)
    gradients = torch.autograd.grad(upstream * out.loss, given.leaves)
    return PairLossOutput(*(x.detach() for x in out)), list(gradients)


def check(
    given: Problem,
    cu_seqlens: Tensor,
    impl: str,
    pair_loss: PairLossFunction | None = None,
    pair_weights: Tensor | None = None,
    truth: tuple[PairLossOutput, list[Tensor]] | None = None,
    upstream: float = 1.0,
    budget: int = 2**30,
    **options: float,
) -> None:
    """Hold linear_pair_loss to the truth of the same values, by its twin's error."""
    pair_loss = pair_loss or game(given, cu_seqlens, **options)
    pairs = (cu_seqlens, pair_loss, pair_weights, upstream)
    if truth is None:
        truth = loss_and_gradients(true_pair_loss, given.to(torch.float64), *pairs, **options)
    more = {"memory_budget_bytes": budget, "impl": impl}
    out, gradients = loss_and_gradients(linear_pair_loss, given, *pairs, **more, **options)
    _, twin = loss_and_gradients(linear_pair_loss_ref, given, *pairs, **options)

    assert_as_exact(gradients, twin, truth[1])
    assert [x.dtype for x in gradients] == [x.dtype for x in given.leaves]
    _assert_sums_as_exact(given, cu_seqlens, out, truth[0], **options)
    # The losses follow from the sums: of so few numbers the twin's error may be small by chance.
    losses = pair_loss(out.real_logps, out.generated_logps)
    torch.testing.assert_close(out.pair_losses, losses, atol=1e-6, rtol=1e-6)
    weighted = losses if pair_weights is None else losses * pair_weights
    torch.testing.assert_close(out.loss, weighted.sum(), atol=1e-6, rtol=1e-6)
    assert {x.dtype for x in out} == {torch.float32}


def _assert_sums_as_exact(
    given: Problem,
    cu_seqlens: Tensor,
    out: PairLossOutput,
    truth: PairLossOutput,
    **options: float,
) -> None:
    """Hold the sums to twice what the twin's worst token makes of a sum: sqrt(length) of it."""
    exact = given.to(torch.float64)
    if len(given.targets) == 0:
        token_error = 0.0
    else:
        plain, true = (
            op(x.hidden, x.weight, x.targets, x.bias, **options)
            for op, x in ((linear_log_softmax_gather_ref, given), (true_logps, exact))
        )
        token_error = float((plain.double() - true).abs().max())
    lengths = cu_seqlens.diff().view(-1, 2).double()
    found, wanted = (torch.stack((x.real_logps, x.generated_logps), 1) for x in (out, truth))
    rounding = torch.finfo(found.dtype).eps * wanted.abs()  # of the sum itself: 5e-4 at 7000
    tolerance = 2 * token_error * lengths.sqrt() + rounding + 1e-4
    assert ((found.double() - wanted).abs() <= tolerance).all()
