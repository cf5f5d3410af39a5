"""Stop a run after a signal: all ranks at the same batch, after a checkpoint if requested.

Between two batches all ranks exchange recorded signals in one small all-reduce, besides the several
that Composer makes there. So they stop at the same batch, whichever rank got the signal, and none
is left in a collective.
"""

from __future__ import annotations

import signal
import uuid
from contextlib import suppress

import torch
from composer.callbacks import CheckpointSaver
from composer.core import Event, State
from composer.loggers import Logger
from composer.utils import dist

from spin_composer import interrupt
from spin_composer.distributed import KeyValueStore, from_rank_zero, key_value_store
from spin_composer.errors import InputError

_BEFORE_AN_END = (signal.SIGUSR1, signal.SIGUSR2)
"""Signals that Slurm and others can send some time before they end a job; the user chooses."""


class GracefulStop:
    """Stops all ranks at the same batch; its methods are called at Composer's events.

    Args:
        save: Save a checkpoint first (``save_on_signal``).
    """

    def __init__(self, save: bool):
        self.save = save
        self.signal_number = 0
        """The signal that all ranks have agreed on, or 0."""
        self._in_training = False

    def begin(self, state: State) -> None:
        """Start handling signals, at ``FIT_START``; a collective.

        Raises:
            InputError: If a checkpoint should be saved after a signal and the run saves none.
        """
        if self.save and not any(isinstance(c, CheckpointSaver) for c in state.callbacks):
            raise InputError(
                "algorithms.spin.save_on_signal=true has nowhere to save: the run has no "
                "save_folder. Set it."
            )
        interrupt.install(*(_BEFORE_AN_END if self.save else ()))
        interrupt.set_deferred(False)
        self.signal_number, self._in_training = 0, False
        key = from_rank_zero(lambda: f"spin/interrupted/{uuid.uuid4()}")
        _connect(key_value_store(), key)

    def should_save(self, event: Event) -> bool:
        """Return whether a checkpoint should be saved at a batch's end because of a signal."""
        return event == Event.BATCH_CHECKPOINT and bool(self.signal_number) and self.save

    def before_dataloader(self, state: State, logger: Logger) -> None:
        """Defer signals during a batch; stop if the last batch was saved after a signal.

        Raises:
            Interrupted: If the checkpoint of the previous batch was saved after a signal.
        """
        del logger
        self._in_training = True
        interrupt.set_deferred(True, no_deadline=self.save)
        if self.signal_number:
            self._stop_if_saved(state)

    def batch_end(self, state: State, logger: Logger) -> None:
        """Stop after a batch if any rank has recorded a signal; a collective.

        Raises:
            Interrupted: On all ranks; with ``save_on_signal`` only after the save.
        """
        del logger
        if self._in_training and not self.signal_number:
            self._sync_signal(state)
            if self.signal_number and not self.save:
                raise interrupt.exception_for(self.signal_number)

    def eval_batch_end(self, state: State, logger: Logger) -> None:
        """See :meth:`batch_end`; an evaluation before a save is completed first."""
        if not self.save:
            self.batch_end(state, logger)

    def iteration_start(self, state: State, logger: Logger) -> None:
        """Stop before play, when the last iteration's checkpoint is saved; a collective.

        Raises:
            Interrupted: On all ranks, if any has recorded a signal.
        """
        del logger
        if self._in_training:
            self._sync_signal(state)
            if self.signal_number:
                self._stop_if_saved(state)
                raise interrupt.exception_for(self.signal_number)
        self._reset()

    def fit_end(self) -> None:
        """Stop handling signals, unless the command line does."""
        self._reset()
        if not interrupt.owns_process():
            interrupt.uninstall()

    def _reset(self) -> None:
        self._in_training = False
        interrupt.set_deferred(False)

    def _sync_signal(self, state: State) -> None:
        noted = state.device.tensor_to_device(torch.tensor([interrupt.pending_signal()]))
        dist.all_reduce(noted, reduce_operation="MAX")
        self.signal_number = int(noted.item())

    def _stop_if_saved(self, state: State) -> None:
        batch = state.timestamp.batch
        for saver in state.callbacks:
            if isinstance(saver, CheckpointSaver) and saver.last_checkpoint_batch == batch:
                t = state.timestamp
                interrupt.set_resume_checkpoint(f"epoch {int(t.epoch)}, batch {int(batch)}")
                raise interrupt.exception_for(self.signal_number)


def _connect(store: KeyValueStore, key: str) -> None:
    """Let a rank that is ended by a signal notify the ranks that lose it."""

    def publish(number: int) -> None:
        with suppress(RuntimeError):  # rank 0, which hosts the store, may be gone
            store.set(key, str(number))

    def poll() -> int:
        with suppress(RuntimeError):
            if store.check([key]):
                return int(store.get(key))
        return 0

    interrupt.connect_ranks(publish, poll)
