"""Response log-probabilities without ever holding an [N, V] matrix of logits."""

from spin_kernels.linear_log_softmax_gather import (
    linear_log_softmax_gather,
    linear_log_softmax_gather_ref,
)
from spin_kernels.log_softmax_gather import log_softmax_gather, log_softmax_gather_ref

__all__ = [
    "linear_log_softmax_gather",
    "linear_log_softmax_gather_ref",
    "log_softmax_gather",
    "log_softmax_gather_ref",
]
