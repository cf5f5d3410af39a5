"""The learning rate: warm-up and decay within each iteration, and a peak per iteration."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

from composer.core import State, Time, Timestamp, TimeUnit
from composer.optim import (
    ComposerScheduler,
    ConstantWithWarmupScheduler,
    CosineAnnealingWithWarmupScheduler,
    LinearWithWarmupScheduler,
)
from torch.optim.lr_scheduler import LRScheduler

from spin_composer.errors import InputError
from spin_composer.settings.scheduler import SchedulerSettings
from spin_composer.settings.section import fill
from spin_composer.settings.spin import SpinSettings, value_for_iteration


class SpinScheduler(ComposerScheduler):
    """A warm-up and a decay that start again with every iteration.

    Composer's own schedulers cover a whole run; this one calls them with a clock of the current
    iteration. The multiplier also includes the iteration's peak learning rate
    (``algorithms.spin.learning_rate``), so that a resumed run has no learning rate to restore.

    Args:
        t_warmup: Length of the linear warm-up from 0, ``0.1dur`` being a tenth of the iteration (of
            ``schedule_length``, where it is given), ``20ba`` twenty batches.
        decay: ``linear``, ``cosine`` or ``constant``.
        alpha_f: Multiplier at the iteration's end, or at that of ``schedule_length``.
        schedule_length: Epochs over which it warms up and decays in each iteration, ``6ep`` or 6;
            None: the iteration's.

    Raises:
        InputError: If a value is out of range.
    """

    def __init__(
        self,
        t_warmup: str = SchedulerSettings.t_warmup,
        decay: str = SchedulerSettings.decay,
        alpha_f: float = SchedulerSettings.alpha_f,
        schedule_length: str | int | None = SchedulerSettings.schedule_length,
    ):
        given = {"t_warmup": t_warmup, "decay": decay, "alpha_f": alpha_f}
        self.settings = fill(SchedulerSettings, {**given, "schedule_length": schedule_length})
        if decay == "constant":
            self.schedule: ComposerScheduler = ConstantWithWarmupScheduler(t_warmup=t_warmup)
        elif decay == "cosine":
            self.schedule = CosineAnnealingWithWarmupScheduler(t_warmup=t_warmup, alpha_f=alpha_f)
        else:
            self.schedule = LinearWithWarmupScheduler(t_warmup=t_warmup, alpha_f=alpha_f)

    def __call__(self, state: State, ssr: float = 1.0) -> float:
        """Return the multiplier of the optimizer's learning rate at the state's timestamp."""
        settings = _settings(state)
        if state.dataloader_len is None:  # no loader yet, so no training
            return 0.0
        per_epoch = int(state.dataloader_len)
        t = state.timestamp
        batch = int(t.epoch_in_iteration) * per_epoch + int(t.batch_in_epoch)
        epochs = self.settings.epochs(settings.epochs_per_iteration)
        clock = SimpleNamespace(
            timestamp=Timestamp(batch=batch),
            max_duration=Time(per_epoch * epochs, TimeUnit.BATCH),
            dataloader_len=Time(per_epoch, TimeUnit.BATCH),
        )
        multiplier = self.schedule(cast(State, clock), ssr)  # schedulers read nothing else
        if settings.learning_rate is not None:
            assert isinstance(settings.learning_rate, list)
            peak = value_for_iteration(settings.learning_rate, int(t.iteration))
            multiplier *= peak / _learning_rate(state.optimizers[0].param_groups[0])
        return multiplier


def refresh_learning_rates(state: State) -> None:
    """Set the learning rates of the next batch.

    Composer steps schedulers before it advances the clock, so its learning rate lags by one batch,
    and an iteration's first batch would get the last learning rate of the previous iteration.
    """
    for scheduler in state.schedulers:
        groups = scheduler.optimizer.param_groups
        rates = zip(groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True)  # pyright: ignore
        for group, base, multiplier in rates:
            group["lr"] = base * multiplier(scheduler.last_epoch)


def require_spin_scheduler(state: State) -> SpinScheduler:
    """Return the run's scheduler; reject any other: Composer's do not restart per iteration.

    Raises:
        InputError: Unless there is exactly one scheduler, it is a :class:`SpinScheduler`, and it
            is no shorter than an iteration.
    """
    found = [_composer_scheduler(s) for s in state.schedulers]
    if len(found) != 1 or not isinstance(found[0], SpinScheduler):
        names = ", ".join(type(s).__name__ for s in found) or "none"
        raise InputError(
            f"schedulers must be one SpinScheduler, got {names}. Use `scheduler: {{name: spin}}` "
            "or Trainer(schedulers=SpinScheduler(...)): others do not restart per iteration."
        )
    found[0].settings.epochs(_settings(state).epochs_per_iteration)  # raises if it is too short
    return found[0]


def _learning_rate(group: Mapping[str, Any]) -> float:
    """Return the optimizer's own learning rate.

    Raises:
        InputError: If it is 0.
    """
    rate = group.get("initial_lr", group["lr"])
    if not rate > 0:
        raise InputError(
            "optimizer.lr must be a positive number beside algorithms.spin.learning_rate, got "
            f"{rate}: each iteration's peak is a multiple of it."
        )
    return rate


def _composer_scheduler(compiled: LRScheduler) -> object:
    """Return the ComposerScheduler inside the LambdaLR that Composer compiled it to."""
    for function in getattr(compiled, "lr_lambdas", []):
        scheduler = inspect.getclosurevars(function).nonlocals.get("scheduler")
        if scheduler is not None:
            return scheduler
    return compiled


def _settings(state: State) -> SpinSettings:
    for algorithm in state.algorithms:
        settings = getattr(algorithm, "settings", None)
        if isinstance(settings, SpinSettings):
            return settings
    raise InputError(
        "the scheduler `spin` needs the algorithm `spin`. Add `algorithms: {spin: {...}}`."
    )
