"""Runs that a callback ends early: recorded in the checkpoint, so that they stay ended.

EarlyStopper, ThresholdStopper and others call ``state.stop_training()``, which sets the duration to
the current time. The YAML still has the full duration, so the same command would continue.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, ClassVar

from composer.callbacks import CheckpointSaver, EarlyStopper, ThresholdStopper
from composer.core import Event, State, Time, TimeUnit
from composer.utils import dist

from spin_composer.errors import RunEnded

log = logging.getLogger(__name__)


class EarlyEnd:
    """Records which callback ends a run early, and keeps an ended run from continuing."""

    reason: ClassVar[str] = ""
    """Why the last loaded run is finished, for the command's message; empty if it is not."""

    def __init__(self) -> None:
        self.record: dict[str, Any] = {}
        """Saved in the checkpoint: ``by`` (a class), ``line``, and ``epochs``, the full duration;
        empty if the run was not ended."""

    def watch(self, state: State) -> None:
        """Record calls of ``state.stop_training``; at ``INIT``."""
        stop = state.stop_training

        def noted() -> None:
            caller = sys._getframe(1).f_locals.get("self")
            if not self.record:
                self._note(state, caller)
            stop()
            for saver in state.callbacks:  # the last batch of an epoch may be saved already
                if isinstance(saver, CheckpointSaver):
                    saver.last_checkpoint_batch = None
            if int(state.timestamp.batch) == 0:
                # Composer would divide by 0 batches. The current batch is still trained.
                state.max_duration = Time(1, TimeUnit.BATCH)

        state.stop_training = noted

    def _note(self, state: State, caller: object) -> None:
        t = state.timestamp
        at = f"iteration {int(t.iteration)}, epoch {int(t.epoch)}, batch {int(t.batch)}"
        who = type(caller).__name__ if caller is not None else "a call of state.stop_training()"
        self.record = {"by": who, "line": f"{who}{_reason(caller)} ended it at {at}"}
        self.record["epochs"] = int(state.max_duration.value) if state.max_duration else 0
        if dist.get_global_rank() == 0:
            log.warning(f"{self.record['line']}; the same command will not continue training.")

    def should_save(self, event: Event) -> bool:
        """Return whether a checkpoint should be saved because the run ends here."""
        return bool(self.record) and event in (Event.BATCH_CHECKPOINT, Event.EPOCH_CHECKPOINT)

    def restore(self, state: State, saved: dict[str, Any], epochs: int) -> bool:
        """Keep a run ended that was ended according to its checkpoint; at ``AFTER_LOAD``.

        It continues if its duration was extended, or if the callback that ended it was removed.

        Args:
            state: Composer's state.
            saved: The checkpoint's record.
            epochs: The run's full duration.

        Returns:
            Whether it is finished: Composer's ``fit()`` then refuses to train.
        """
        EarlyEnd.reason = ""
        callbacks = {type(callback).__name__ for callback in state.callbacks}
        by = saved.get("by", "")
        if not saved or epochs > saved["epochs"] or (by.isidentifier() and by not in callbacks):
            return False
        EarlyEnd.reason = saved["line"]
        if dist.get_global_rank() == 0:
            log.warning(
                f"the run is finished: {saved['line']}. To continue, raise max_duration or remove "
                f"{by}."
            )
        state.max_duration = Time(int(state.timestamp.batch), TimeUnit.BATCH)
        return True

    def require_started(self, state: State) -> None:
        """Stop if the run was ended before anything was played; at ``FIT_START``.

        Raises:
            RunEnded: Names the callback that ended it.
        """
        if self.record and int(state.timestamp.batch) == 0:
            raise RunEnded(f"{self.record['line']}: nothing was played and nothing trained.")


def _reason(caller: object) -> str:
    """Return a stopper's reason in parentheses: of Composer's, the metric that it monitors."""
    if isinstance(caller, EarlyStopper):
        best = "" if caller.best is None else f", best {float(caller.best):.4g}"
        return f" ({caller.monitor}{best}, patience {caller.patience.to_timestring()})"
    if isinstance(caller, ThresholdStopper):
        return f" ({caller.monitor}, threshold {float(caller.threshold):.4g})"
    reason = getattr(caller, "stop_reason", "")  # of a callback that says why
    return f" ({reason})" if reason else ""
