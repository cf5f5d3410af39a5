"""The row operations in plain PyTorch, for any device and dtype.

Defines the same functions as ``triton_ops``. They accumulate in fp32, or in fp64 for fp64 logits.

Dimensions: C rows of a chunk, W columns of its matrix, V <= W vocabulary (the columns from V on are
padding), D model width, N values, S segments.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spin_kernels.shape import LogitScale, accumulation_dtype
from spin_kernels.targets import IGNORE_INDEX, split_targets


def work_bytes(dtype: torch.dtype, scale: LogitScale) -> int:
    """Return the peak number of bytes per logit while a chunk of logits is processed.

    Counts the chunk, its fp32 copy if its dtype is narrower, and in backward the softcap's slope.
    """
    upcast_dtype = accumulation_dtype(dtype)
    copies = (dtype != upcast_dtype) + (scale.softcap is not None)
    return dtype.itemsize + copies * upcast_dtype.itemsize


def logps(
    z: Tensor, vocab: int, targets: Tensor, exact: Tensor | None, scale: LogitScale, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the log-probs of the targets, and the log-sum-exp of each row.

    The log-sum-exp is returned in two parts, because their fp32 sum is off by 1e-6 where logits are
    near 20.

    Args:
        z: [C, W] raw logits; overwritten unless ``keep``.
        vocab: V.
        targets: [C] int64, -100 for ignored rows.
        exact: [C] the targets' raw logits in higher precision, or None to read them from z.
        scale: the temperature and the softcap.
        keep: leave z unchanged.

    Returns:
        Log-probs [C], 0 in ignored rows; row maxima [C]; and the log [C] of each row's sum of
        exp(logit - maximum). All in the accumulation dtype.
    """
    index, scored = split_targets(targets)
    upcast = _final_logits_(_upcast(z, vocab, copy=keep), index, exact, scale)
    target_logit, row_max, exp_sum = _exponentiate_(upcast, index)
    log_sum = exp_sum.log_()
    return _zero_ignored(target_logit - row_max - log_sum, scored), row_max, log_sum


def logps_and_gradient_(
    z: Tensor, vocab: int, targets: Tensor, exact: Tensor | None, scale: LogitScale
) -> Tensor:
    """Return the log-probs [C], and overwrite z [C, W] with d logps / d raw logits.

    The arguments are those of :func:`logps`.
    """
    index, scored = split_targets(targets)
    upcast = _final_logits_(_upcast(z, vocab, copy=False), index, exact, scale)
    slope = _softcap_slope(upcast, scale)
    target_logit, row_max, exp_sum = _exponentiate_(upcast, index)
    upcast.mul_((-scored.to(upcast.dtype) / exp_sum)[:, None])
    _finish_gradient_(upcast, index, scored.to(upcast.dtype), scored, slope, scale)
    if z.dtype != upcast.dtype:
        z[:, :vocab].copy_(upcast)
    return _zero_ignored(target_logit - row_max - exp_sum.log_(), scored)


def logps_backward(
    z: Tensor,
    vocab: int,
    targets: Tensor,
    exact: Tensor | None,
    normalizer: tuple[Tensor, Tensor],
    grad: Tensor,
    scale: LogitScale,
    out: Tensor,
) -> None:
    """Write grad * d logps / d raw logits to ``out``.

    Args:
        z: [C, W] raw logits.
        vocab: V.
        targets: [C] int64, -100 for ignored rows; their gradient is 0.
        exact: as in :func:`logps`.
        normalizer: the row maxima [C] and logs of sums [C] that :func:`logps` returned.
        grad: [C] the gradient of the log-probs.
        scale: the temperature and the softcap.
        out: [C, W]; may be z itself.
    """
    index, scored = split_targets(targets)
    if out.dtype == accumulation_dtype(out.dtype):
        upcast = out[:, :vocab].copy_(z[:, :vocab])
    else:
        upcast = _upcast(z, vocab, copy=True)
    _final_logits_(upcast, index, exact, scale)
    slope = _softcap_slope(upcast, scale)
    row_max, log_sum = normalizer
    grad = torch.where(scored, grad.to(upcast.dtype), 0.0)
    upcast.sub_(row_max[:, None]).sub_(log_sum[:, None]).exp_().mul_(-grad[:, None])
    _finish_gradient_(upcast, index, grad, scored, slope, scale)
    if out.dtype != upcast.dtype:
        out[:, :vocab].copy_(upcast)


def _upcast(z: Tensor, vocab: int, copy: bool) -> Tensor:
    """Return the logits without padding, [C, V], in the accumulation dtype."""
    return z[:, :vocab].to(accumulation_dtype(z.dtype), copy=copy)


def _final_logits_(
    upcast: Tensor, index: Tensor, exact: Tensor | None, scale: LogitScale
) -> Tensor:
    """Turn raw logits [C, V] into the softmax's input, in place."""
    if exact is not None:
        upcast.scatter_(1, index[:, None], exact[:, None].to(upcast.dtype))
    if scale.temperature != 1.0:
        upcast /= scale.temperature
    if scale.softcap is not None:
        upcast.div_(scale.softcap).tanh_().mul_(scale.softcap)
    return upcast


def _exponentiate_(upcast: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Replace logits by exp(logit - row maximum); return target logits, maxima and sums, [C]."""
    target_logit = upcast.gather(1, index[:, None])[:, 0]
    row_max = upcast.amax(1)
    return target_logit, row_max, upcast.sub_(row_max[:, None]).exp_().sum(1)


def _softcap_slope(upcast: Tensor, scale: LogitScale) -> Tensor | None:
    """Return the softcap's derivative [C, V] at the final logits; None without a softcap."""
    if scale.softcap is None:
        return None
    return (upcast / scale.softcap).square_().neg_().add_(1)


def _finish_gradient_(
    upcast: Tensor,
    index: Tensor,
    grad: Tensor,
    scored: Tensor,
    slope: Tensor | None,
    scale: LogitScale,
) -> None:
    """Turn -grad * softmax [C, V] into the gradient of the raw logits, in place.

    Adds the one-hot term, and multiplies by the derivatives of softcap and temperature.
    """
    upcast.scatter_add_(1, index[:, None], grad[:, None])  # one index per row: deterministic
    if slope is not None:
        upcast *= slope
    if scale.temperature != 1.0:
        upcast /= scale.temperature
    # An ignored row may hold inf or NaN. On the CPU, where reading the mask needs no
    # synchronization, the fill is skipped if no row is ignored.
    if upcast.device.type != "cpu" or not bool(scored.all()):
        upcast.masked_fill_(~scored[:, None], 0.0)


def _zero_ignored(values: Tensor, scored: Tensor) -> Tensor:
    return torch.where(scored, values, torch.zeros_like(values))


def target_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """Compute the raw logit of each row's target as an fp32 dot product.

    Args:
        hidden: [C, D].
        weight: [V, D].
        bias: [V] or None.
        targets: [C] int64, -100 for ignored rows.

    Returns:
        hidden[c] . weight[targets[c]] + bias[targets[c]], [C] fp32; 0 in ignored rows.
    """
    index, scored = split_targets(targets)
    dots = (hidden.float() * weight[index].float()).sum(1)
    if bias is not None:
        dots += bias[index].float()
    return _zero_ignored(dots, scored)


def targets_ok(targets: Tensor, vocab: int) -> Tensor:
    """Return [1] bool: whether every target [N] is in [0, vocab) or -100."""
    invalid = (targets != IGNORE_INDEX) & ((targets < 0) | (targets >= vocab))
    return ~invalid.any(0, keepdim=True)


def segment_sums(values: Tensor, offsets: Tensor) -> Tensor:
    """Sum consecutive segments, accumulating in fp64.

    Args:
        values: [N] fp32 or fp64.
        offsets: [S + 1] int64, the boundaries of the segments.

    Returns:
        [S] in the dtype of ``values``.
    """
    sums = torch.segment_reduce(values.double(), "sum", lengths=offsets.diff(), unsafe=True)
    return sums.to(values.dtype)


def scale_(x: Tensor, scalar: Tensor) -> Tensor:
    """Multiply ``x`` in place by a 0-dimensional tensor on the same device, and return it."""
    # A 0-dimensional factor would be rounded to x's dtype; with x's number of dimensions it is not.
    return x.mul_(scalar.view((1,) * x.dim()))
