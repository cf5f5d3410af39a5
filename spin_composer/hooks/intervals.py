"""When the Trainer evaluates and saves: at each iteration's end too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from composer.callbacks import CheckpointSaver
from composer.core import Event, State


def evaluate_at_iteration_ends(state: State, epochs_per_iteration: int) -> None:
    """Make every evaluator also run at each iteration's end, whatever its interval."""
    for evaluator in state.evaluators:
        interval = evaluator.eval_interval
        if getattr(interval, "spin_iteration_ends", False):
            continue

        def due(state: State, event: Event, interval: Any = interval) -> bool:
            ends = int(state.timestamp.epoch_in_iteration) >= epochs_per_iteration
            return interval(state, event) or (event == Event.EPOCH_END and ends)

        due.spin_iteration_ends = True  # pyright: ignore[reportFunctionMemberAccess]
        evaluator.eval_interval = due


def save_at_iteration_ends(
    state: State,
    epochs_per_iteration: int,
    also: Callable[[Event], bool] = lambda event: False,
) -> None:
    """Save checkpoints at each iteration's end, and where ``also`` says so, whatever the interval.

    That of the iteration's last batch or epoch is put off until then: a run resumed from it would
    have to do again, or would miss, what is done at an iteration's end.

    Resumed from within the iteration before, a run on GPUs would come to slightly other weights
    than the opponent whose play is in the store, and be refused.
    """
    # llm-foundry puts its Hugging Face export behind the checkpoint: killed in between, a run would
    # resume from the iteration's end and never write that folder.
    state.callbacks[:] = sorted(state.callbacks, key=lambda c: isinstance(c, CheckpointSaver))
    for saver in state.callbacks:
        if not isinstance(saver, CheckpointSaver):
            continue
        interval = saver.save_interval
        if getattr(interval, "spin_iteration_ends", False):
            continue

        def due(state: State, event: Event, interval: Any = interval) -> bool:
            wanted = interval(state, event) or also(event)
            return event == Event.ITERATION_CHECKPOINT or (
                wanted and not _ends_iteration(state, event, epochs_per_iteration)
            )

        due.spin_iteration_ends = True  # pyright: ignore[reportFunctionMemberAccess]
        saver.save_interval = due


def _ends_iteration(state: State, event: Event, epochs_per_iteration: int) -> bool:
    """Tell whether the batch or epoch that an event closes is the last of its iteration."""
    epochs = int(state.timestamp.epoch_in_iteration)
    if event == Event.BATCH_CHECKPOINT:
        assert state.dataloader_len is not None
        epochs += int(state.timestamp.batch_in_epoch) >= int(state.dataloader_len)
    return epochs >= epochs_per_iteration
