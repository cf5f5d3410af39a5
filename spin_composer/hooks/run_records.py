"""What a run writes about itself beside its pairs: its history and its figures step by step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from composer.core import State
from composer.loggers import Logger
from composer.utils import dist

from spin_composer.hooks.iteration_log import IterationLog
from spin_composer.hooks.step_log import StepLog
from spin_composer.report.steps import PLAY_TIME_SHARE
from spin_composer.store.base import Store
from spin_composer.store.layout import HISTORY


class RunRecords:
    """The history and the steps of a run; its methods are called at Composer's events."""

    def __init__(self) -> None:
        self.history = IterationLog()
        self.steps = StepLog()
        self._store: Store | None = None

    def open(self, store: Store, state: State) -> None:
        """Set the store, at ``FIT_START``; nothing is written yet."""
        self._store = store
        self.history.open(store.root, state)
        self.steps.open(store, state)

    def start_iteration(self, play: Mapping[str, float]) -> None:
        """Start an iteration with its play metrics."""
        self.history.start(play)
        self.steps.start_iteration(play)

    def add_batch(self, state: State) -> None:
        """Add a trained batch."""
        self.history.add_batch(state)
        self.steps.add_batch(state, self.history.batch)

    def close_iteration(self, state: State, logger: Logger, play_time_share: float) -> None:
        """Finish the iteration before the one of the state's clock."""
        logger.log_metrics({PLAY_TIME_SHARE: play_time_share})
        self.steps.close_iteration(state, {PLAY_TIME_SHARE: play_time_share})
        self.history.close(state, {"play_time_share": play_time_share})
        self.write_history()

    def write_history(self, ended: str = "") -> None:
        """Write the history on rank 0; ``ended`` says who ended the run early, and when."""
        assert self._store is not None
        if dist.get_global_rank() == 0:
            self.history.write(ended)
            self._store.publish(HISTORY)

    def state_dict(self) -> dict[str, object]:
        """Return the history so far; steps are written, since the checkpoint names the last one."""
        self.steps.flush()
        return self.history.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self.history.load_state_dict(state)
