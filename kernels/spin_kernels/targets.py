"""Targets, and the rows that have none.

Dimensions: N scored tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

IGNORE_INDEX = -100
"""The target of a row without a log-probability; PyTorch's cross entropy has the same default."""


def split_targets(targets: Tensor) -> tuple[Tensor, Tensor]:
    """Separate the targets into indices that are valid for a gather, and a mask.

    Args:
        targets: [N] int64, with ``IGNORE_INDEX`` for ignored rows.

    Returns:
        The targets with ignored ones replaced by 0, [N] int64, and the mask of the rows that are
        not ignored, [N] bool.
    """
    scored = targets != IGNORE_INDEX
    return torch.where(scored, targets, torch.zeros_like(targets)), scored
