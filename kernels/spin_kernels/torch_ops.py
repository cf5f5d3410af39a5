"""The row operations in plain PyTorch, for any device and dtype.

Same functions as in ``triton_ops``. Sums are in fp32, or fp64 for fp64 logits.

Dimensions: C rows of a chunk, W columns of its matrix, V <= W vocabulary (the columns from V on are
padding), D model width, S sequences.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spin_kernels.checks import IGNORED
from spin_kernels.shape import LogitScale, accumulation_dtype


def split_targets(targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return targets [C] with ignored ones as 0, and the mask [C] of the scored rows."""
    scored = targets != IGNORED
    return torch.where(scored, targets, torch.zeros_like(targets)), scored


def work_bytes(dtype: torch.dtype, scale: LogitScale) -> int:
    """Return the bytes per logit alive while a chunk is worked on.

    The chunk, its wide copy where its dtype is narrow, and the cap's slope in backward.
    """
    wide = accumulation_dtype(dtype)
    copies = (dtype != wide) + (scale.softcap is not None)
    return dtype.itemsize + copies * wide.itemsize


def logps(
    z: Tensor, vocab: int, targets: Tensor, exact: Tensor | None, scale: LogitScale, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the log-probs [C] of targets [C] under raw logits z [C, W], and their norm.

    The norm is the largest logit [C] and the log [C] of the sum over it: log-sum-exp in two parts,
    since their sum in fp32 is off by 1e-6 where logits are near 20. With ``keep``, z is only read.
    """
    safe, scored = split_targets(targets)
    wide = _final_logits_(_wide(z, vocab, copy=keep), safe, exact, scale)
    picked, top, total = _normalise_(wide, safe)
    log_total = total.log_()
    return _zero_ignored(picked - top - log_total, scored), top, log_total


def logps_and_gradient_(
    z: Tensor, vocab: int, targets: Tensor, exact: Tensor | None, scale: LogitScale
) -> Tensor:
    """Return the log-probs [C], and overwrite z [C, W] with d logps / d raw logits."""
    safe, scored = split_targets(targets)
    wide = _final_logits_(_wide(z, vocab, copy=False), safe, exact, scale)
    slope = _slope(wide, scale)
    picked, top, total = _normalise_(wide, safe)
    wide.mul_((-scored.to(wide.dtype) / total)[:, None])
    _finish_gradient_(wide, safe, scored.to(wide.dtype), scored, slope, scale)
    if z.dtype != wide.dtype:
        z[:, :vocab].copy_(wide)
    return _zero_ignored(picked - top - total.log_(), scored)


def logps_backward(
    z: Tensor,
    vocab: int,
    targets: Tensor,
    exact: Tensor | None,
    norm: tuple[Tensor, Tensor],
    grad: Tensor,
    scale: LogitScale,
    out: Tensor,
) -> None:
    """Write grad [C] * d logps / d raw logits to ``out`` [C, W], which may be z [C, W]."""
    safe, scored = split_targets(targets)
    if out.dtype == accumulation_dtype(out.dtype):
        wide = out[:, :vocab].copy_(z[:, :vocab])
    else:
        wide = _wide(z, vocab, copy=True)
    _final_logits_(wide, safe, exact, scale)
    slope = _slope(wide, scale)
    top, log_total = norm
    grad = torch.where(scored, grad.to(wide.dtype), 0.0)
    wide.sub_(top[:, None]).sub_(log_total[:, None]).exp_().mul_(-grad[:, None])
    _finish_gradient_(wide, safe, grad, scored, slope, scale)
    if out.dtype != wide.dtype:
        out[:, :vocab].copy_(wide)


def _wide(z: Tensor, vocab: int, copy: bool) -> Tensor:
    """Return the logits of the vocabulary [C, V] in the dtype that sums are made in."""
    return z[:, :vocab].to(accumulation_dtype(z.dtype), copy=copy)


def _final_logits_(wide: Tensor, safe: Tensor, exact: Tensor | None, scale: LogitScale) -> Tensor:
    """Turn raw logits [C, V] into the logits that the softmax sees, in place."""
    if exact is not None:
        wide.scatter_(1, safe[:, None], exact[:, None].to(wide.dtype))
    if scale.temperature != 1.0:
        wide /= scale.temperature
    if scale.softcap is not None:
        wide.div_(scale.softcap).tanh_().mul_(scale.softcap)
    return wide


def _normalise_(wide: Tensor, safe: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Turn logits into exp(z - top), and return the targets' logits, top and the sums [C]."""
    picked = wide.gather(1, safe[:, None])[:, 0]
    top = wide.amax(1)
    return picked, top, wide.sub_(top[:, None]).exp_().sum(1)


def _slope(wide: Tensor, scale: LogitScale) -> Tensor | None:
    """Return the cap's derivative [C, V] at the final logits."""
    if scale.softcap is None:
        return None
    return (wide / scale.softcap).square_().neg_().add_(1)


def _finish_gradient_(
    wide: Tensor,
    safe: Tensor,
    grad: Tensor,
    scored: Tensor,
    slope: Tensor | None,
    scale: LogitScale,
) -> None:
    """Add the one-hot part to -grad * softmax [C, V] and go back through cap and scale."""
    wide.scatter_add_(1, safe[:, None], grad[:, None])  # one index a row: deterministic
    if slope is not None:
        wide *= slope
    if scale.temperature != 1.0:
        wide /= scale.temperature
    # A row without target may hold inf or nan. Where looking is free, the pass is left out.
    if wide.device.type != "cpu" or not bool(scored.all()):
        wide.masked_fill_(~scored[:, None], 0.0)


def _zero_ignored(values: Tensor, scored: Tensor) -> Tensor:
    return torch.where(scored, values, torch.zeros_like(values))


def target_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """Return hidden[c] . weight[targets[c]] + bias[targets[c]] [C] in fp32; 0 without target."""
    safe, scored = split_targets(targets)
    dots = (hidden.float() * weight[safe].float()).sum(1)
    if bias is not None:
        dots += bias[safe].float()
    return _zero_ignored(dots, scored)


def targets_ok(targets: Tensor, vocab: int) -> Tensor:
    """Return [1] bool: whether every target [N] is in [0, vocab) or -100."""
    wrong = (targets != IGNORED) & ((targets < 0) | (targets >= vocab))
    return ~wrong.any(0, keepdim=True)


def segment_sums(values: Tensor, offsets: Tensor) -> Tensor:
    """Return the sums [S] of values [N] between offsets [S + 1] int64, made in fp64."""
    sums = torch.segment_reduce(values.double(), "sum", lengths=offsets.diff(), unsafe=True)
    return sums.to(values.dtype)


def scale_(x: Tensor, scalar: Tensor) -> Tensor:
    """Multiply ``x`` by a scalar on its device, in place."""
    # With x's dimensions, the scalar keeps its own precision.
    return x.mul_(scalar.view((1,) * x.dim()))
