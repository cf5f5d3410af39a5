"""Evaluation, checkpoints and exports at the end of each iteration and of the run."""

from __future__ import annotations

from collections.abc import Callable

from composer.callbacks import CheckpointSaver
from composer.core import Event, State

from spin_composer.export.exporters import exporters
from spin_composer.export.upload import RequireUploads

Interval = Callable[[State, Event], bool]
Rule = Callable[[Interval, State, Event], bool]
"""Decides whether an interval is due, given the run's own interval."""


class ExtendedInterval:
    """One of Composer's intervals, extended by a rule."""

    def __init__(self, given: Interval, rule: Rule) -> None:
        self._given, self._rule = given, rule

    def __call__(self, state: State, event: Event) -> bool:
        """Return whether the interval is due."""
        return self._rule(self._given, state, event)


def _extend(owner: object, name: str, rule: Rule) -> None:
    """Extend an interval of ``owner`` by a rule, unless an earlier fit() has done so."""
    given = getattr(owner, name)
    if not isinstance(given, ExtendedInterval):
        setattr(owner, name, ExtendedInterval(given, rule))


def evaluate_at_iteration_ends(state: State, epochs_per_iteration: int) -> None:
    """Make every evaluator also run at each iteration's end, whatever its interval."""

    def due(given: Interval, state: State, event: Event) -> bool:
        ends = int(state.timestamp.epoch_in_iteration) >= epochs_per_iteration
        return given(state, event) or (event == Event.EPOCH_END and ends)

    for evaluator in state.evaluators:
        _extend(evaluator, "eval_interval", due)


def save_at_iteration_ends(
    state: State,
    epochs_per_iteration: int,
    also: Callable[[Event], bool] = lambda event: False,
) -> None:
    """Save checkpoints at each iteration's end, and if ``also`` returns true, at any interval.

    A checkpoint of the iteration's last batch or epoch is deferred to the iteration's end: a run
    resumed from it would repeat or miss what is done there.

    A run on GPUs that is resumed from within the previous iteration would reach slightly different
    weights than the opponent whose play is in the store, and would be rejected.
    """

    def due(given: Interval, state: State, event: Event) -> bool:
        wanted = given(state, event) or also(event)
        return event == Event.ITERATION_CHECKPOINT or (
            wanted and not _ends_iteration(state, event, epochs_per_iteration)
        )

    # llm-foundry exports after the checkpoint: killed in between, a run would resume from the
    # iteration's end and never write that folder.
    # At fit_end checkpoints are uploaded before a missing export ends the run.
    last = (CheckpointSaver, RequireUploads)
    state.callbacks[:] = sorted(
        state.callbacks, key=lambda c: [isinstance(c, kind) for kind in reversed(last)]
    )
    for saver in state.callbacks:
        if isinstance(saver, CheckpointSaver):
            _extend(saver, "save_interval", due)


def export_at_the_end(state: State) -> None:
    """Make every exporter also write the final policy, whatever its interval.

    With an interval such as ``2iter`` of three iterations llm-foundry misses the end of training:
    it checks batches and epochs, and iterations end after them.
    """

    def due(given: Interval, state: State, event: Event) -> bool:
        elapsed = state.get_elapsed_duration()
        ends = elapsed is not None and elapsed >= 1.0
        return given(state, event) or (event == Event.ITERATION_CHECKPOINT and ends)

    for exporter in exporters(state):
        _extend(exporter, "check_interval", due)


def _ends_iteration(state: State, event: Event, epochs_per_iteration: int) -> bool:
    """Return whether an event ends the last batch or epoch of its iteration."""
    epochs = int(state.timestamp.epoch_in_iteration)
    if event == Event.BATCH_CHECKPOINT:
        assert state.dataloader_len is not None
        epochs += int(state.timestamp.batch_in_epoch) >= int(state.dataloader_len)
    return epochs >= epochs_per_iteration
