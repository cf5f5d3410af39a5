"""log_softmax_gather: log-probabilities of given tokens from logits that already exist.

Dimensions: N scored tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spin_kernels.checks import (
    check_matrix,
    check_target_values,
    check_targets,
    resolve_impl,
    row_ops,
)
from spin_kernels.shape import LogitScale, accumulation_dtype, row_chunks
from spin_kernels.torch_ops import split_targets

_BUDGET_BYTES = 2**28
"""Bound on the wide copies that the PyTorch implementation makes; Triton's makes none."""


def log_softmax_gather(
    logits: Tensor, targets: Tensor, inplace_backward: bool = False, impl: str = "auto"
) -> Tensor:
    """Return ``log_softmax(logits)[n, targets[n]]`` without an fp32 copy of the logits.

    logps[n] = logits[n, targets[n]] - log(sum_v exp(logits[n, v])), 0 where targets[n] is -100.

    Args:
        logits: [N, V] of any floating dtype and strides; -inf entries (padded vocabulary) are
            allowed.
        targets: [N] int64; -100 marks a row without log-probability and without gradient.
        inplace_backward: backward overwrites ``logits`` with its own gradient, which saves a
            second [N, V]. Whatever else reads the logits after that fails in autograd's version
            check. Under torch.compile, which plans its own memory, it changes nothing.
        impl: "triton", "torch", or "auto": Triton on a GPU, PyTorch elsewhere and for fp64.

    Returns:
        [N] fp32, or fp64 for fp64 logits. Once differentiable in ``logits``.

    Raises:
        TypeError, ValueError: An argument's dtype, shape, device or value is wrong (a target
            outside the vocabulary on a GPU: an assertion of the device).
    """
    check_matrix("logits", logits)
    check_targets(targets, logits.shape[0], logits.shape[1], logits.device)
    impl = resolve_impl(impl, logits.device, logits.dtype)
    if inplace_backward and any(
        stride == 0 and size > 1 for stride, size in zip(logits.stride(), logits.shape, strict=True)
    ):
        raise ValueError(
            f"inplace_backward needs logits with a place for each, got strides {logits.stride()} "
            f"of shape {tuple(logits.shape)}. Give logits.contiguous()."
        )
    inplace = inplace_backward and not torch.compiler.is_compiling()
    return _forward(logits, targets, inplace, impl)[0]


def log_softmax_gather_ref(
    logits: Tensor, targets: Tensor, inplace_backward: bool = False, impl: str = "auto"
) -> Tensor:
    """Plain twin of :func:`log_softmax_gather`: PyTorch's own autograd.

    ``inplace_backward`` and ``impl`` are accepted and ignored.
    """
    del inplace_backward, impl
    safe, scored = split_targets(targets)
    logps = torch.log_softmax(logits.to(accumulation_dtype(logits.dtype)), dim=1)
    picked = logps.gather(1, safe[:, None])[:, 0]
    return torch.where(scored, picked, torch.zeros_like(picked))


@torch.library.custom_op("spin_kernels::log_softmax_gather", mutates_args=())
def _forward(
    logits: Tensor, targets: Tensor, inplace_backward: bool, impl: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Return logps, top and log_total, each [N]."""
    del inplace_backward
    targets = targets.contiguous()
    check_target_values(targets, logits.shape[1], impl)
    ops = row_ops(impl)
    parts = [
        ops.logps(logits[rows], logits.shape[1], targets[rows], None, LogitScale(), keep=True)
        for rows in _chunks(logits, impl)
    ]
    if len(parts) == 1:
        return parts[0]
    logps, top, log_total = (torch.cat(column) for column in zip(*parts, strict=True))
    return logps, top, log_total


@_forward.register_fake
def _(logits: Tensor, targets: Tensor, inplace_backward: bool, impl: str) -> Any:
    del inplace_backward, impl
    dtype = accumulation_dtype(logits.dtype)
    return tuple(torch.empty_like(targets, dtype=dtype) for _ in range(3))


@torch.library.custom_op("spin_kernels::log_softmax_gather_backward", mutates_args=())
def _backward(
    grad: Tensor, logits: Tensor, targets: Tensor, top: Tensor, log_total: Tensor, impl: str
) -> Tensor:
    """Return the gradient [N, V] of the logits."""
    out = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    _write_gradient(out, grad, logits, targets, top, log_total, impl)
    return out


@_backward.register_fake
def _(
    grad: Tensor, logits: Tensor, targets: Tensor, top: Tensor, log_total: Tensor, impl: str
) -> Tensor:
    del grad, targets, top, log_total, impl
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)


@torch.library.custom_op("spin_kernels::log_softmax_gather_backward_", mutates_args=("logits",))
def _backward_(
    grad: Tensor, logits: Tensor, targets: Tensor, top: Tensor, log_total: Tensor, impl: str
) -> None:
    """Overwrite the logits [N, V] with their gradient."""
    _write_gradient(logits, grad, logits, targets, top, log_total, impl)


def _write_gradient(
    out: Tensor,
    grad: Tensor,
    logits: Tensor,
    targets: Tensor,
    top: Tensor,
    log_total: Tensor,
    impl: str,
) -> None:
    grad, targets, ops = grad.contiguous(), targets.contiguous(), row_ops(impl)
    for rows in _chunks(logits, impl):
        norm = top[rows], log_total[rows]
        ops.logps_backward(
            logits[rows],
            logits.shape[1],
            targets[rows],
            None,
            norm,
            grad[rows],
            LogitScale(),
            out[rows],
        )


def _chunks(logits: Tensor, impl: str) -> list[slice]:
    """Return the rows taken at a time; one empty slice where there are none."""
    num_rows, vocab = logits.shape
    if impl == "triton":
        return [slice(0, num_rows)]
    item = accumulation_dtype(logits.dtype).itemsize
    return row_chunks(num_rows, max(1, _BUDGET_BYTES // (vocab * item))) or [slice(0, 0)]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, targets, ctx.inplace, ctx.impl = inputs
    _, top, log_total = output
    ctx.mark_non_differentiable(top, log_total)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(logits, targets, top, log_total)


def _differentiate(
    ctx: Any, grad: Tensor | None, *_: Any
) -> tuple[Tensor | None, None, None, None]:
    if grad is None:  # nothing was made of the log-probs
        return None, None, None, None
    logits, targets, top, log_total = ctx.saved_tensors
    if not ctx.inplace:
        return _backward(grad, logits, targets, top, log_total, ctx.impl), None, None, None
    logits = logits.detach()  # shares its version counter: a second reader is still found out
    _backward_(grad, logits, targets, top, log_total, ctx.impl)
    return logits, None, None, None


_forward.register_autograd(_differentiate, setup_context=_setup_context)
