"""linear_pair_loss: a loss of pairs of responses from the LM head's input, in three products.

Dimensions: N scored tokens of all responses, C rows of a chunk, D model width, V vocabulary,
W >= V columns of a chunk, B pairs, S = 2B sequences (real_0, generated_0, real_1, ...).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spin_kernels.checks import (
    check_linear,
    check_pairs,
    check_target_values,
    matmul_dtype,
    resolve_impl,
)
from spin_kernels.linear_head import LinearHead
from spin_kernels.linear_log_softmax_gather import linear_log_softmax_gather_ref
from spin_kernels.pair_pass import PairGradients, PairLossFunction, PairPass, PairSpec
from spin_kernels.shape import LogitScale

PAIR_BUDGET_BYTES = 5 * 2**28
"""1.25 GiB: a pair of 2 x 2048 scored tokens in bf16 for a vocabulary of up to 160,000."""


class PairLossOutput(NamedTuple):
    """What :func:`linear_pair_loss` returns."""

    loss: Tensor
    """[] fp32, the weighted sum of the pair losses; the only one with a gradient."""
    pair_losses: Tensor
    """[B] fp32, unweighted."""
    real_logps: Tensor
    """[B] fp32 log-prob sums of the real responses."""
    generated_logps: Tensor
    """[B] fp32 log-prob sums of the generated responses."""


@torch.compiler.disable
def linear_pair_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    cu_seqlens: Tensor,
    pair_loss: PairLossFunction,
    pair_weights: Tensor | None = None,
    bias: Tensor | None = None,
    softcap: float | None = None,
    temperature: float = 1.0,
    memory_budget_bytes: int = PAIR_BUDGET_BYTES,
    impl: str = "auto",
) -> PairLossOutput:
    """Return the weighted sum of a loss over pairs of responses, its gradient already made.

    sums[s] = sum over the rows n of sequence s of logps[n], as linear_log_softmax_gather has them
    loss = sum_b pair_weights[b] * pair_loss(sums[2b], sums[2b + 1])

    Chunks hold whole pairs, so that a pair's derivative is known while its logits are still there:
    three matrix products with a trained weight, none repeated. A pair that exceeds the budget is
    taken in parts and its logits are made twice (logged once). The gradient is made in this call
    where one will be asked for, and backward multiplies it by the upstream scalar.

    Args:
        hidden: [N, D] floating point: the scored rows of all responses, one after another.
        weight: [V, D] of hidden's dtype (any floating dtype under autocast).
        targets: [N] int64; -100 marks a row that adds nothing.
        cu_seqlens: [2B + 1] int32 or int64, the bounds of the responses in the N rows: real and
            generated of the first pair, of the second, and so on. On the CPU: the host plans by
            it, and one on a GPU costs a wait.
        pair_loss: (real sums [B], generated sums [B], fp32) -> losses [B], of differentiable
            PyTorch operations, each pair on its own; the opponent's sums are its own affair. It is
            called once per chunk, with zeros for pairs that have not been scored yet.
        pair_weights: [B] floating point on hidden's device, or None for ones. No gradient.
        bias: [V] or None; -inf switches an entry of the vocabulary off (but a softcap makes it
            -softcap, as in the models that have one).
        softcap: the cap of the logits (Gemma 2), or None.
        temperature: divides the logits before the cap (a logit scale is its inverse).
        memory_budget_bytes: bound on the chunk of logits alive at a time; one row is the least.
        impl: "triton", "torch", or "auto": Triton on a GPU, PyTorch elsewhere and for fp64.

    Returns:
        The loss for autograd, and detached pair losses and sums (fp64 for fp64 input). One
        backward per call. Under torch.compile the call is a graph break.

    Raises:
        TypeError, ValueError: An argument's dtype, shape, device or value is wrong (a target
            outside the vocabulary on a GPU: an assertion of the device), or pair_loss returned
            something that is not [B].
    """
    check_linear(hidden, weight, targets, bias, softcap, temperature, memory_budget_bytes)
    bounds = check_pairs(hidden, cu_seqlens, pair_weights)
    if not callable(pair_loss):
        raise TypeError(f"pair_loss must be a function, got {type(pair_loss).__name__}.")
    dtype = matmul_dtype(hidden)
    impl, targets = resolve_impl(impl, hidden.device, dtype), targets.contiguous()
    check_target_values(targets, weight.shape[0], impl)
    spec = PairSpec(
        bounds,
        pair_loss,
        dtype,
        LogitScale(temperature, softcap),
        memory_budget_bytes,
        impl,
        torch.is_grad_enabled(),
    )
    if pair_weights is None:
        pair_weights = torch.ones(len(bounds) // 2, device=hidden.device)
    weights = pair_weights.to(spec.wide)
    found = _LinearPairLoss.apply(hidden, weight, bias, targets, weights, spec)
    return PairLossOutput(*found)  # type: ignore[misc]


def linear_pair_loss_ref(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    cu_seqlens: Tensor,
    pair_loss: PairLossFunction,
    pair_weights: Tensor | None = None,
    bias: Tensor | None = None,
    softcap: float | None = None,
    temperature: float = 1.0,
    memory_budget_bytes: int = PAIR_BUDGET_BYTES,
    impl: str = "auto",
) -> PairLossOutput:
    """Plain twin of :func:`linear_pair_loss`: unchunked, PyTorch's own autograd.

    ``memory_budget_bytes`` and ``impl`` are accepted and ignored.
    """
    del memory_budget_bytes, impl
    logps = linear_log_softmax_gather_ref(hidden, weight, targets, bias, softcap, temperature)
    lengths = cu_seqlens.to(hidden.device).long().diff()
    sums = torch.segment_reduce(logps, "sum", lengths=lengths, unsafe=True).view(-1, 2)
    losses = pair_loss(sums[:, 0], sums[:, 1])
    weighted = losses if pair_weights is None else losses * pair_weights
    return PairLossOutput(weighted.sum(), losses.detach(), sums[:, 0].detach(), sums[:, 1].detach())


class _LinearPairLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        pair_weights: Tensor,
        spec: PairSpec,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        needs = [spec.with_gradient and x for x in ctx.needs_input_grad[:3]]
        with torch.autocast(hidden.device.type, enabled=False):
            head = LinearHead.of(weight, bias, spec.dtype, spec.scale, spec.impl)
            work = PairPass(head, hidden, targets, pair_weights, spec)
            gradients = PairGradients(hidden, weight, bias, head, work.num_parts, needs)
            for first, last in work.groups:
                work.score(first, last, gradients)
        losses = spec.losses(work.sums).detach().to(spec.wide)
        made = gradients.finished()
        ctx.save_for_backward(*(x for x in made if x is not None))
        ctx.needs, ctx.dtypes, ctx.ops, ctx.used = needs, gradients.dtypes, head.ops, False
        outputs = losses, work.sums[:, 0].clone(), work.sums[:, 1].clone()
        ctx.mark_non_differentiable(*outputs)
        return (losses * pair_weights).sum(), *outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.used:
            raise RuntimeError(
                "linear_pair_loss: backward was called a second time. Its gradient is made once "
                "and handed over; call linear_pair_loss again."
            )
        ctx.used = True
        made = iter(ctx.saved_tensors)
        gradients = (
            ctx.ops.scale_(next(made), grad).to(dtype) if needed else None
            for needed, dtype in zip(ctx.needs, ctx.dtypes, strict=True)
        )
        return *gradients, None, None, None
