"""Check that the policy equals the opponent at an iteration's first batch.

Within a batch ranks may diverge: with ``device_train_microbatch_size: auto`` a rank that runs out
of memory leaves its forward or backward pass for Composer's collectives, which ours would meet. So
each rank measures on its own, and the check is a collective after the batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from composer.core import Precision, State
from composer.loggers import Logger
from composer.trainer.trainer import OOM_FOUND_ON_OTHER_RANK
from composer.utils import dist
from torch import Tensor

from spin_composer.data.pairs import PairBatch

_FP32_TOLERANCE = 1e-5
_LOW_PRECISION_TOLERANCE = 5e-3
_NOISE_MULTIPLE = 4.0


class FirstBatchMonitor:
    """Compares policy and opponent at the first microbatch of an iteration.

    Its methods are called at Composer's events, before the first optimizer step, which follows
    ``AFTER_TRAIN_BATCH``.
    """

    def __init__(self) -> None:
        self.noise: float | None = None
        """Noise of scoring, in nats per token; None if there is nothing to compare."""
        self._sums: Tensor | None = None

    def start_iteration(self, noise: float) -> None:
        """Compare at the next batch; ``noise`` of scoring, in nats per token, is from play."""
        self.noise = noise

    def before_train_batch(self, state: State, logger: Logger) -> None:
        """Start a batch, or restart one that ran out of memory and is split further."""
        del state, logger
        self._sums = None

    def after_forward(self, state: State, logger: Logger) -> None:
        """Measure the batch's first microbatch, without a collective."""
        del logger
        if self.noise is not None and self._sums is None:
            outputs = cast(Mapping[str, Tensor], state.outputs)
            self._sums = gap_sums(outputs, state.batch)

    def after_train_batch(self, state: State, logger: Logger) -> None:
        """Check the measurement; a collective in an iteration's first batch.

        Raises:
            RuntimeError: See :func:`require_small_gap`.
        """
        if self.noise is None:
            return
        assert self._sums is not None
        sync_after_backward(state)
        dist.all_reduce(self._sums)
        gap = require_small_gap(float(self._sums[0] / self._sums[1]), self.noise, state)
        logger.log_metrics({"spin/first_batch_gap": gap})
        self.noise = None


def gap_sums(outputs: Mapping[str, Tensor], batch: PairBatch) -> Tensor:
    """Return the sum of |policy - opponent|, in nats, and of the tokens: [2], fp64.

    Args:
        outputs: The model's: ``policy_logps`` [B, 2], ``lengths`` [B, 2].
        batch: A pair batch with the opponent's sums.
    """
    gap = (outputs["policy_logps"].detach().double() - batch["opponent_logps"].double()).abs()
    return torch.stack([gap.sum(), outputs["lengths"].sum().double()])


def require_small_gap(per_token: float, noise: float, state: State) -> float:
    """Return the mean |policy - opponent| per token, in nats, if it is no more than noise.

    Raises:
        RuntimeError: If it exceeds the tolerance: wrong template, stale store, wrong checkpoint or
            wrong opponent.
    """
    floor = _FP32_TOLERANCE if state.precision == Precision.FP32 else _LOW_PRECISION_TOLERANCE
    tolerance = max(floor, _NOISE_MULTIPLE * noise)
    if not per_token <= tolerance:
        raise RuntimeError(
            f"iteration {int(state.timestamp.iteration)}: at its first batch the policy must equal "
            f"the opponent, but their log-probs differ by {per_token:.3g} nats per token "
            f"(tolerance {tolerance:.3g}). The store was scored with other weights, another "
            "template or another precision than is trained: delete the iteration's folder and "
            "start from the checkpoint at the iteration's start."
        )
    return per_token


def sync_after_backward(state: State) -> None:
    """Make sure that all ranks have finished the batch before a collective of ours.

    With ``auto`` microbatching a rank that is out of memory waits in a pair of Composer's
    collectives until all ranks join. This joins with the same pair, as each of Composer's forward
    passes does, and then leaves the batch too; if no rank is out of memory, all ranks are here.
    A collective; does nothing without ``auto``.

    Raises:
        RuntimeError: Composer's, which the Trainer catches: another rank is out of memory.
    """
    if not state.auto_microbatching:
        return
    to_device = state.device.tensor_to_device
    out_of_memory = to_device(torch.tensor([0], dtype=torch.uint8))
    dist.all_reduce(out_of_memory, reduce_operation="MAX")
    not_done = to_device(torch.tensor([0], dtype=torch.uint8))
    dist.all_reduce(not_done, reduce_operation="MIN")
    if out_of_memory.item():
        raise RuntimeError(OOM_FOUND_ON_OTHER_RANK)
