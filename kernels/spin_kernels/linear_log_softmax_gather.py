"""linear_log_softmax_gather: the LM head and the log-softmax as one operation.

Dimensions: N scored tokens, C rows of a chunk, D model width, V vocabulary, W >= V columns of a
chunk, K rows whose logits are kept for backward.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from spin_kernels.checks import check_linear, check_target_values, matmul_dtype
from spin_kernels.custom_op import define_custom_op
from spin_kernels.dispatch import resolve_impl
from spin_kernels.linear_head import LinearHead, accumulate_matmul_
from spin_kernels.shape import (
    LogitScale,
    accumulation_dtype,
    chunk_size,
    padded_vocab,
    row_chunks,
)
from spin_kernels.targets import split_targets


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
    """Return the log-probs of ``targets`` under a linear head, without the [N, V] logits.

    z = (hidden @ weight.T + bias) / temperature;  with softcap: z = softcap * tanh(z / softcap)
    logps[n] = z[n, targets[n]] - log(sum_v exp(z[n, v])), 0 where targets[n] is -100.

    Rows are processed in chunks. If a gradient is required, as many chunks of logits are kept for
    backward as the budget allows, and backward recomputes the others. Under autocast the matrix
    multiplication is in autocast's dtype, as in ``F.linear``; what follows it, and the target's own
    logit, is in fp32.

    Args:
        hidden: [N, D] float32, bfloat16, float16 or float64.
        weight: [V, D] in hidden's dtype (under autocast, in any of these).
        targets: [N] int64 on hidden's device; a row with target -100 is ignored: its log-prob is 0
            and its gradient is zero.
        bias: [V] in hidden's dtype (under autocast, in any of these), or None. -inf excludes an
            entry of the vocabulary; with a softcap it becomes -softcap, as in models that have one.
        softcap: the bound of the logits (Gemma 2), or None.
        temperature: divides the logits before the softcap (the inverse of a logit scale).
        memory_budget_bytes: upper bound on all chunks of logits alive at once, those kept for
            backward included; at least one row is processed at a time.
        impl: "triton", "torch", or "auto": Triton on a GPU, PyTorch elsewhere and for fp64.

    Returns:
        Natural-log probabilities [N], fp32, or fp64 for fp64 input. Differentiable once with
        respect to hidden, weight and bias; no gradient is computed for one that does not require
        it.

    Raises:
        TypeError: An argument is not a plain tensor (a DTensor, such as a parameter that FSDP2 has
            sharded, is rejected) or not a number, or a dtype does not match or is not supported.
        ValueError: A shape, a device, a target, ``impl`` or a number is wrong. On a GPU, a target
            outside the vocabulary is a device-side assertion instead.
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
    """Reference implementation of :func:`linear_log_softmax_gather`, unchunked.

    PyTorch's own autograd. Arguments and result are the same; ``memory_budget_bytes`` and ``impl``
    are ignored, and nothing is validated.
    """
    del memory_budget_bytes, impl
    z = torch.nn.functional.linear(hidden, weight, bias)
    z = z.to(accumulation_dtype(z.dtype)) / temperature
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    index, scored = split_targets(targets)
    target_logps = torch.log_softmax(z, dim=1).gather(1, index[:, None])[:, 0]
    return torch.where(scored, target_logps, torch.zeros_like(target_logps))


# The names of the operators and of their arguments are part of exported graphs.
class _ForwardArguments(NamedTuple):
    """Arguments of the forward operator, in the order of its schema."""

    hidden: Tensor  # [N, D]
    weight: Tensor  # [V, D]
    bias: Tensor | None  # [V]
    targets: Tensor  # [N]
    dtype: torch.dtype  # of the matrix multiplication
    softcap: float | None
    temperature: float
    budget_bytes: int
    keep: bool  # whether logits are kept for backward
    impl: str


class _BackwardArguments(NamedTuple):
    """Arguments of the backward operator, in the order of its schema.

    Those that the forward operator has too are passed on to it by name.
    """

    grad: Tensor  # [N] of the log-probs
    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    targets: Tensor
    top: Tensor  # [N] row maxima
    log_total: Tensor  # [N] log of each row's sum of exp(logit - maximum)
    kept: Tensor  # [K, W] raw logits of the first K rows
    dtype: torch.dtype
    softcap: float | None
    temperature: float
    budget_bytes: int
    impl: str
    for_hidden: bool  # whether a gradient is required of it
    for_weight: bool
    for_bias: bool


_SAVED = ("hidden", "weight", "bias", "targets", "top", "log_total", "kept")
_SETTINGS = tuple(
    name
    for name in _BackwardArguments._fields
    if name in _ForwardArguments._fields and name not in _SAVED
)


def _head(given: _ForwardArguments | _BackwardArguments) -> LinearHead:
    scale = LogitScale(given.temperature, given.softcap)
    return LinearHead.of(given.weight, given.bias, given.dtype, scale, given.impl)


def _plan(num_rows: int, head: LinearHead, budget_bytes: int, keep: bool) -> tuple[int, int]:
    """Return the number of rows per chunk, and how many of the first rows keep their logits.

    Backward needs a working chunk beside the kept ones. If not everything fits, the working chunk
    gets half of the budget: each chunk adds to the weight's gradient in fp32, which costs as much
    as the multiplication of a few hundred rows, and a kept row saves one multiplication of four.
    """
    if not keep:
        return chunk_size(num_rows, head.enough_rows(budget_bytes)), 0
    row_bytes = padded_vocab(head.vocab) * head.dtype.itemsize
    work_bytes = padded_vocab(head.vocab) * head.ops.work_bytes(head.dtype, head.scale)
    if num_rows * (row_bytes + work_bytes) <= budget_bytes:
        return max(1, num_rows), num_rows
    size = chunk_size(num_rows, head.rows_in_budget(budget_bytes // 2))
    kept = max(0, budget_bytes - size * work_bytes) // row_bytes
    return size, min(num_rows, kept - kept % size)


def _compute_forward(given: _ForwardArguments) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return log-probs, row maxima and logs of sums, each [N], and the kept raw logits [K, W]."""
    hidden, num_rows, targets = given.hidden, given.hidden.shape[0], given.targets.contiguous()
    check_target_values(targets, given.weight.shape[0], given.impl)
    with torch.autocast(hidden.device.type, enabled=False):
        head = _head(given)
        size, num_kept = _plan(num_rows, head, given.budget_bytes, given.keep)
        kept = head.new_chunk(num_kept)
        kept[:, head.vocab :] = 0
        buffer: Tensor | None = None
        logps, row_max, log_sum = (
            torch.empty_like(targets, dtype=accumulation_dtype(given.dtype)) for _ in range(3)
        )
        for rows in row_chunks(num_rows, size):
            x = head.rows(hidden, rows)
            is_kept = rows.stop <= num_kept
            # Allocated only here: the chunks that are kept need that memory while they are scored.
            if not is_kept and buffer is None:
                buffer = head.new_chunk(len(x))
            z = head.logits_(x, kept[rows] if buffer is None else buffer[: len(x)])
            t = targets[rows]
            results = head.ops.logps(z, head.vocab, t, head.exact(x, t), head.scale, keep=is_kept)
            logps[rows], row_max[rows], log_sum[rows] = results
    return logps, row_max, log_sum, kept


def _fake_forward(given: _ForwardArguments) -> Any:
    head = _head(given)
    num_kept = _plan(given.hidden.shape[0], head, given.budget_bytes, given.keep)[1]
    dtype = accumulation_dtype(given.dtype)
    vectors = (torch.empty_like(given.targets, dtype=dtype) for _ in range(3))
    return *vectors, head.new_chunk(num_kept)


def _compute_backward(given: _BackwardArguments) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of hidden, weight and bias; an empty tensor where none is required."""
    hidden, weight, bias, kept = given.hidden, given.weight, given.bias, given.kept
    num_rows, num_kept = hidden.shape[0], kept.shape[0]
    grad, targets = given.grad.contiguous(), given.targets.contiguous()
    sum_dtype = accumulation_dtype(given.dtype)
    d_hidden = hidden.new_empty(hidden.shape if given.for_hidden else 0)
    with torch.autocast(hidden.device.type, enabled=False):
        head = _head(given)
        size = _plan(num_rows, head, given.budget_bytes, keep=True)[0]
        # Sums over chunks are in fp32 whatever the head's dtype; a single chunk needs no sum.
        is_one_chunk = num_rows <= size and weight.dtype == given.dtype
        shape = weight.shape if given.for_weight else 0
        d_weight = weight.new_empty(shape, dtype=given.dtype if is_one_chunk else sum_dtype)
        d_bias = weight.new_zeros(head.vocab if given.for_bias else 0, dtype=sum_dtype)
        if num_rows == 0:
            d_weight.zero_()
        buffer = head.new_chunk(size if num_rows else 0)
        for rows in row_chunks(num_rows, size):
            x, t, dz = head.rows(hidden, rows), targets[rows], buffer[: rows.stop - rows.start]
            z = kept[rows] if rows.stop <= num_kept else head.logits_(x, dz)
            normalizer = given.top[rows], given.log_total[rows]
            exact = head.exact(x, t)
            head.ops.logps_backward(z, head.vocab, t, exact, normalizer, grad[rows], head.scale, dz)
            dz = dz[:, : head.vocab]
            if given.for_bias:
                d_bias += dz.sum(0, dtype=sum_dtype)
            if given.for_hidden:
                d_hidden[rows] = dz @ head.weight
            if given.for_weight:
                accumulate_matmul_(d_weight, dz.T, x, first=rows.start == 0)
    return d_hidden, d_weight.to(weight.dtype), d_bias.to((weight if bias is None else bias).dtype)


def _fake_backward(given: _BackwardArguments) -> tuple[Tensor, Tensor, Tensor]:
    hidden, weight = given.hidden, given.weight
    bias_dtype = weight.dtype if given.bias is None else given.bias.dtype
    return (
        hidden.new_empty(hidden.shape if given.for_hidden else 0),
        weight.new_empty(weight.shape if given.for_weight else 0),
        weight.new_empty(weight.shape[0] if given.for_bias else 0, dtype=bias_dtype),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    given = _ForwardArguments(*inputs)
    _, row_max, log_sum, kept = output
    ctx.settings = {name: getattr(given, name) for name in _SETTINGS}
    ctx.mark_non_differentiable(row_max, log_sum, kept)
    ctx.set_materialize_grads(False)  # it would allocate zeros of the size of the kept logits
    # The weight itself is saved, not its cast: as a parameter it takes no additional memory.
    ctx.save_for_backward(
        given.hidden, given.weight, given.bias, given.targets, row_max, log_sum, kept
    )


def _differentiate(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    num_inputs = len(_ForwardArguments._fields)
    if grad is None:  # the log-probs were not used
        return (None,) * num_inputs
    needs = ctx.needs_input_grad[:3]
    saved = dict(zip(_SAVED, ctx.saved_tensors, strict=True))
    for_hidden, for_weight, for_bias = needs
    given = _BackwardArguments(
        grad=grad,
        **saved,
        **ctx.settings,
        for_hidden=for_hidden,
        for_weight=for_weight,
        for_bias=for_bias,
    )
    results = zip(_backward(*given), needs, strict=True)
    gradients = (value if needed else None for value, needed in results)
    return *gradients, *[None] * (num_inputs - len(needs))


_forward = define_custom_op(
    "spin_kernels::linear_log_softmax_gather", _ForwardArguments, _compute_forward, _fake_forward
)
_backward = define_custom_op(
    "spin_kernels::linear_log_softmax_gather_backward",
    _BackwardArguments,
    _compute_backward,
    _fake_backward,
)
_forward.register_autograd(_differentiate, setup_context=_setup_context)
