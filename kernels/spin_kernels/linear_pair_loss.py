"""linear_pair_loss: the LM head and a loss over pairs of responses in three matrix multiplications.

Dimensions: N scored tokens of all responses, C rows of a chunk, D model width, V vocabulary,
W >= V columns of a chunk, B pairs, S = 2B sequences (real_0, generated_0, real_1, ...).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spin_kernels.checks import check_linear, check_pairs, check_target_values, matmul_dtype
from spin_kernels.dispatch import resolve_impl
from spin_kernels.linear_head import LinearHead
from spin_kernels.linear_log_softmax_gather import linear_log_softmax_gather_ref
from spin_kernels.pair_pass import PairGradients, PairLossFunction, PairPass, PairSpec
from spin_kernels.shape import LogitScale

PAIR_BUDGET_BYTES = 5 * 2**28
"""1.25 GiB: the bf16 logits of a pair of 2 x 2048 scored tokens with 160,000 entries each."""


class PairLossOutput(NamedTuple):
    """What :func:`linear_pair_loss` returns."""

    loss: Tensor
    """[] the weighted sum of the pair losses; the only output with a gradient. All outputs are
    fp32, or fp64 for fp64 input."""
    pair_losses: Tensor
    """[B] unweighted, detached."""
    real_logps: Tensor
    """[B] sums of log-probs over the real responses, detached."""
    generated_logps: Tensor
    """[B] sums of log-probs over the generated responses, detached."""


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
    """Return the weighted sum of a loss over pairs of responses; its gradient is computed with it.

    sums[s] = sum of logps[n] over the rows n of sequence s; logps: see linear_log_softmax_gather
    loss = sum_b pair_weights[b] * pair_loss(sums[2b], sums[2b + 1])

    Chunks hold whole pairs, so that the derivative of a pair's loss is known while its logits are
    still in memory: three matrix multiplications with a trained weight, none repeated. A pair that
    exceeds the budget is processed in parts, with its logits computed twice (logged once). If a
    gradient is required, it is computed in this call; backward multiplies it by the gradient of the
    loss.

    Args:
        hidden: [N, D] float32, bfloat16, float16 or float64: the scored rows of all responses,
            concatenated.
        weight: [V, D] in hidden's dtype (under autocast, in any of these).
        targets: [N] int64 on hidden's device; a row with target -100 is ignored: it adds nothing
            to its response's sum.
        cu_seqlens: [2B + 1] int32 or int64, the cumulative lengths of the responses in the N rows,
            from 0 to N: real and generated response of the first pair, of the second, and so on.
            On the CPU; on a GPU it costs a synchronization, because the host plans chunks by it.
        pair_loss: function of the real sums [B] and the generated sums [B] (fp32, or fp64 for fp64
            input) that returns the losses [B] by differentiable PyTorch operations. Each loss may
            depend on its own pair only. Constants, such as the opponent's sums, are bound in. It is
            called once per chunk, with zeros for pairs that have not been scored yet.
        pair_weights: [B] floating point on hidden's device, without gradient; None for ones.
        bias: [V] in hidden's dtype (under autocast, in any of these), or None. -inf excludes an
            entry of the vocabulary; with a softcap it becomes -softcap, as in models that have one.
        softcap: the bound of the logits (Gemma 2), or None.
        temperature: divides the logits before the softcap (the inverse of a logit scale).
        memory_budget_bytes: upper bound on the chunk of logits alive at a time; at least one row
            is processed at a time.
        impl: "triton", "torch", or "auto": Triton on a GPU, PyTorch elsewhere and for fp64.

    Returns:
        The loss, and detached pair losses and sums of natural-log probabilities. Backward may be
        called once per call. Under torch.compile the call is a graph break.

    Raises:
        TypeError: An argument is not a plain tensor (a DTensor, such as a parameter that FSDP2 has
            sharded, is rejected), not a number or not callable, or a dtype does not match or is not
            supported.
        ValueError: A shape, a device, a target, ``impl`` or a number is wrong, or ``pair_loss``
            does not return differentiable losses [B]. On a GPU, a target outside the vocabulary is
            a device-side assertion instead.
        RuntimeError: In backward, when it is called a second time.
    """
    check_linear(hidden, weight, targets, bias, softcap, temperature, memory_budget_bytes)
    bounds = check_pairs(hidden, cu_seqlens, pair_weights)
    if not callable(pair_loss):
        raise TypeError(f"pair_loss must be callable, got {type(pair_loss).__name__}.")
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
    weights = pair_weights.to(spec.sum_dtype)
    outputs = _LinearPairLoss.apply(hidden, weight, bias, targets, weights, spec)
    return PairLossOutput(*outputs)  # type: ignore[misc]


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
    """Reference implementation of :func:`linear_pair_loss`, unchunked.

    PyTorch's own autograd. Arguments and result are the same; ``memory_budget_bytes`` and ``impl``
    are ignored, and nothing is validated.
    """
    del memory_budget_bytes, impl
    logps = linear_log_softmax_gather_ref(hidden, weight, targets, bias, softcap, temperature)
    lengths = cu_seqlens.to(hidden.device).long().diff()
    sums = torch.segment_reduce(logps, "sum", lengths=lengths, unsafe=True).view(-1, 2)
    losses = pair_loss(sums[:, 0], sums[:, 1])
    weighted = losses if pair_weights is None else losses * pair_weights
    return PairLossOutput(weighted.sum(), losses.detach(), sums[:, 0].detach(), sums[:, 1].detach())


class _LinearPairLoss(torch.autograd.Function):
    """Computes the gradient in forward; backward scales it in place and returns it."""

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
            pairs = PairPass(head, hidden, targets, pair_weights, spec)
            gradients = PairGradients(hidden, weight, bias, head, pairs.num_chunks, needs)
            for first, last in pairs.groups:
                pairs.score(first, last, gradients)
        losses = spec.losses(pairs.sums).detach().to(spec.sum_dtype)
        ctx.save_for_backward(*(x for x in gradients.finish() if x is not None))
        ctx.needs, ctx.dtypes, ctx.ops, ctx.used = needs, gradients.dtypes, head.ops, False
        outputs = losses, pairs.sums[:, 0].clone(), pairs.sums[:, 1].clone()
        ctx.mark_non_differentiable(*outputs)
        return (losses * pair_weights).sum(), *outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.used:
            raise RuntimeError(
                "linear_pair_loss: backward was called a second time, but the first call has "
                "already returned its gradient buffers. Call linear_pair_loss again."
            )
        ctx.used = True
        computed = iter(ctx.saved_tensors)
        gradients = (
            ctx.ops.scale_(next(computed), grad).to(dtype) if needed else None
            for needed, dtype in zip(ctx.needs, ctx.dtypes, strict=True)
        )
        return *gradients, None, None, None
