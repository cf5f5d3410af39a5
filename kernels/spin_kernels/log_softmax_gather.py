"""log_softmax_gather: log-probabilities of given tokens from logits that already exist.

Dimensions: N scored tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spin_kernels.checks import check_matrix, check_target_values, check_targets
from spin_kernels.dispatch import resolve_impl, row_ops
from spin_kernels.shape import LogitScale, accumulation_dtype, row_chunks
from spin_kernels.targets import split_targets

_BUDGET_BYTES = 2**28
"""Bound on each upcast copy of logits in the PyTorch implementation; Triton's makes none."""


def log_softmax_gather(
    logits: Tensor, targets: Tensor, inplace_backward: bool = False, impl: str = "auto"
) -> Tensor:
    """Return ``log_softmax(logits)[n, targets[n]]`` without an fp32 copy of the logits.

    logps[n] = logits[n, targets[n]] - log(sum_v exp(logits[n, v])), 0 where targets[n] is -100.

    Args:
        logits: [N, V] float32, bfloat16, float16 or float64, with any strides; entries of -inf
            (padded vocabulary) are allowed.
        targets: [N] int64 on the logits' device; a row with target -100 is ignored: its log-prob is
            0 and its gradient is zero.
        inplace_backward: let backward overwrite ``logits`` with their gradient, which saves a
            second [N, V]. If another operation saved the logits for its own backward, autograd's
            version check raises an error. No effect under torch.compile, which plans memory itself.
        impl: "triton", "torch", or "auto": Triton on a GPU, PyTorch elsewhere and for fp64.

    Returns:
        Natural-log probabilities [N], fp32, or fp64 for fp64 logits. Differentiable once with
        respect to ``logits``.

    Raises:
        TypeError: An argument is not a plain tensor (a DTensor is rejected), or its dtype or the
            implementation's is not supported.
        ValueError: A shape, a device, a target or ``impl`` is wrong. On a GPU, a target outside
            the vocabulary is a device-side assertion instead.
    """
    check_matrix("logits", logits)
    check_targets(targets, logits.shape[0], logits.shape[1], logits.device)
    impl = resolve_impl(impl, logits.device, logits.dtype)
    if inplace_backward and any(
        stride == 0 and size > 1 for stride, size in zip(logits.stride(), logits.shape, strict=True)
    ):
        raise ValueError(
            "inplace_backward needs logits whose elements do not share memory, got strides "
            f"{logits.stride()} of shape {tuple(logits.shape)}. Pass logits.contiguous()."
        )
    inplace = inplace_backward and not torch.compiler.is_compiling()
    return _forward(logits, targets, inplace, impl)[0]


def log_softmax_gather_ref(
    logits: Tensor, targets: Tensor, inplace_backward: bool = False, impl: str = "auto"
) -> Tensor:
    """Reference implementation of :func:`log_softmax_gather` with PyTorch's own autograd.

    Arguments and result are the same; ``inplace_backward`` and ``impl`` are ignored, and nothing is
    validated.
    """
    del inplace_backward, impl
    index, scored = split_targets(targets)
    logps = torch.log_softmax(logits.to(accumulation_dtype(logits.dtype)), dim=1)
    target_logps = logps.gather(1, index[:, None])[:, 0]
    return torch.where(scored, target_logps, torch.zeros_like(target_logps))


@torch.library.custom_op("spin_kernels::log_softmax_gather", mutates_args=())
def _forward(
    logits: Tensor, targets: Tensor, inplace_backward: bool, impl: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-probs, row maxima and logs of the sums of exp(logit - maximum), each [N]."""
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
    logps, row_max, log_sum = (torch.cat(column) for column in zip(*parts, strict=True))
    return logps, row_max, log_sum


@_forward.register_fake
def _(logits: Tensor, targets: Tensor, inplace_backward: bool, impl: str) -> Any:
    del inplace_backward, impl
    dtype = accumulation_dtype(logits.dtype)
    return tuple(torch.empty_like(targets, dtype=dtype) for _ in range(3))


# The names of the operators and of their arguments are part of exported graphs: ``top`` is the row
# maximum, ``log_total`` the log of the sum.
@torch.library.custom_op("spin_kernels::log_softmax_gather_backward", mutates_args=())
def _backward(
    grad: Tensor, logits: Tensor, targets: Tensor, top: Tensor, log_total: Tensor, impl: str
) -> Tensor:
    """Return the gradient of the logits, [N, V]."""
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
        ops.logps_backward(
            logits[rows],
            logits.shape[1],
            targets[rows],
            None,
            (top[rows], log_total[rows]),
            grad[rows],
            LogitScale(),
            out[rows],
        )


def _chunks(logits: Tensor, impl: str) -> list[slice]:
    """Return the rows to process at a time; a single empty slice if there are no rows."""
    num_rows, vocab = logits.shape
    if impl == "triton":
        return [slice(0, num_rows)]
    item = accumulation_dtype(logits.dtype).itemsize
    return row_chunks(num_rows, max(1, _BUDGET_BYTES // (vocab * item))) or [slice(0, 0)]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, targets, ctx.inplace, ctx.impl = inputs
    _, row_max, log_sum = output
    ctx.mark_non_differentiable(row_max, log_sum)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(logits, targets, row_max, log_sum)


def _differentiate(
    ctx: Any, grad: Tensor | None, *_: Any
) -> tuple[Tensor | None, None, None, None]:
    if grad is None:  # the log-probs were not used
        return None, None, None, None
    logits, targets, row_max, log_sum = ctx.saved_tensors
    if not ctx.inplace:
        return _backward(grad, logits, targets, row_max, log_sum, ctx.impl), None, None, None
    # Detached logits share the version counter, so that autograd still detects another reader.
    logits = logits.detach()
    _backward_(grad, logits, targets, row_max, log_sum, ctx.impl)
    return logits, None, None, None


_forward.register_autograd(_differentiate, setup_context=_setup_context)
