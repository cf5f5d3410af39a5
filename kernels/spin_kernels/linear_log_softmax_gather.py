"""linear_log_softmax_gather: the LM head and the log-softmax as one operation.

Dimensions: N scored tokens, C rows of a chunk, D model width, V vocabulary, W >= V columns of a
chunk, K rows whose logits are kept for backward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spin_kernels.checks import check_linear, check_target_values, matmul_dtype, resolve_impl
from spin_kernels.linear_head import LinearHead, accumulate_
from spin_kernels.shape import (
    LogitScale,
    accumulation_dtype,
    chunk_size,
    padded_vocab,
    row_chunks,
)
from spin_kernels.torch_ops import split_targets


def linear_log_softmax_gather(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    softcap: float | None = None,
    temperature: float = 1.0,
    memory_budget_bytes: int = 2**29,
    impl: str = "auto",
) -> Tensor:
    """Return the log-probabilities of ``targets`` under a linear head, never holding [N, V].

    z = (hidden @ weight.T + bias) / temperature;  with softcap: z = softcap * tanh(z / softcap)
    logps[n] = z[n, targets[n]] - log(sum_v exp(z[n, v])), 0 where targets[n] is -100.

    Rows are taken in chunks. Where a gradient will be asked for, as many chunks of logits are kept
    for backward as the budget allows; backward makes the others again. Under autocast the matrix
    product is done in autocast's dtype like ``F.linear``; what follows it, and the target's own
    logit, is in fp32.

    Args:
        hidden: [N, D] floating point.
        weight: [V, D] of hidden's dtype (any floating dtype under autocast).
        targets: [N] int64; -100 marks a row without log-probability and without gradient.
        bias: [V] or None; -inf switches an entry of the vocabulary off (but a softcap makes it
            -softcap, as in the models that have one).
        softcap: the cap of the logits (Gemma 2), or None.
        temperature: divides the logits before the cap (a logit scale is its inverse).
        memory_budget_bytes: bound on all chunks of logits, kept ones included; one row is the
            least.
        impl: "triton", "torch", or "auto": Triton on a GPU, PyTorch elsewhere and for fp64.

    Returns:
        [N] fp32, or fp64 for fp64 input. Once differentiable in hidden, weight and bias; what does
        not require a gradient costs nothing in backward.

    Raises:
        TypeError, ValueError: An argument's dtype, shape, device or value is wrong (a target
            outside the vocabulary on a GPU: an assertion of the device).
    """
    check_linear(hidden, weight, targets, bias, softcap, temperature, memory_budget_bytes)
    dtype = matmul_dtype(hidden)
    impl = resolve_impl(impl, hidden.device, dtype)
    inputs = (hidden, weight) if bias is None else (hidden, weight, bias)
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    softcap = None if softcap is None else float(softcap)
    return _forward(
        hidden, weight, bias, targets, dtype, softcap, temperature, memory_budget_bytes, keep, impl
    )[0]


def linear_log_softmax_gather_ref(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    softcap: float | None = None,
    temperature: float = 1.0,
    memory_budget_bytes: int = 2**29,
    impl: str = "auto",
) -> Tensor:
    """Plain twin of :func:`linear_log_softmax_gather`: unchunked, PyTorch's own autograd.

    ``memory_budget_bytes`` and ``impl`` are accepted and ignored.
    """
    del memory_budget_bytes, impl
    z = torch.nn.functional.linear(hidden, weight, bias)
    z = z.to(accumulation_dtype(z.dtype)) / temperature
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    safe, scored = split_targets(targets)
    picked = torch.log_softmax(z, dim=1).gather(1, safe[:, None])[:, 0]
    return torch.where(scored, picked, torch.zeros_like(picked))


def _plan(num_rows: int, head: LinearHead, budget_bytes: int, keep: bool) -> tuple[int, int]:
    """Return the rows of a chunk, and how many of the first rows keep their logits.

    Backward works on one chunk beside the kept ones. Where not everything fits, half of the budget
    is that chunk's: each adds to the weight's gradient in fp32, which costs as much as the product
    of a few hundred rows, and a kept row saves a product of four.
    """
    if not keep:
        return chunk_size(num_rows, head.rows_of_budget(budget_bytes)), 0
    row_bytes = padded_vocab(head.vocab) * head.dtype.itemsize
    work_bytes = padded_vocab(head.vocab) * head.ops.work_bytes(head.dtype, head.scale)
    if num_rows * (row_bytes + work_bytes) <= budget_bytes:
        return max(1, num_rows), num_rows
    size = chunk_size(num_rows, head.rows_of_budget(budget_bytes // 2))
    kept = max(0, budget_bytes - size * work_bytes) // row_bytes
    return size, min(num_rows, kept - kept % size)


@torch.library.custom_op("spin_kernels::linear_log_softmax_gather", mutates_args=())
def _forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    dtype: torch.dtype,
    softcap: float | None,
    temperature: float,
    budget_bytes: int,
    keep: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return logps, top and log_total, each [N], and the kept raw logits [K, W]."""
    num_rows, targets = hidden.shape[0], targets.contiguous()
    check_target_values(targets, weight.shape[0], impl)
    with torch.autocast(hidden.device.type, enabled=False):
        head = LinearHead.of(weight, bias, dtype, LogitScale(temperature, softcap), impl)
        size, num_kept = _plan(num_rows, head, budget_bytes, keep)
        kept = head.new_chunk(num_kept)
        kept[:, head.vocab :] = 0
        room: Tensor | None = None
        logps, top, log_total = (
            torch.empty_like(targets, dtype=accumulation_dtype(dtype)) for _ in range(3)
        )
        for rows in row_chunks(num_rows, size):
            x = head.rows(hidden, rows)
            inside = rows.stop <= num_kept
            if not inside and room is None:  # not before: scoring a kept chunk takes room too
                room = head.new_chunk(len(x))
            z = head.logits_(x, kept[rows] if room is None else room[: len(x)])
            t = targets[rows]
            found = head.ops.logps(z, head.vocab, t, head.exact(x, t), head.scale, keep=inside)
            logps[rows], top[rows], log_total[rows] = found
    return logps, top, log_total, kept


@_forward.register_fake
def _(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    dtype: torch.dtype,
    softcap: float | None,
    temperature: float,
    budget_bytes: int,
    keep: bool,
    impl: str,
) -> Any:
    head = LinearHead.of(weight, bias, dtype, LogitScale(temperature, softcap), impl)
    num_kept = _plan(hidden.shape[0], head, budget_bytes, keep)[1]
    vectors = (torch.empty_like(targets, dtype=accumulation_dtype(dtype)) for _ in range(3))
    return *vectors, head.new_chunk(num_kept)


@torch.library.custom_op("spin_kernels::linear_log_softmax_gather_backward", mutates_args=())
def _backward(
    grad: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    top: Tensor,
    log_total: Tensor,
    kept: Tensor,
    dtype: torch.dtype,
    softcap: float | None,
    temperature: float,
    budget_bytes: int,
    impl: str,
    for_hidden: bool,
    for_weight: bool,
    for_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of hidden, weight and bias; an empty tensor for one not asked for."""
    num_rows, num_kept = hidden.shape[0], kept.shape[0]
    grad, targets = grad.contiguous(), targets.contiguous()
    wide = accumulation_dtype(dtype)
    d_hidden = hidden.new_empty(hidden.shape if for_hidden else 0)
    with torch.autocast(hidden.device.type, enabled=False):
        head = LinearHead.of(weight, bias, dtype, LogitScale(temperature, softcap), impl)
        size = _plan(num_rows, head, budget_bytes, keep=True)[0]
        # Sums over chunks are kept in fp32 whatever the product's dtype; one chunk needs no sum.
        one = num_rows <= size and weight.dtype == dtype
        shape = weight.shape if for_weight else 0
        d_weight = weight.new_empty(shape, dtype=dtype if one else wide)
        d_bias = weight.new_zeros(head.vocab if for_bias else 0, dtype=wide)
        if num_rows == 0:
            d_weight.zero_()
        room = head.new_chunk(size if num_rows else 0)
        for rows in row_chunks(num_rows, size):
            x, t, dz = head.rows(hidden, rows), targets[rows], room[: rows.stop - rows.start]
            z = kept[rows] if rows.stop <= num_kept else head.logits_(x, dz)
            norm = top[rows], log_total[rows]
            exact = head.exact(x, t)
            head.ops.logps_backward(z, head.vocab, t, exact, norm, grad[rows], head.scale, dz)
            dz = dz[:, : head.vocab]
            if for_bias:
                d_bias += dz.sum(0, dtype=wide)
            if for_hidden:
                d_hidden[rows] = dz @ head.weight
            if for_weight:
                accumulate_(d_weight, dz.T, x, first=rows.start == 0)
    bias_dtype = weight.dtype if bias is None else bias.dtype
    return d_hidden, d_weight.to(weight.dtype), d_bias.to(bias_dtype)


@_backward.register_fake
def _(
    grad: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    top: Tensor,
    log_total: Tensor,
    kept: Tensor,
    dtype: torch.dtype,
    softcap: float | None,
    temperature: float,
    budget_bytes: int,
    impl: str,
    for_hidden: bool,
    for_weight: bool,
    for_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    del grad, targets, top, log_total, kept, dtype, softcap, temperature, budget_bytes, impl
    bias_dtype = weight.dtype if bias is None else bias.dtype
    return (
        hidden.new_empty(hidden.shape if for_hidden else 0),
        weight.new_empty(weight.shape if for_weight else 0),
        weight.new_empty(weight.shape[0] if for_bias else 0, dtype=bias_dtype),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, bias, targets, *ctx.settings, keep, impl = inputs
    del keep
    _, top, log_total, kept = output
    ctx.settings.append(impl)
    ctx.mark_non_differentiable(top, log_total, kept)
    ctx.set_materialize_grads(False)  # else zeros the size of what was kept
    # The weight itself is saved, not its cast: it is a parameter and costs nothing.
    ctx.save_for_backward(hidden, weight, bias, targets, top, log_total, kept)


def _differentiate(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    if grad is None:  # nothing was made of the log-probs
        return (None,) * 10
    needs = list(ctx.needs_input_grad[:3])
    found = _backward(grad, *ctx.saved_tensors, *ctx.settings, *needs)
    gradients = (value if needed else None for value, needed in zip(found, needs, strict=True))
    return *gradients, *[None] * 7


_forward.register_autograd(_differentiate, setup_context=_setup_context)
