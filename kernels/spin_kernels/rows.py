"""The arithmetic on one chunk of rows that both operations share.

Dimensions: C rows of a chunk, V vocabulary. ``z`` is always fp32 or fp64 and owned by the caller,
so everything here works in place: a chunk costs one matrix and no more.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from spin_kernels.checks import IGNORED


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return fp64 for fp64 and fp32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def row_chunks(num_rows: int, bytes_per_row: int, budget_bytes: int) -> Iterator[slice]:
    """Yield slices over ``num_rows`` rows whose matrices fit ``budget_bytes``, at least one row."""
    size = max(1, budget_bytes // bytes_per_row)
    for start in range(0, num_rows, size):
        yield slice(start, min(start + size, num_rows))


def split_targets(targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return targets [N] with ignored ones as 0, and the mask [N] of the scored rows."""
    scored = targets != IGNORED
    return torch.where(scored, targets, torch.zeros_like(targets)), scored


def logps_(z: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the log-probs [C] of targets in ``z`` [C, V], which is overwritten, and its norm.

    The norm is the largest logit [C] and the log [C] of the sum over it: log-sum-exp in two parts,
    since their sum in fp32 is off by 1e-6 where logits are near 20.
    """
    picked = z.gather(1, targets[:, None])[:, 0]
    top = z.amax(1)
    log_total = z.sub_(top[:, None]).exp_().sum(1).log_()
    return picked - top - log_total, top, log_total


def logps_backward_(
    z: Tensor, targets: Tensor, top: Tensor, log_total: Tensor, grad: Tensor
) -> Tensor:
    """Turn ``z`` [C, V] into d(logps . grad)/dz = grad * (onehot - softmax), in place."""
    rows = torch.arange(z.shape[0], device=z.device)
    z.sub_(top[:, None]).sub_(log_total[:, None]).exp_().mul_(-grad[:, None])
    z[rows, targets] += grad  # indices are unique: no atomics, deterministic
    return z
