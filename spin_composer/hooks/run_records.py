"""What a run writes about itself beside its pairs: history, figures step by step, and alarms."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from composer.core import State
from composer.loggers import Logger
from composer.utils import dist

from spin_composer.alarms.monitor import AlarmMonitor, read_judged
from spin_composer.alarms.responses import response_figures, sample_pairs
from spin_composer.alarms.rules import Alarm
from spin_composer.distributed import from_rank_zero
from spin_composer.hooks.iteration_log import IterationLog
from spin_composer.hooks.process_log import add_process, describe_process
from spin_composer.hooks.step_log import StepLog
from spin_composer.model.unwrap import composer_model
from spin_composer.report.history import PLAY_SHARE
from spin_composer.report.steps import PLAY_TIME_SHARE
from spin_composer.settings.scheduler import SchedulerSettings
from spin_composer.settings.spin import SpinSettings
from spin_composer.store.base import Store
from spin_composer.store.layout import HISTORY, JUDGE
from spin_composer.store.manifest import Manifest, num_played_units

log = logging.getLogger(__name__)

_ALARMS = "alarms"
"""Key of the alarms in the state, whose other keys are the history's."""


class RunRecords:
    """The records of a run; the methods are called at Composer's events, on all ranks.

    Args:
        settings: The algorithm's.
    """

    def __init__(self, settings: SpinSettings) -> None:
        self.history = IterationLog()
        self.steps = StepLog()
        self.alarms = AlarmMonitor(settings.alarms)
        self._settings = settings
        self._epochs = settings.epochs_per_iteration
        self._store: Store | None = None
        self._has_process = settings.play_only is not None  # a job is no process of the run
        self._write_process: Callable[[], None] | None = None

    def open(
        self, store: Store, state: State, schedule: SchedulerSettings, batch_size: int,
        num_iterations: int,
    ) -> None:  # fmt: skip
        """Set the store, at ``FIT_START``; nothing is written yet.

        Args:
            store: The run's.
            state: Composer's, with the checkpoint loaded.
            schedule: Of the learning rate.
            batch_size: Pairs of an optimizer step.
            num_iterations: Of the run; fit() may be called for a part of them.
        """
        self._store = store
        self.history.open(store.root, state)
        self.steps.open(store, state)
        made = describe_process(state, self._settings, schedule, batch_size, num_iterations)
        self._write_process = lambda: add_process(store, made)

    def _add_process(self) -> None:
        """Add this process to the run's, once, when its iteration is not refused; a collective."""
        if not self._has_process and self._write_process is not None:
            self._has_process = True
            from_rank_zero(self._write_process)

    def start_iteration(
        self, state: State, logger: Logger, play: Mapping[str, float], manifest: Manifest
    ) -> None:
        """Start an iteration whose play is complete; a collective.

        Args:
            state: Its clock shows the iteration, its loader is the iteration's.
            logger: For alarms.
            play: Metrics of play.
            manifest: The iteration's.
        """
        self._add_process()
        responses = from_rank_zero(lambda: self._response_figures(state, manifest))
        play_and_responses = {**play, **responses}
        self.history.start(play)
        self.steps.start_iteration(play_and_responses)
        self._raise(logger, self.alarms.start_iteration(play_and_responses, *self._of(state)))
        self._look_at_judge(logger)

    def resume_iteration(self, state: State) -> None:
        """Continue an iteration in its middle; a collective."""
        self._add_process()
        self.alarms.resume_iteration(*self._of(state))

    def add_batch(self, state: State, logger: Logger) -> None:
        """Add a trained batch."""
        self.history.add_batch(state)
        self._raise(logger, self.alarms.add_batch(self.history.batch))
        self.steps.add_batch(state, self.history.batch)

    def close_iteration(self, state: State, logger: Logger, play_time_share: float) -> None:
        """Finish the iteration before the one of the state's clock."""
        logger.log_metrics({PLAY_TIME_SHARE: play_time_share})
        self.alarms.close_iteration()
        self.steps.close_iteration(state, {PLAY_TIME_SHARE: play_time_share})
        self.history.close(state, {PLAY_SHARE: play_time_share})
        self.write_history()

    def close(self, state: State, logger: Logger) -> None:
        """Write what is left, at ``FIT_END``; a collective."""
        self._look_at_judge(logger)
        self.steps.close(state)

    def write_history(self, ended: str = "") -> None:
        """Write the history on rank 0; ``ended`` says who ended the run early, and when."""
        assert self._store is not None
        if dist.get_global_rank() == 0:
            self.history.write(ended)
            self._store.publish(HISTORY)

    def state_dict(self) -> dict[str, object]:
        """Return the records so far; steps are written, since the checkpoint names the last one."""
        self.steps.flush()
        return {**self.history.state_dict(), _ALARMS: self.alarms.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self.history.load_state_dict(state)
        self.alarms.load_state_dict(state.get(_ALARMS, {}))

    def _of(self, state: State) -> tuple[int, int, float, bool]:
        """Return the index, number of batches, beta and normalization of the iteration."""
        loss = composer_model(state).pair_loss
        assert loss is not None  # Game has set it
        assert state.dataloader_len is not None
        batches = int(state.dataloader_len) * self._epochs
        beta = 1.0 if loss.beta is None else loss.beta
        return int(state.timestamp.iteration), batches, beta, loss.length_normalised

    def _response_figures(self, state: State, manifest: Manifest) -> dict[str, float]:
        assert self._store is not None
        tokenizer: Any = composer_model(state).tokenizer
        units = num_played_units(manifest)
        pairs = sample_pairs(self._store, int(state.timestamp.iteration), units)
        return response_figures(
            pairs, lambda ids: tokenizer.batch_decode(ids, skip_special_tokens=True)
        )

    def _look_at_judge(self, logger: Logger) -> None:
        store = self._store
        if store is not None:
            judged = from_rank_zero(lambda: read_judged(store.read_published(JUDGE)))
            self._raise(logger, self.alarms.add_judged(judged))

    def _raise(self, logger: Logger, alarms: Sequence[Alarm]) -> None:
        self.steps.add_alarms(alarms)
        for alarm in alarms:
            logger.log_metrics({f"alarms/{alarm.name}": 1.0})
            if dist.get_global_rank() == 0:
                log.warning(str(alarm))
