"""Checks of the loaded checkpoint: it is of a SPIN run, and has all trained weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from composer.core import State
from composer.utils import dist

from spin_composer.errors import OTHER_WEIGHTS, InputError
from spin_composer.model.trained import trainable_names
from spin_composer.preflight.trainable import first_names

log = logging.getLogger(__name__)


def check_is_self_play(state: State, saved: Mapping[str, Any], epochs: int) -> None:
    """Reject a checkpoint of another kind of training, at ``AFTER_LOAD``, or of other iterations.

    The clock of the former would resume the run in the middle of an iteration that was never
    played. That of the latter counted epochs of longer or shorter iterations: the run would take a
    part of one for the whole, or its end for that of the run.

    Args:
        state: Composer's state after loading.
        saved: The algorithm's state in the checkpoint; empty if it had none.
        epochs: Of an iteration.

    Raises:
        InputError: Names the key that takes its weights only, or that must not change.
    """
    t = state.timestamp
    before = saved.get("epochs_per_iteration")  # 0.1 and older did not save it
    counted = int(t.epoch) == int(t.iteration) * epochs + int(t.epoch_in_iteration)
    if saved and (not counted if before is None else before != epochs):
        where = f"the checkpoint stands at iteration {int(t.iteration)}, epoch {int(t.epoch)}"
        raise InputError(
            f"algorithms.spin.iteration_length must be as it was when the run began"
            f"{'' if before is None else f', {before}ep'}, got {epochs}ep: {where}. Set it back, "
            "or begin another run with load_weights_only: true."
        )
    if not saved and int(t.batch):
        raise InputError(
            f"load_path: the checkpoint stands at epoch {int(t.epoch)}, batch {int(t.batch)} of a "
            "training that was not by self-play. Set load_weights_only: true to begin with its "
            "weights. (Without a load_path it lies in save_folder: give the run one of its own.)"
        )


def track_missing_weights(state: State) -> set[str]:
    """Record which trained parameters the checkpoint lacks that is loaded next.

    Returns:
        A set that is filled during loading. Composer itself silently resumes from a checkpoint that
        lacks weights.
    """
    missing: set[str] = set()
    load = state.load_model_state

    def tracking_load(state_dict: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        held = state_dict["model"]
        if held is not None:
            missing.update(trainable_names(state.model) - set(held))
        load(state_dict, *args, **kwargs)

    state.load_model_state = tracking_load
    return missing


def check_restored(state: State, missing: set[str] | None) -> None:
    """Reject a checkpoint that lacks trained weights; a collective.

    Before the first batch it is only a warning: they are the base model's weights anyway.

    Raises:
        InputError: Names the weights.
    """
    lacking = sorted({name for names in dist.all_gather_object(missing) for name in names or ()})
    if not lacking:
        return
    which = f"the checkpoint lacks {len(lacking)} of the trained weights"
    which += f" ({first_names(lacking)})"
    if int(state.timestamp.batch) == 0:
        if dist.get_global_rank() == 0:
            log.warning(f"{which}: they are the base model's.")
        return
    raise InputError(
        f"{which}: {OTHER_WEIGHTS}, and the run cannot go on as it was. Train the same weights, or "
        "start over with another run_name and other folders."
    )
