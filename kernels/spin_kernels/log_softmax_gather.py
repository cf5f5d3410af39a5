"""log_softmax_gather: log-probabilities of given tokens from logits that already exist.

Dimensions: N scored tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spin_kernels.checks import check_matrix, check_targets
from spin_kernels.rows import (
    accumulation_dtype,
    logps_,
    logps_backward_,
    row_chunks,
    split_targets,
)

_BUDGET_BYTES = 2**28


def log_softmax_gather(logits: Tensor, targets: Tensor) -> Tensor:
    """Return ``log_softmax(logits)[n, targets[n]]`` without an fp32 copy of the logits.

    logps[n] = logits[n, targets[n]] - log(sum_v exp(logits[n, v])), 0 where targets[n] is -100.

    Args:
        logits: [N, V] of any floating dtype; entries of -inf (padded vocabulary) are allowed.
        targets: [N] int64; -100 marks a row without log-probability and without gradient.

    Returns:
        [N] fp32, or fp64 for fp64 logits. Once differentiable in ``logits``.

    Raises:
        TypeError, ValueError: An argument's dtype, shape or device is wrong, or (CPU tensors only)
            a target is outside the vocabulary.
    """
    check_matrix("logits", logits)
    check_targets(targets, logits.shape[0], logits.shape[1], logits.device)
    return _LogSoftmaxGather.apply(logits, targets)  # type: ignore[no-any-return]


def log_softmax_gather_ref(logits: Tensor, targets: Tensor) -> Tensor:
    """Plain twin of :func:`log_softmax_gather`: same arguments, same values, PyTorch's autograd."""
    safe, scored = split_targets(targets)
    logps = torch.log_softmax(logits.to(accumulation_dtype(logits.dtype)), dim=1)
    picked = logps.gather(1, safe[:, None])[:, 0]
    return torch.where(scored, picked, torch.zeros_like(picked))


class _LogSoftmaxGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        dtype = accumulation_dtype(logits.dtype)
        safe, scored = split_targets(targets)
        logps, top, log_total = torch.empty(
            3, logits.shape[0], dtype=dtype, device=logits.device
        ).unbind()
        for rows in _chunks(logits):
            z = logits[rows].to(dtype, copy=True)
            logps[rows], top[rows], log_total[rows] = logps_(z, safe[rows])
        ctx.save_for_backward(logits, safe, scored, top, log_total)
        return torch.where(scored, logps, torch.zeros_like(logps))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        logits, safe, scored, top, log_total = ctx.saved_tensors
        grad = torch.where(scored, grad, torch.zeros_like(grad))
        grad_logits = torch.empty_like(logits)
        for rows in _chunks(logits):
            z = logits[rows].to(top.dtype, copy=True)
            grad_logits[rows] = logps_backward_(
                z, safe[rows], top[rows], log_total[rows], grad[rows]
            )
        return grad_logits, None


def _chunks(logits: Tensor) -> list[slice]:
    item = accumulation_dtype(logits.dtype).itemsize
    return list(row_chunks(logits.shape[0], logits.shape[1] * item, _BUDGET_BYTES))
