"""The learning rate of each step by that step's clock, in SFT as in SPIN."""

from __future__ import annotations

from composer.core import Callback, State
from composer.loggers import Logger

from spin_composer.schedule import refresh_learning_rates


class RatesOfTheStep(Callback):
    """Sets the rate of a batch as it begins: Composer's own lags by one batch.

    SPIN's algorithm does so too; without it SFT beside SPIN would have another schedule, which in
    a run of few steps is a fifth more learning rate in sum.
    """

    def batch_start(self, state: State, logger: Logger) -> None:
        """Set the learning rates of the batch that begins."""
        del logger
        refresh_learning_rates(state)
