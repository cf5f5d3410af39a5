"""Log-probabilities and pair losses of a language model's head, without [N, V] logits."""

from spin_kernels.linear_log_softmax_gather import (
    linear_log_softmax_gather,
    linear_log_softmax_gather_ref,
)
from spin_kernels.linear_pair_loss import (
    PairLossOutput,
    linear_pair_loss,
    linear_pair_loss_ref,
)
from spin_kernels.log_softmax_gather import log_softmax_gather, log_softmax_gather_ref

__all__ = [
    "PairLossOutput",
    "linear_log_softmax_gather",
    "linear_log_softmax_gather_ref",
    "linear_pair_loss",
    "linear_pair_loss_ref",
    "log_softmax_gather",
    "log_softmax_gather_ref",
]
