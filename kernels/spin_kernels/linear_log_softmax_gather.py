"""linear_log_softmax_gather: the LM head and the log-softmax as one operation.

Dimensions: N scored tokens, C rows of one chunk, D model width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spin_kernels.checks import check_matrix, check_positive, check_targets, check_weight
from spin_kernels.rows import (
    accumulation_dtype,
    logps_,
    logps_backward_,
    row_chunks,
    split_targets,
)

IMPLS = ("auto", "torch")


def linear_log_softmax_gather(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    softcap: float | None = None,
    temperature: float = 1.0,
    memory_budget_bytes: int = 2**28,
    impl: str = "auto",
) -> Tensor:
    """Return the log-probabilities of ``targets`` under a linear head, never holding [N, V].

    z = (hidden @ weight.T + bias) / temperature;  with softcap: z = softcap * tanh(z / softcap)
    logps[n] = z[n, targets[n]] - log(sum_v exp(z[n, v])), 0 where targets[n] is -100.

    Rows are taken in chunks; backward recomputes each chunk's logits from ``hidden``, so only
    [N] numbers are kept between forward and backward. Under autocast the matrix product is done in
    autocast's dtype like ``F.linear``; what follows it, and the target's own logit, is in fp32.

    Args:
        hidden: [N, D] floating point.
        weight: [V, D] of hidden's dtype (any floating dtype under autocast).
        targets: [N] int64; -100 marks a row without log-probability and without gradient.
        bias: [V] or None; -inf switches an entry of the vocabulary off.
        softcap: the cap of the logits (Gemma 2), or None.
        temperature: divides the logits before the cap (a logit scale is its inverse).
        memory_budget_bytes: bound on the logit chunks alive at a time; one row is the least.
        impl: "torch", or "auto" for the best implementation there is.

    Returns:
        [N] fp32, or fp64 for fp64 input. Once differentiable in hidden, weight and bias; what does
        not require a gradient costs nothing in backward.

    Raises:
        TypeError, ValueError: An argument's dtype, shape, device or value is wrong (targets'
            values are compared on the CPU only, so that a GPU is never waited for).
    """
    if impl not in IMPLS:
        raise ValueError(f"impl must be one of {IMPLS}, got {impl!r}.")
    check_matrix("hidden", hidden)
    check_matrix("weight", weight)
    matmul_dtype = _matmul_dtype(hidden)
    check_weight(hidden, weight, bias, same_dtype=matmul_dtype is None)
    check_targets(targets, hidden.shape[0], weight.shape[0], hidden.device)
    check_positive("temperature", temperature)
    check_positive("memory_budget_bytes", memory_budget_bytes)
    if softcap is not None:
        check_positive("softcap", softcap)
    spec = _Spec(matmul_dtype or hidden.dtype, softcap, temperature, memory_budget_bytes)
    return _LinearLogSoftmaxGather.apply(hidden, weight, bias, targets, spec)  # type: ignore[no-any-return]


def linear_log_softmax_gather_ref(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    softcap: float | None = None,
    temperature: float = 1.0,
    memory_budget_bytes: int = 2**28,
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


@dataclass(frozen=True)
class _Spec:
    """What is no tensor: the product's dtype, the shape of the logits and the budget."""

    matmul_dtype: torch.dtype
    softcap: float | None
    temperature: float
    budget_bytes: int

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of log-probabilities and of everything after the product."""
        return accumulation_dtype(self.matmul_dtype)

    def chunks(self, num_rows: int, vocab: int) -> list[slice]:
        # Alive at a time: the logits, their low-precision form, and the cap's slope in backward.
        item = self.dtype.itemsize * (2 if self.softcap is not None else 1)
        if self.matmul_dtype != self.dtype:
            item += self.matmul_dtype.itemsize
        return list(row_chunks(num_rows, vocab * item, self.budget_bytes))

    def logits(self, x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        """Return z [C, V] in ``dtype`` of the rows x [C, D], both operands in ``matmul_dtype``."""
        z = x @ weight.T
        if z.dtype != self.dtype:
            z = z.to(self.dtype)
            # A bf16 logit near 20 has a step of 0.125, and its error adds up over a sequence: the
            # target's logit is done again in fp32, inside the normalising sum as well.
            exact = (x.to(self.dtype) * weight[targets].to(self.dtype)).sum(1)
            z[torch.arange(len(z), device=z.device), targets] = exact
        if bias is not None:
            z += bias.to(self.dtype)
        if self.temperature != 1.0:
            z /= self.temperature
        if self.softcap is not None:
            z.div_(self.softcap).tanh_().mul_(self.softcap)
        return z

    def logits_backward_(
        self, z: Tensor, targets: Tensor, top: Tensor, log_total: Tensor, grad: Tensor
    ) -> Tensor:
        """Turn z [C, V] into the gradient of the unscaled, uncapped logits, in place."""
        slope = None if self.softcap is None else (z / self.softcap).square_().neg_().add_(1)
        dz = logps_backward_(z, targets, top, log_total, grad)
        if slope is not None:
            dz *= slope
        if self.temperature != 1.0:
            dz /= self.temperature
        return dz


class _LinearLogSoftmaxGather(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, spec: _Spec
    ) -> Tensor:
        safe, scored = split_targets(targets)
        logps, top, log_total = torch.empty(
            3, hidden.shape[0], dtype=spec.dtype, device=hidden.device
        ).unbind()
        with torch.autocast(hidden.device.type, enabled=False):
            w = weight.to(spec.matmul_dtype)
            for rows in spec.chunks(hidden.shape[0], weight.shape[0]):
                z = spec.logits(hidden[rows].to(spec.matmul_dtype), w, bias, safe[rows])
                logps[rows], top[rows], log_total[rows] = logps_(z, safe[rows])
                del z  # before the next chunk's product is made
        # The weight itself is saved, not its cast: it is a parameter and costs nothing.
        ctx.save_for_backward(hidden, weight, bias, safe, scored, top, log_total)
        ctx.spec = spec
        return torch.where(scored, logps, torch.zeros_like(logps))

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        hidden, weight, bias, safe, scored, top, log_total = ctx.saved_tensors
        spec: _Spec = ctx.spec
        for_hidden, for_weight, for_bias = ctx.needs_input_grad[:3]
        grad = torch.where(scored, grad, torch.zeros_like(grad))
        d_hidden = torch.empty_like(hidden) if for_hidden else None
        # Sums over rows are kept in fp32 whatever the product's dtype.
        d_weight = torch.zeros_like(weight, dtype=spec.dtype) if for_weight else None
        d_bias = torch.zeros_like(bias, dtype=spec.dtype) if for_bias else None
        with torch.autocast(hidden.device.type, enabled=False):
            w = weight.to(spec.matmul_dtype)
            for rows in spec.chunks(hidden.shape[0], weight.shape[0]):
                x = hidden[rows].to(spec.matmul_dtype)
                dz = spec.logits(x, w, bias, safe[rows])
                norm = top[rows], log_total[rows]
                dz = spec.logits_backward_(dz, safe[rows], *norm, grad[rows])
                if d_bias is not None:
                    d_bias += dz.sum(0)
                dz = dz.to(spec.matmul_dtype)
                if d_hidden is not None:
                    d_hidden[rows] = dz @ w
                if d_weight is not None and dz.dtype == spec.dtype:
                    d_weight.addmm_(dz.T, x)
                elif d_weight is not None:
                    d_weight += dz.T @ x
                del dz  # before the next chunk's product is made
        d_weight = None if d_weight is None else d_weight.to(weight.dtype)
        d_bias = None if d_bias is None else d_bias.to(bias.dtype)
        return d_hidden, d_weight, d_bias, None, None


def _matmul_dtype(hidden: Tensor) -> torch.dtype | None:
    """Return autocast's dtype where autocast would cast ``hidden``, else None."""
    device = hidden.device.type
    if hidden.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)
